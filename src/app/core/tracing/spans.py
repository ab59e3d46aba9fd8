"""The spans of requests and of attempts at jobs. What is in them is for others' eyes: no queries, headers, values."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags
from structlog.contextvars import bound_contextvars

from app.core.logger import TRACE_ID
from app.core.tracing.lifecycle import tracer

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")  # W3C Trace Context
_SAMPLED: Final = TraceFlags.SAMPLED

Attributes = dict[str, str | int]

wanted_trace_id: ContextVar[int | None] = ContextVar("wanted_trace_id", default=None)


class Ended:
    """How what a span is about has ended; to be said before the span ends."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """The trace's id, 32 hexadecimal digits; None when it is not recorded."""
        context = self._span.get_span_context()
        return trace.format_trace_id(context.trace_id) if self._span.is_recording() else None

    def name(self, name: str) -> None:
        """What it was, known by now."""
        self._span.update_name(name)

    def note(self, **attributes: str | int) -> None:
        """More about it; in names, `__` stands for a dot."""
        for name, value in attributes.items():
            self._span.set_attribute(name.replace("__", "."), value)

    def failed(self, error: BaseException | None = None) -> None:
        """It went wrong; of the error, its type and where it was raised are kept, and not what it says."""
        if error is not None and self._span.is_recording():
            kind = _kind_of(error)
            self._span.set_attribute("error.type", kind)
            stack = _stack_of(error.__traceback__)
            self._span.add_event("exception", {"exception.type": kind, "exception.stacktrace": stack})
        self._span.set_status(StatusCode.ERROR)


@contextmanager
def server_span(method: str, trace_id: str | None, scheme: str) -> Iterator[Ended | None]:
    """The span of a request, meanwhile the current one. None while tracing is off.

    Args:
        method: the request's.
        trace_id: the trace's id, if that is decided; it is used where it is one.
        scheme: http or https.
    """
    wanted = int(trace_id, 16) if trace_id is not None and _TRACE_ID.fullmatch(trace_id) else None
    attributes: Attributes = {"http.request.method": method, "url.scheme": scheme}
    token = wanted_trace_id.set(wanted)
    try:
        span = _start(method, SpanKind.SERVER, Context(), attributes)
    finally:
        wanted_trace_id.reset(token)
    if span is None:
        yield None
        return
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield Ended(span)


@contextmanager
def attempt_span(function: str, job_id: str, queue: str, attempt: int, traceparent: str | None) -> Iterator[Ended]:
    """The span of an attempt at a job, in the trace of whoever has enqueued it. Its log lines have the trace's id.

    While tracing is off, what is said of it goes nowhere.
    """
    attributes: Attributes = {"job.function": function, "job.id": job_id, "job.queue": queue, "job.attempt": attempt}
    span = _start(f"job {function}", SpanKind.CONSUMER, _context_of(traceparent), attributes)
    if span is None:
        yield Ended(trace.INVALID_SPAN)
        return
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        ended = Ended(span)
        with bound_contextvars(**({TRACE_ID: ended.trace_id} if ended.trace_id else {})):
            yield ended


def current_traceparent() -> str | None:
    """Where one is, in a form that others can go on from; None while tracing is off, or outside of any span."""
    if tracer() is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return f"00-{trace_id}-{span_id}-{context.trace_flags & _SAMPLED:02x}"


def _start(name: str, kind: SpanKind, context: Context, attributes: Attributes) -> Span | None:
    current = tracer()
    return current.start_span(name, context=context, kind=kind, attributes=attributes) if current else None


def _context_of(traceparent: str | None) -> Context:
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None:
        return Context()
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & _SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack_of(where: TracebackType | None) -> str:
    return "".join(traceback.format_tb(where))
