"""Gives every request an id, a log line, and a place among what is counted."""

import os
import re
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.db.database import begin_request
from app.core.logger import TRACE_ID, USER_ID, log_request
from app.core.metrics.http import IN_FLIGHT, count_request
from app.core.mounts import template_of
from app.middleware.headers import header, with_headers
from app.middleware.websocket_edge import WebSocketEdge

HEADER = b"x-request-id"
WEBSOCKET = "WEBSOCKET"  # in the place of a method
_HANDSHAKE = {"websocket.accept", "websocket.http.response.start"}
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class RequestContextMiddleware:
    """Wraps whatever answers. A caller's (or proxy's) own `X-Request-ID` is kept when it is harmless."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 0
        request_id = _begin(scope, started)
        state = scope["state"]
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
            route = template_of(scope)
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

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same for a WebSocket. It is counted as a request that takes until the handshake is answered."""
        started = perf_counter()
        request_id = _begin(scope, started)
        state = scope["state"]
        answered = 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal answered
            if message["type"] in _HANDSHAKE:
                answered = perf_counter() - started
                message = with_headers({"headers": [], **message}, (HEADER, request_id.encode()))
            await send(message)

        edge = WebSocketEdge(scope, receive, send_with_id)
        try:
            await self.app(scope, edge.receive, edge.send)
            await edge.end()
        finally:
            route, seconds, user_id = template_of(scope), perf_counter() - started, state.get(USER_ID)
            count_request(WEBSOCKET, route, edge.status, answered or seconds)
            log_request(request_id, WEBSOCKET, scope["path"], edge.status, seconds, route=route, user_id=user_id)
            if user_id is not None:
                structlog.contextvars.unbind_contextvars(USER_ID)


def _begin(scope: Scope, started: float) -> str:
    """Gives a request its place, and its id, which is returned."""
    request_id = _request_id(scope)
    scope.setdefault("state", {})["request_id"] = request_id
    scope["slipway.started"] = started
    structlog.contextvars.bind_contextvars(request_id=request_id)
    begin_request()
    return request_id


def _request_id(scope: Scope) -> str:
    given = header(scope, HEADER)
    return given.decode() if given is not None and _ACCEPTABLE.fullmatch(given) else os.urandom(16).hex()
