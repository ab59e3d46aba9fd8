"""What others than its worker do to a job."""

from typing import Final

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils.queue.sending import send_after_commit

# One that runs is told, and its worker ends it.
_CANCEL: Final = text(
    "UPDATE job SET cancel_requested = true,"
    " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,"
    " finished_at = CASE state WHEN 'queued' THEN clock_timestamp() END"
    " WHERE id = :id AND state IN ('queued', 'running') RETURNING id"
)
_ANEW = (
    "state = 'queued', attempt = 0, cancel_requested = false, start_before = NULL, sent_at = NULL, started_at = NULL,"
    " finished_at = NULL, expires_at = NULL, worker = NULL, progress = NULL"
)
_REPLAY: Final = text(
    f"UPDATE job SET {_ANEW}, run_after = clock_timestamp()"  # noqa: S608 -- nothing of it comes from outside
    " WHERE id = :id AND state IN ('dead', 'cancelled') RETURNING queue, run_after"
)
# A millisecond apart, which is what Redis/Valkey tells them apart by: they begin in this order.
_REPLAY_ALL: Final = text(
    "WITH oldest AS (SELECT id, finished_at FROM job WHERE state = 'dead'"  # noqa: S608 -- the same
    " AND (expires_at IS NULL OR expires_at > clock_timestamp())"
    " AND (CAST(:function AS text) IS NULL OR function = CAST(:function AS text))"
    " ORDER BY finished_at, id LIMIT :most FOR UPDATE SKIP LOCKED),"
    " placed AS (SELECT id, row_number() OVER (ORDER BY finished_at, id) AS place FROM oldest)"
    f" UPDATE job SET {_ANEW}, run_after = statement_timestamp() + placed.place * interval '1 millisecond'"
    " FROM placed WHERE job.id = placed.id RETURNING job.id, job.queue, job.run_after"
)
_RUN_NOW: Final = text(
    "UPDATE job SET run_after = clock_timestamp(), sent_at = NULL"
    " WHERE id = :id AND state = 'queued' AND run_after > clock_timestamp() RETURNING queue, run_after"
)


async def request_cancel(db: AsyncSession, job_id: str) -> bool:
    """Cancels a job that waits; one that runs is cancelled by its worker within a second or two.

    Returns: whether it had not ended yet.
    """
    if "\x00" in job_id:
        return False
    return (await (await db.connection()).execute(_CANCEL, {"id": job_id})).one_or_none() is not None


async def replay(db: AsyncSession, job_id: str) -> bool:
    """Has a dead or cancelled job done after all, from its first attempt on. Returns: whether it was one."""
    if "\x00" in job_id:
        return False
    row = (await (await db.connection()).execute(_REPLAY, {"id": job_id})).one_or_none()
    if row is not None:
        send_after_commit(db, row.queue, job_id, row.run_after)
    return row is not None


async def replay_all(db: AsyncSession, *, function: str | None = None, most: int = 1000) -> list[str]:
    """Has dead jobs done after all, from their first attempts on, in the order in which they died.

    Args:
        function: only those of this one.
        most: how many at most, the oldest; a thousand begin within a second. Those that somebody else replays at this
            moment are left to them.

    Returns: their ids.
    """
    if function is not None and "\x00" in function:
        return []
    values = {"function": function, "most": most}
    rows = (await (await db.connection()).execute(_REPLAY_ALL, values)).all()
    for row in rows:
        send_after_commit(db, row.queue, row.id, row.run_after)
    return [row.id for row in rows]


async def run_now(db: AsyncSession, job_id: str) -> bool:
    """Has a job that waits for a later moment, deferred or between two attempts, start now. Its attempts stay counted.

    Returns: whether it was one.
    """
    if "\x00" in job_id:
        return False
    row = (await (await db.connection()).execute(_RUN_NOW, {"id": job_id})).one_or_none()
    if row is not None:
        send_after_commit(db, row.queue, job_id, row.run_after)
    return row is not None
