"""Where spans go while an app or a worker runs."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from opentelemetry.trace import Tracer

from app.core.config import SettingsGroup, TracingSettings

FLUSH_SECONDS: Final = 3.0  # that an end waits for what is not exported yet

log = structlog.stdlib.get_logger("slipway.tracing")

_tracers: list[Tracer] = []  # more than one where several apps run in a process, as in tests


def is_traced(settings: SettingsGroup) -> bool:
    """Whether an exporter is configured."""
    return isinstance(settings, TracingSettings) and settings.OTEL_EXPORTER_OTLP_ENDPOINT is not None


def tracer() -> Tracer | None:
    """What makes spans; None while tracing is off."""
    return _tracers[-1] if _tracers else None


@asynccontextmanager
async def open_tracing(settings: SettingsGroup) -> AsyncIterator[None]:
    """Spans are made meanwhile, and exported by a thread, in batches. At the end it has `FLUSH_SECONDS` for the rest.

    To be opened in the process that is to be traced: the thread does not survive a fork.
    """
    if not isinstance(settings, TracingSettings) or settings.OTEL_EXPORTER_OTLP_ENDPOINT is None:
        yield
        return
    from app.core.tracing.export import provider_for  # The SDK need not be installed.

    provider = provider_for(settings)
    ours = provider.get_tracer("slipway")
    _tracers.append(ours)
    try:
        yield
    finally:
        _tracers.remove(ours)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        # A daemon: one that is not done in time is not waited for by the end of the process either.
        threading.Thread(target=end, name="spans flushed", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), FLUSH_SECONDS)
        except TimeoutError:
            log.warning("the last spans are not exported")
