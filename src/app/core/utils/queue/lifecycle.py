"""What others than its worker do to a job."""

from functools import partial
from typing import Final

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import after_commit
from app.core.utils.queue.sending import send

# One that runs is told, and its worker ends it.
_CANCEL: Final = text(
    "UPDATE job SET cancel_requested = true,"
    " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,"
    " finished_at = CASE state WHEN 'queued' THEN clock_timestamp() END"
    " WHERE id = :id AND state IN ('queued', 'running') RETURNING id"
)
_REPLAY: Final = text(
    "UPDATE job SET state = 'queued', attempt = 0, cancel_requested = false, run_after = clock_timestamp(),"
    " start_before = NULL, sent_at = NULL, started_at = NULL, finished_at = NULL, expires_at = NULL, worker = NULL,"
    " progress = NULL"
    " WHERE id = :id AND state IN ('dead', 'cancelled') RETURNING queue, run_after"
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
        after_commit(db, partial(send, row.queue, job_id, row.run_after))
    return row is not None
