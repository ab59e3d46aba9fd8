"""Traces, where an exporter is configured (docs/decisions/0015-a-trace-has-its-requests-id.md).

A request is a span, its statements are spans below it, and so is each attempt at a job that it has enqueued. While
tracing is off, nothing of OpenTelemetry's SDK is imported, and nobody does more than look whether it is on.
"""

from app.core.tracing.lifecycle import is_traced, open_tracing
from app.core.tracing.spans import Ended, attempt_span, current_traceparent, server_span
from app.core.tracing.sql import trace_engine

__all__ = [
    "Ended",
    "attempt_span",
    "current_traceparent",
    "is_traced",
    "open_tracing",
    "server_span",
    "trace_engine",
]
