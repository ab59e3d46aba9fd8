"""Makes a span of every request."""

from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.logger import TRACE_ID
from app.core.mounts import template_of
from app.core.tracing import Ended, server_span
from app.middleware.headers import header
from app.middleware.proxy_headers_middleware import VIA_TRUSTED_PROXY
from app.middleware.request_context_middleware import HEADER

_UNTRACED: Final = ("/health", "/ready", "/metrics")  # asked every few seconds, by machines


class TracingMiddleware:
    """A trace has its request's id, as nginx or we have made it, and the log has both under one.

    A client cannot choose it, nor join another trace, nor have itself sampled: `traceparent` is not looked at, and a
    request id that did not come through a trusted proxy is no trace's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(_UNTRACED):
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with server_span(scope["method"], _trace_id(scope), scope.get("scheme", "http")) as span:
            if span is None:
                await self.app(scope, receive, send)
                return
            differs = _note(scope, span)
            try:
                await self.app(scope, receive, send_noticed)
            except Exception as error:
                span.failed(error)
                status = status or 500  # It will be answered with that.
                raise
            finally:
                _describe(scope, span, status)
                if differs:
                    structlog.contextvars.unbind_contextvars(TRACE_ID)


def _trace_id(scope: Scope) -> str | None:
    request_id: str = scope["state"]["request_id"]
    is_given = header(scope, HEADER) == request_id.encode()
    return None if is_given and not scope.get(VIA_TRUSTED_PROXY) else request_id


def _note(scope: Scope, span: Ended) -> bool:
    """Has log lines say what the trace is called, where it has another id than the request."""
    trace_id = span.trace_id
    if trace_id is None or trace_id == scope["state"]["request_id"]:
        return False
    scope["state"][TRACE_ID] = trace_id
    structlog.contextvars.bind_contextvars(trace_id=trace_id)
    return True


def _describe(scope: Scope, span: Ended, status: int) -> None:
    route = template_of(scope)
    if route is not None:
        span.name(f"{scope['method']} {route}")
        span.note(http__route=route)
    if status:
        span.note(http__response__status_code=status)
    if status >= 500:
        span.failed()
