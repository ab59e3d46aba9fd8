"""Tells clients and proxies what they may keep."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ClientCacheMiddleware:
    """Anonymous 200 answers to GET and HEAD may be kept for `max_age` seconds; nothing else may be kept at all.

    A 304 says what the 200 it stands for would say. An answer that has an `Age` may be kept for as much longer: what
    our own cache keeps is as good as new. A route that sets its own `Cache-Control` is left alone.
    """

    def __init__(self, app: ASGIApp, max_age: int) -> None:
        self.app = app
        self.max_age = max_age

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        anonymous_get = scope["method"] in {"GET", "HEAD"} and not ("authorization" in asked or "cookie" in asked)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "cache-control" not in headers:
                    public = anonymous_get and message["status"] in {200, 304} and "set-cookie" not in headers
                    lifetime = self.max_age + int(headers.get("age", 0))
                    headers["Cache-Control"] = f"public, max-age={lifetime}" if public else "private, no-store"
                    if public:
                        headers.add_vary_header("Authorization")
                        headers.add_vary_header("Cookie")
            await send(message)

        await self.app(scope, receive, send_with_policy)
