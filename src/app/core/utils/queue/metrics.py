"""What becomes of jobs, in Prometheus' words. What waits is counted in the table, when somebody asks."""

from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import text

from app.core.db.database import reading
from app.core.metrics.processes import add_counted_elsewhere
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE

ENQUEUED: Final = Counter("slipway_jobs_enqueued", "Jobs written down by this process, committed or not.", ["function"])
UNKNOWN: Final = Counter(
    "slipway_jobs_unknown_function", "Jobs enqueued for a function that no worker is known to have."
)
ATTEMPTS: Final = Counter(
    "slipway_job_attempts",
    "Attempts that this worker has ended, by what came of them: succeeded, retried, dead, cancelled, put_back when the "
    "worker was stopped, lost when another worker has the job by now.",
    ["function", "result"],
)
SECONDS: Final = Histogram(
    "slipway_job_seconds",
    "How long attempts took.",
    ["function"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
WAITED: Final = Histogram(
    "slipway_job_wait_seconds",
    "How long jobs were due before they started.",
    ["queue"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300, 1800),
)
RUNNING: Final = Gauge("slipway_worker_jobs_running", "Jobs that this worker runs now.", multiprocess_mode="livesum")
RESENT: Final = Counter("slipway_jobs_resent", "Jobs that were sent again, since Redis/Valkey did not have them.")
LOST_WORKERS: Final = Counter("slipway_job_leases_expired", "Jobs taken from a worker that was not heard of any more.")

_COUNT = text(
    "SELECT queue, count(*) FILTER (WHERE state = 'queued' AND run_after <= now()) AS queued,"
    " count(*) FILTER (WHERE state = 'queued' AND run_after > now()) AS deferred,"
    " count(*) FILTER (WHERE state = 'running') AS running, count(*) FILTER (WHERE state = 'dead') AS dead,"
    " coalesce(extract(epoch FROM now() - min(run_after) FILTER (WHERE state = 'queued')), 0) AS oldest"
    # Each of the three has a partial index.
    " FROM job WHERE state = 'queued' OR state = 'running' OR (state = 'dead' AND finished_at IS NOT NULL)"
    " GROUP BY queue"
)


STATES: Final = ("queued", "deferred", "running", "dead")


class _Counted(Collector):
    """The last count. Not gauges: a queue that has gone is to go from these too, whichever process has counted it."""

    def __init__(self) -> None:
        self.by_queue: dict[str, Any] = {}

    def describe(self) -> Iterable[Metric]:
        """What there will be."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """Of a usual queue in which there is nothing, that is said."""
        jobs, oldest = families = self._families()
        for queue, row in self.by_queue.items():
            for state in STATES:
                jobs.add_metric([queue, state], getattr(row, state, 0))
            oldest.add_metric([queue], max(0.0, float(getattr(row, "oldest", 0))))
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "slipway_jobs", "Jobs by state: queued (due), deferred, running, dead.", labels=["queue", "state"]
            ),
            GaugeMetricFamily(
                "slipway_job_oldest_seconds", "For how long the oldest job of a queue has been due.", labels=["queue"]
            ),
        )


_counted = _Counted()
add_counted_elsewhere(_counted)


async def count_jobs() -> None:
    """Brings the metrics of what waits, runs or is dead up to date: the same in every process. One statement."""
    async with reading() as db:
        rows = (await (await db.connection()).execute(_COUNT)).all()
    _counted.by_queue = dict.fromkeys((DEFAULT_QUEUE, LONG_QUEUE)) | {row.queue: row for row in rows}
