"""The spans of statements: their text, with places for values, and never the values."""

from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import ExceptionContext, event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.tracing.lifecycle import tracer

LONGEST_STATEMENT: Final = 4000  # characters

_SPAN: Final = "_slipway_span"  # of an execution context


def trace_engine(engine: AsyncEngine) -> None:
    """Makes a span of every statement that this engine's connections run inside of another span.

    Does nothing while tracing is off: it is to be open before. And it is to be called before anybody else listens for
    the engine's errors: once a listener has raised another error, those after it do not hear of the first.
    """
    if tracer() is None:
        return
    event.listen(engine.sync_engine, "before_cursor_execute", _begin)
    event.listen(engine.sync_engine, "after_cursor_execute", _end)
    event.listen(engine.sync_engine, "handle_error", _fail)


def _begin(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
    current = tracer()
    if current is None or context is None or not trace.get_current_span().is_recording():
        return  # What a process does by itself, every second, is no trace of its own.
    operation = statement.lstrip().partition(" ")[0].partition("\n")[0].upper()
    attributes = {
        "db.system.name": "postgresql",
        "db.operation.name": operation,
        "db.query.text": statement[:LONGEST_STATEMENT],
    }
    setattr(context, _SPAN, current.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes))


def _end(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
    span = getattr(context, _SPAN, None)
    if span is not None:
        span.end()


def _fail(error: ExceptionContext) -> None:
    span = getattr(error.execution_context, _SPAN, None)
    if span is not None and span.is_recording():
        cause = error.original_exception
        span.set_attribute("error.type", type(cause).__name__)
        if state := getattr(cause, "sqlstate", None):
            span.set_attribute("db.response.status_code", str(state))
        span.set_status(StatusCode.ERROR)
        span.end()
