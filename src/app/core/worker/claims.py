"""What a worker writes about the jobs it has. Every statement but the first asks whether it still has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import RowMapping, text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils.queue import JobState

LEASE: Final = 30.0  # seconds after which the jobs of a worker that is not heard of are another's


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this worker has, in one of its runs."""

    id: str
    queue: str
    function: str
    args: list[Any]
    keywords: dict[str, Any]
    attempt: int
    runs: int
    created_at: datetime
    run_after: datetime
    started_at: datetime
    start_before: datetime | None
    traceparent: str | None

    @property
    def is_too_late(self) -> bool:
        """Whether it was not to be started any more."""
        return self.start_before is not None and self.started_at > self.start_before


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that was sent and not claimed, since it is not due, or locked, or its function is not known here."""

    id: str
    function: str
    run_after: datetime


@dataclass(frozen=True, slots=True)
class Lost:
    """A job whose worker was not heard of for a lease."""

    id: str
    queue: str
    function: str
    attempt: int
    runs: int
    worker: str
    cancel_requested: bool


_CLAIM = (
    "UPDATE job SET state = 'running', attempt = attempt + 1, runs = runs + 1, started_at = clock_timestamp(),"
    " lease_until = clock_timestamp() + make_interval(secs => :lease), worker = :worker, sent_at = NULL"
    " FROM (SELECT id FROM job WHERE {which} AND state = 'queued' AND run_after <= clock_timestamp()"
    " AND function = ANY(CAST(:functions AS text[])) {order} FOR UPDATE SKIP LOCKED) AS due WHERE job.id = due.id"
    " RETURNING job.id, job.queue, job.function, job.args, job.keywords, job.attempt, job.runs, job.created_at,"
    " job.run_after, job.started_at, job.start_before, job.traceparent"
)
_CLAIM_THESE = text(_CLAIM.format(which="id = ANY(CAST(:ids AS text[]))", order=""))
_CLAIM_OLDEST = text(_CLAIM.format(which="queue = :queue", order="ORDER BY run_after, id LIMIT :most"))
_WAITING = text("SELECT id, function, run_after FROM job WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued'")
# What somebody has locked is not waited for, or all would be lost with it: nobody else can take it meanwhile.
_RENEW = text(
    "WITH held AS (SELECT id, runs FROM unnest(CAST(:ids AS text[]), CAST(:runs AS integer[])) AS given (id, runs)),"
    " free AS (SELECT job.id FROM job JOIN held ON job.id = held.id AND job.runs = held.runs"
    " WHERE job.state = 'running' FOR UPDATE OF job SKIP LOCKED),"
    " renewed AS (UPDATE job SET lease_until = clock_timestamp() + make_interval(secs => :lease)"
    " FROM free WHERE job.id = free.id)"
    " SELECT job.id FROM job JOIN held ON job.id = held.id AND job.runs = held.runs WHERE job.state = 'running'"
)
_DISOWN = text(
    "UPDATE job SET state = 'queued', attempt = attempt - 1, lease_until = NULL"
    " WHERE worker = :worker AND state = 'running' AND id <> ALL(CAST(:ids AS text[]))"
)
_STILL_RUNS = text("SELECT EXISTS (SELECT FROM job WHERE id = :id AND runs = :runs AND state = 'running')")
_CANCELLED = text("SELECT id FROM job WHERE id = ANY(CAST(:ids AS text[])) AND cancel_requested")
_EXPIRED = text(
    "SELECT id, queue, function, attempt, runs, worker, cancel_requested FROM job"
    " WHERE state = 'running' AND lease_until < clock_timestamp() AND queue = :queue AND (function ="
    " ANY(CAST(:functions AS text[])) OR lease_until < clock_timestamp() - make_interval(secs => :patience))"
    " ORDER BY lease_until LIMIT :most FOR UPDATE SKIP LOCKED"
)
_SUCCEED = text(
    "UPDATE job SET state = 'succeeded', result = CAST(:result AS json), error = NULL, lease_until = NULL,"
    " progress = coalesce(CAST(:progress AS json), progress), finished_at = clock_timestamp(), expires_at ="
    " CASE WHEN :forever THEN 'infinity' ELSE clock_timestamp() + CAST(:keep AS interval) END"
    " WHERE id = :id AND runs = :runs AND state = 'running'"
)
_REMOVE = text("DELETE FROM job WHERE id = :id AND runs = :runs AND state = 'running'")
_END = text(
    "UPDATE job SET state = :state, error = :error, lease_until = NULL,"
    " progress = coalesce(CAST(:progress AS json), progress), finished_at = clock_timestamp()"
    " WHERE id = :id AND runs = :runs AND state = 'running'"
)
_PUT_BACK = text(
    "UPDATE job SET state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,"
    " finished_at = CASE WHEN cancel_requested THEN clock_timestamp() END, error = coalesce(:error, error),"
    " attempt = attempt - :given_back, lease_until = NULL,"
    " run_after = clock_timestamp() + make_interval(secs => :pause)"
    " WHERE id = :id AND runs = :runs AND state = 'running' RETURNING run_after, state"
)


class LeaseLost(Exception):  # noqa: N818 -- a state
    """Another worker has this job by now, or it was removed: what this one did must not be committed."""


async def claim(db: AsyncSession, ids: Sequence[str], worker: str, functions: Sequence[str]) -> list[Claimed]:
    """Claims those of these jobs that are due, of these functions, and nobody else's. One attempt more for each."""
    values = {"ids": list(ids), "lease": LEASE, "worker": worker, "functions": list(functions)}
    return _claimed((await (await db.connection()).execute(_CLAIM_THESE, values)).mappings().all())


async def claim_oldest(db: AsyncSession, queue: str, most: int, worker: str, functions: Sequence[str]) -> list[Claimed]:
    """The same for the jobs of a queue that have been due for longest, sent or not."""
    values = {"queue": queue, "most": most, "lease": LEASE, "worker": worker, "functions": list(functions)}
    return _claimed((await (await db.connection()).execute(_CLAIM_OLDEST, values)).mappings().all())


async def still_waiting(db: AsyncSession, ids: Sequence[str]) -> list[Waiting]:
    """Those of these jobs that wait all the same."""
    rows = (await (await db.connection()).execute(_WAITING, {"ids": list(ids)})).all()
    return [Waiting(*row) for row in rows]


async def renew(db: AsyncSession, runs_by_id: Mapping[str, int]) -> set[str]:
    """Keeps these jobs for another lease, but for those that are locked. Returns all that are still ours."""
    values = {"ids": list(runs_by_id), "runs": list(runs_by_id.values()), "lease": LEASE}
    return set((await (await db.connection()).execute(_RENEW, values)).scalars())


async def to_cancel(db: AsyncSession, ids: Sequence[str]) -> set[str]:
    """Those of these jobs that somebody wants cancelled."""
    return set((await (await db.connection()).execute(_CANCELLED, {"ids": list(ids)})).scalars())


async def lost(db: AsyncSession, queue: str, functions: Sequence[str], patience: float, most: int) -> list[Lost]:
    """Jobs of a queue whose worker was not heard of for a lease; this transaction has them until its end.

    Those of other functions than these, whose rules are not known here, only after so many seconds of `patience`.
    """
    values = {"queue": queue, "functions": list(functions), "patience": patience, "most": most}
    rows = (await (await db.connection()).execute(_EXPIRED, values)).all()
    return [Lost(*row) for row in rows]


async def disown(db: AsyncSession, worker: str, ids: Sequence[str]) -> None:
    """Has others take what this worker has claimed and does not know of, since the answer was lost."""
    await (await db.connection()).execute(_DISOWN, {"worker": worker, "ids": list(ids)})


async def still_runs(db: AsyncSession, job: Claimed) -> bool:
    """Whether this run of a job is the one that counts."""
    return bool(await (await db.connection()).scalar(_STILL_RUNS, {"id": job.id, "runs": job.runs}))


async def succeed(
    db: AsyncSession, job: Claimed, result: str, progress: str | None, keep: timedelta | None, *, forever: bool
) -> None:
    """Ends a job, in the transaction of what it did. Raises: LeaseLost.

    Args:
        result, progress: JSON.
        keep: for how long its row is kept; nothing removes it at once, None leaves it to housekeeping.
        forever: whether housekeeping leaves it.
    """
    if keep is not None and not keep and not forever:
        await _ours(db, _REMOVE, job)
    else:
        await _ours(db, _SUCCEED, job, result=result, progress=progress, keep=keep, forever=forever)


async def end(
    db: AsyncSession, job: "Claimed | Lost", state: JobState, error: str | None, progress: str | None
) -> None:
    """Ends a job as dead or cancelled. Raises: LeaseLost."""
    await _ours(db, _END, job, state=state, error=error, progress=progress)


async def put_back(
    db: AsyncSession, job: "Claimed | Lost", pause: float, error: str | None, *, counts: bool = True
) -> datetime | None:
    """Has a job done again after so many seconds, unless it is to be cancelled.

    Args:
        pause: seconds.
        error: why.
        counts: whether this was one of its attempts.

    Returns: when it is due; None when it was cancelled.

    Raises: LeaseLost.
    """
    result = await _ours(db, _PUT_BACK, job, pause=pause, error=error, given_back=0 if counts else 1)
    row = result.one()
    return None if row.state == JobState.CANCELLED else row.run_after


async def _ours(db: AsyncSession, statement: Any, job: "Claimed | Lost", **values: Any) -> Any:
    result = await (await db.connection()).execute(statement, {"id": job.id, "runs": job.runs} | values)
    if result.rowcount == 0:
        raise LeaseLost(job.id)
    return result


def _claimed(rows: Sequence[RowMapping]) -> list[Claimed]:
    return sorted((Claimed(**row) for row in rows), key=lambda job: (job.run_after, job.id))
