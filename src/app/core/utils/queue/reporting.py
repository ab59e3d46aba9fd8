"""What a job says of itself while it runs."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, Final

import structlog
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import separate_reading
from app.core.utils.queue.serialization import dumps

LEAST_PAUSE: Final = 0.25  # seconds between two reports that are written; what comes between is kept for the next one
LONGEST_MESSAGE: Final = 200  # characters

# It waits for no lock: the connections of a worker have to be there for its leases.
_WRITE = text(
    "UPDATE job SET progress = CAST(:progress AS json) WHERE id = (SELECT id FROM job"
    " WHERE id = :id AND runs = :runs AND state = 'running' FOR UPDATE SKIP LOCKED)"
)

Session = Callable[[], AbstractAsyncContextManager[AsyncSession]]

log = structlog.stdlib.get_logger("slipway.worker")


async def progress(ctx: dict[Any, Any], done: float, total: float | None = None, message: str | None = None) -> None:
    """Tells whoever follows this job how far it is. Never fails, and costs nothing when called often.

    It can be read at once, whatever becomes of the job's transaction.

    Args:
        ctx: the job's.
        done, total: how much of how much, in whatever unit; `total` where it is known.
        message: a line for people.
    """
    reporter: Reporter | None = ctx.get("progress")
    if reporter is not None:  # Called without a worker, a function just does its work.
        await reporter.report(done, total, message)


class Reporter:
    """Writes the progress of one run of a job."""

    def __init__(self, job_id: str, runs: int, session: Session | None = None) -> None:
        """
        Args:
            job_id, runs: which run of which job.
            session: opens a session outside of the job's transaction, on a connection that no job can hold;
                by default, one of the usual pool.
        """
        self._session = session or separate_reading
        self._row = {"id": job_id, "runs": runs}
        self._unwritten: str | None = None
        self._written_at = 0.0  # on the monotonic clock

    async def report(self, done: float, total: float | None, message: str | None) -> None:
        """`progress`, for one run."""
        try:
            said = _line(message) if message is not None else None
            whole = float(total) if total is not None else None
            written = self._unwritten = dumps({"done": float(done), "total": whole, "message": said}).decode()
        except (TypeError, ValueError, OverflowError) as error:
            log.warning("progress cannot be told", why=repr(error))
            return
        if monotonic() - self._written_at < LEAST_PAUSE:
            return
        self._written_at = monotonic()
        try:
            async with self._session() as db:
                result = await (await db.connection()).execute(_WRITE, self._row | {"progress": written})
        except Exception as error:
            log.warning("progress not written", why=repr(error.__cause__ or error))
        else:
            if result.rowcount and self._unwritten is written:  # No other report was made meanwhile.
                self._unwritten = None

    @property
    def unwritten(self) -> str | None:
        """The last report, as JSON, if it was not written; the job's end does that."""
        return self._unwritten


def _line(message: object) -> str:
    """A message as JSON can hold it: half of a surrogate pair becomes a question mark."""
    return str(message)[:LONGEST_MESSAGE].encode(errors="replace").decode()
