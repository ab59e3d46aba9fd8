"""Answers HEAD wherever GET is answered."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """HEAD is GET without the content (RFC 9110, section 9.3.2). Health checkers and proxies ask that way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_content(message: Message) -> None:
            if message["type"] == "http.response.start":
                share_route()
            elif message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        def share_route() -> None:
            """Middleware around this one looks at the route that was found."""
            scope.update({**asked, "method": "HEAD"})

        asked = {**scope, "method": "GET"}
        try:
            await self.app(asked, receive, send_without_content)
        finally:
            share_route()
