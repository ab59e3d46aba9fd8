"""Refuses request bodies over a size.

Starlette has a limit of its own, but it answers a declared length with plain text where we owe a problem document.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.exceptions.http_exceptions import PayloadTooLarge
from app.core.exceptions.problem_response import problem_response
from app.middleware.headers import header

_LONGEST_LENGTH = 18  # digits; Python refuses to read thousands of them


class BodyLimitMiddleware:
    """Answers 413 at once to a declared length over the limit, and as soon as an undeclared one passes it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = header(scope, b"content-length") or b""
        if declared.isdigit() and (len(declared) > _LONGEST_LENGTH or int(declared) > self.max_bytes):
            refusal = PayloadTooLarge()
            response = problem_response(
                scope["state"]["request_id"], 413, kind=refusal.problem_type(), detail=refusal.detail
            )
            await response(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise PayloadTooLarge
            return message

        await self.app(scope, receive_counted, send)
