"""The last hour of all processes and servers, minute by minute, in Redis/Valkey: for the console, without Prometheus.

It costs requests nothing that is not counted anyway: each process looks every two seconds at what it has counted for
Prometheus, and adds to the minute what is new.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.core.metrics.recent.clock import MinuteClock
from app.core.metrics.recent.hour import CacheCounts, Hour, LimitCounts, Minute, Totals
from app.core.metrics.recent.reading import Recent, Route
from app.core.metrics.recent.recorder import Recorder
from app.core.utils.rate_limit.metrics import Subject, Subjects
from app.core.utils.redis_link import AnyLink

__all__ = ["CacheCounts", "Hour", "LimitCounts", "Minute", "Recent", "Route", "Subject", "Totals", "open_recent"]


@asynccontextmanager
async def open_recent(link: AnyLink, subjects: Subjects | None) -> AsyncIterator[Recent]:
    """The last hour, to read from; what this process counts is added to it meanwhile.

    Args:
        link: to where it is kept; open, and longer so than this.
        subjects: where the limiter notes who asks, if there is one.
    """
    clock = MinuteClock()
    recorder = Recorder(link, clock, subjects)
    await recorder.open()
    try:
        yield Recent(link, clock)
    finally:
        await recorder.close()
