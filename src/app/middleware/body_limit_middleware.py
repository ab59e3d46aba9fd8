"""Refuses request bodies over the limit of their route.

Starlette has such a middleware, but it answers a declared length with plain text where we owe a problem document.
"""

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.body_limit import SCOPE_KEY, BodyLimit
from app.core.exceptions.http_exceptions import PayloadTooLarge
from app.core.exceptions.problem_response import answer_to

_HTTP_1: Final = ("1.1", "1.0")  # Without these headers, a request has no body (RFC 9112, section 6.3).


class BodyLimitMiddleware:
    """Answers 413 to a body that exceeds the limit of its route, or that of the application where the route has none.

    A declared length is refused before the body is read, an undeclared one as soon as it passes the limit. The answer
    is the same whatever the route, its sub-application or its middleware make of the error.
    """

    def __init__(self, app: ASGIApp, max_bytes: int | None) -> None:
        """
        Args:
            app: what answers.
            max_bytes: the limit of routes that have none of their own; None is no limit.
        """
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        content_length, has_body = None, scope["http_version"] not in _HTTP_1
        for name, value in scope["headers"]:
            if name == b"content-length":
                content_length, has_body = value, True
            elif name == b"transfer-encoding":
                has_body = True
        if not has_body:
            await self.app(scope, receive, send)
            return
        outer: BodyLimit | None = scope.get(SCOPE_KEY)
        if outer is not None:  # This is a sub-application: one limit counts for both.
            outer.max_body_size = outer.max_body_size if self.max_bytes is None else self.max_bytes
            await self.app(scope, receive, send)
            return
        limit = BodyLimit(self.max_bytes, content_length, receive)
        scope[SCOPE_KEY] = limit
        started = refused = False

        async def send_checked(message: Message) -> None:
            nonlocal started, refused
            if not started:
                started = True
                if refused := message["type"] == "http.response.start" and limit.refuses(message["status"]):
                    await answer_to(Request(scope), PayloadTooLarge())(scope, receive, send)
            if not refused:
                await send(message)

        try:
            await self.app(scope, limit.receive, send_checked)
        except Exception:
            if refused:
                return
            if started or not limit.is_exceeded:
                raise
            await answer_to(Request(scope), PayloadTooLarge())(scope, receive, send)
