"""Tells callers about their rate limit whatever the answer is, and counts what cannot be read."""

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.exceptions.problem_response import answer_to
from app.core.route_table import route_of
from app.core.utils.rate_limit.enforcement import HEADERS, RateLimited, limit
from app.core.utils.rate_limit.routes import is_limited
from app.middleware.headers import with_headers

_HANDSHAKE = {"websocket.accept", "websocket.http.response.start"}
_UNTOLD = {401, 403}  # Who may not ask does not get to know how much somebody asks.
_UNREAD = {400, 413, 422}  # FastAPI reads the body before it looks at any dependency, the one that counts included.


class RateLimitMiddleware:
    """Adds what the limiter has left in the request's state: an answer made of an error has no other way to get it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._handshake(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = False

        async def send_with_headers(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start":
                status, state = message["status"], scope["state"]
                if status in _UNREAD and HEADERS not in state and (refusal := await _count_unread(scope)):
                    await answer_to(Request(scope), refusal)(scope, receive, send_with_headers)
                    refused = True
                    return
                if status not in _UNTOLD and (headers := state.get(HEADERS)):
                    message = with_headers(message, *headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    async def _handshake(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in _HANDSHAKE and message.get("status") not in _UNTOLD:
                message = with_headers({"headers": [], **message}, *scope["state"].get(HEADERS, ()))
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _count_unread(scope: Scope) -> RateLimited | None:
    """Counts a request to a limited route that was answered before it was counted: under the address it comes from."""
    route = route_of(scope)
    if route is not None and is_limited(route.dependant):
        try:
            await limit(Request(scope))
        except RateLimited as refusal:
            return refusal
    return None
