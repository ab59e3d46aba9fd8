"""What stands above the list of jobs: how many there are, and how the last hour was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.plots import Plot, Series
from app.crud.crud_job_statistics import JobCounts, JobMinute, count_by_status, last_hour


@dataclass(frozen=True, slots=True)
class JobsNow:
    """All jobs in numbers."""

    counts: JobCounts
    plots: Sequence[Plot]

    @classmethod
    async def of(cls, db: AsyncSession) -> Self:
        """As it is now."""
        return cls(await count_by_status(db), plots_of(await last_hour(db)))


def plots_of(minutes: Sequence[JobMinute]) -> list[Plot]:
    """Throughput and latency of the last hour."""
    starts = [minute.start for minute in minutes]
    ended = [
        Series("succeeded", [minute.succeeded for minute in minutes], "green"),
        Series("dead", [minute.dead for minute in minutes], "red"),
        Series("cancelled", [minute.cancelled for minute in minutes], "gray"),
    ]
    took = [
        Series("waiting p50", [minute.waited.p50 if minute.waited else None for minute in minutes], "blue"),
        Series("waiting p95", [minute.waited.p95 if minute.waited else None for minute in minutes], "orange"),
        Series("running p50", [minute.ran.p50 if minute.ran else None for minute in minutes], "green"),
        Series("running p95", [minute.ran.p95 if minute.ran else None for minute in minutes], "purple"),
    ]
    return [Plot("Jobs ended", "per minute", ended, starts, stacked=True), Plot("Jobs took", "seconds", took, starts)]
