"""What becomes of jobs, in Prometheus' words. What waits is counted in the table, when somebody asks."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import text

from app.core.db.database import reading
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE

ENQUEUED: Final = Counter("slipway_jobs_enqueued", "Jobs written down by this process, committed or not.", ["function"])
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
RUNNING: Final = Gauge("slipway_worker_jobs_running", "Jobs that this worker runs now.")
RESENT: Final = Counter("slipway_jobs_resent", "Jobs that were sent again, since Redis/Valkey did not have them.")
LOST_WORKERS: Final = Counter("slipway_job_leases_expired", "Jobs taken from a worker that was not heard of any more.")

JOBS: Final = Gauge("slipway_jobs", "Jobs by state: queued (due), deferred, running, dead.", ["queue", "state"])
OLDEST: Final = Gauge("slipway_job_oldest_seconds", "For how long the oldest job of a queue has been due.", ["queue"])

_COUNT = text(
    "SELECT queue, count(*) FILTER (WHERE state = 'queued' AND run_after <= now()) AS queued,"
    " count(*) FILTER (WHERE state = 'queued' AND run_after > now()) AS deferred,"
    " count(*) FILTER (WHERE state = 'running') AS running, count(*) FILTER (WHERE state = 'dead') AS dead,"
    " coalesce(extract(epoch FROM now() - min(run_after) FILTER (WHERE state = 'queued')), 0) AS oldest"
    # Each of the three has a partial index.
    " FROM job WHERE state = 'queued' OR state = 'running' OR (state = 'dead' AND finished_at IS NOT NULL)"
    " GROUP BY queue"
)


async def count_jobs() -> None:
    """Brings the gauges of what waits, runs or is dead up to date: the same in every process. One statement."""
    async with reading() as db:
        rows = (await (await db.connection()).execute(_COUNT)).all()
    by_queue = dict.fromkeys((DEFAULT_QUEUE, LONG_QUEUE)) | {row.queue: row for row in rows}
    JOBS.clear()
    OLDEST.clear()
    for queue, row in by_queue.items():  # Of a usual queue in which there is nothing, that is said.
        for state in ("queued", "deferred", "running", "dead"):
            JOBS.labels(queue, state).set(getattr(row, state, 0))
        OLDEST.labels(queue).set(max(0.0, float(getattr(row, "oldest", 0))))
