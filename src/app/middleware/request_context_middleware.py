"""Gives every request an id, a log line, and a place among what is counted."""

import os
import re
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.db.database import begin_request
from app.core.logger import TRACE_ID, USER_ID, log_request
from app.core.metrics.http import IN_FLIGHT, count_request
from app.core.route_table import route_of
from app.middleware.headers import header, with_headers

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class RequestContextMiddleware:
    """Wraps whatever answers. A caller's (or proxy's) own `X-Request-ID` is kept when it is harmless."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 0
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        scope["slipway.started"] = started
        structlog.contextvars.bind_contextvars(request_id=request_id)
        begin_request()
        IN_FLIGHT.inc()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = with_headers(message, (HEADER, request_id.encode()))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            IN_FLIGHT.dec()
            found = route_of(scope)
            route = found.path_format if found is not None else None
            method, seconds, user_id = scope["method"], perf_counter() - started, state.get(USER_ID)
            count_request(method, route, status, seconds)
            log_request(
                request_id,
                method,
                scope["path"],
                status,
                seconds,
                route=route,
                user_id=user_id,
                trace_id=state.get(TRACE_ID),
            )
            if user_id is not None:  # Only where requests share a context, as in a test, would it be there any more.
                structlog.contextvars.unbind_contextvars(USER_ID)


def _request_id(scope: Scope) -> str:
    given = header(scope, HEADER)
    return given.decode() if given is not None and _ACCEPTABLE.fullmatch(given) else os.urandom(16).hex()
