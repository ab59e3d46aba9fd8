"""Jobs in numbers, for the operator's console: read from indexes, in a statement or two each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils.queue import DEFAULT_QUEUE, LONG_QUEUE, JobStatus

MINUTES: Final = 60
FEW: Final = 20_000  # jobs of an hour; of more than these, one in eight is looked at for the percentiles
PART: Final = 8
MOST_NAMES: Final = 200  # functions, or queues
MOST_RUNNING: Final = 5_000  # jobs that run, of all workers

# What has expired, and waits for housekeeping to remove it, is in no list and not counted. Only what succeeded expires.
# Each part can be read from an index alone.
_COUNTS: Final = text(
    "SELECT CASE WHEN run_after <= now() THEN 'queued' ELSE 'deferred' END AS status, count(*) AS number"
    " FROM job WHERE state = 'queued' GROUP BY 1"
    " UNION ALL SELECT 'in_progress', count(*) FROM job WHERE state = 'running'"
    " UNION ALL SELECT CASE state WHEN 'succeeded' THEN 'complete' ELSE state END, count(*)"
    " FROM job WHERE finished_at IS NOT NULL AND state IN ('succeeded', 'dead', 'cancelled') GROUP BY state"
    " UNION ALL SELECT 'complete', -count(*) FROM job WHERE expires_at <= now()"
)
# A loose index scan: from the first job of one queue to that of the next.
_OLDEST: Final = text(
    "WITH RECURSIVE first AS ("
    "(SELECT queue, run_after FROM job WHERE state = 'queued' ORDER BY queue, run_after LIMIT 1) UNION ALL"
    " SELECT next.queue, next.run_after FROM first, LATERAL (SELECT queue, run_after FROM job"
    " WHERE state = 'queued' AND queue > first.queue ORDER BY queue, run_after LIMIT 1) AS next)"
    " SELECT queue, CAST(extract(epoch FROM now() - run_after) AS float) AS seconds FROM first LIMIT :most"
)
_FUNCTIONS: Final = text(
    "WITH RECURSIVE named AS ((SELECT function FROM job ORDER BY function LIMIT 1) UNION ALL"
    " SELECT (SELECT function FROM job WHERE function > named.function ORDER BY function LIMIT 1)"
    " FROM named WHERE named.function IS NOT NULL)"
    " SELECT function FROM named WHERE function IS NOT NULL LIMIT :most"
)
_RUNNING: Final = text(
    "SELECT worker, id FROM job WHERE state = 'running' AND worker IS NOT NULL ORDER BY worker, started_at LIMIT :most"
)
# One pass over an index; `now()` tells the planner how much that is. Of many, the percentiles are those of some.
_MINUTES: Final = text(
    "WITH ended AS NOT MATERIALIZED (SELECT state, run_after, started_at, finished_at FROM job"
    " WHERE state IN ('succeeded', 'dead', 'cancelled')"
    " AND finished_at >= date_bin('1 minute', now(), 'epoch') - make_interval(mins => :minutes - 1)),"
    " few AS MATERIALIZED (SELECT count(*) <= :few AS are_so FROM (SELECT FROM ended LIMIT :few + 1) AS some_jobs),"
    " spans AS (SELECT date_bin('1 minute', finished_at, 'epoch') AS minute, state,"
    " started_at - run_after AS waited, finished_at - started_at AS ran,"
    # What was cancelled, or given up, while it waited for another attempt has the start of the one before.
    " started_at >= run_after AND ((SELECT are_so FROM few)"
    " OR CAST(date_part('microseconds', finished_at) AS integer) % :part = 0) AS is_in_sample FROM ended),"
    " minutes AS (SELECT minute, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,"
    " count(*) FILTER (WHERE state = 'dead') AS dead, count(*) FILTER (WHERE state = 'cancelled') AS cancelled,"
    " percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY waited) FILTER (WHERE is_in_sample) AS waited,"
    " percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ran) FILTER (WHERE is_in_sample) AS ran"
    " FROM spans GROUP BY minute)"
    " SELECT newest, minute, succeeded, dead, cancelled, waited, ran"
    " FROM (SELECT date_bin('1 minute', now(), 'epoch') AS newest) AS hour LEFT JOIN minutes ON true"
)


@dataclass(frozen=True, slots=True)
class Spread:
    """How long jobs took, in seconds: half of them, and all but a twentieth, no longer than this."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class JobMinute:
    """The jobs that have ended in one minute.

    Attributes:
        start: of the minute; the newest is not over.
        waited: from when the last attempt was due to its start. None: no job that has ended then was started.
        ran: from that start to the end.
    """

    start: datetime
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    waited: Spread | None = None
    ran: Spread | None = None

    @property
    def ended(self) -> int:
        """All of them."""
        return self.succeeded + self.dead + self.cancelled


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs there are.

    Attributes:
        by_status: has every status.
        oldest_due: by queue, for how many seconds its oldest job has been due; 0 when none is. The usual two queues
            are always there, others while a job waits in them.
    """

    by_status: Mapping[JobStatus, int]
    oldest_due: Mapping[str, float] = field(default_factory=dict)


async def count_by_status(db: AsyncSession) -> JobCounts:
    """How many jobs are in each status, and how old the queues are. Two statements, on indexes."""
    connection = await db.connection()
    counts = dict.fromkeys(JobStatus, 0)
    for status, number in await connection.execute(_COUNTS):
        counts[JobStatus(status)] += number
    oldest = dict.fromkeys((DEFAULT_QUEUE, LONG_QUEUE), 0.0)
    for queue, seconds in await connection.execute(_OLDEST, {"most": MOST_NAMES}):
        oldest[queue] = max(0.0, seconds)
    return JobCounts(counts, oldest)


async def last_hour(db: AsyncSession) -> list[JobMinute]:
    """What has ended in each of the last 60 minutes, the oldest first. One statement.

    Counts are exact, for what is still in the table: a job with `keep_result=0` is not. Percentiles are, too, unless
    more than `FEW` have ended: then they are those of one job in `PART`, by the last digits of the time of its end.
    """
    values = {"minutes": MINUTES, "few": FEW, "part": PART}
    rows = (await (await db.connection()).execute(_MINUTES, values)).all()
    newest: datetime = rows[0].newest
    found = {
        row.minute: JobMinute(row.minute, row.succeeded, row.dead, row.cancelled, _spread(row.waited), _spread(row.ran))
        for row in rows
        if row.minute is not None
    }
    minutes = (newest - timedelta(minutes=ago) for ago in range(MINUTES - 1, -1, -1))
    return [found.get(minute, JobMinute(minute)) for minute in minutes]


async def functions_present(db: AsyncSession) -> list[str]:
    """The names of the functions of all jobs that are kept, sorted; of more than `MOST_NAMES` the first. One statement.

    A loose index scan: one look at the index for each name, however many jobs there are.
    """
    return list((await (await db.connection()).execute(_FUNCTIONS, {"most": MOST_NAMES})).scalars())


async def running_by_worker(db: AsyncSession) -> dict[str, list[str]]:
    """The ids of the jobs that run, by the name of the worker that has them, the longest running first. One statement.

    Of more than `MOST_RUNNING` some are left out.
    """
    found: dict[str, list[str]] = {}
    for worker, job_id in await (await db.connection()).execute(_RUNNING, {"most": MOST_RUNNING}):
        found.setdefault(worker, []).append(job_id)
    return found


def _spread(values: list[Any] | None) -> Spread | None:
    return None if values is None else Spread(*(value.total_seconds() for value in values))
