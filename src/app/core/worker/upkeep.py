"""What every worker does beside its jobs, so that none is forgotten. A round costs one statement when all is well.

The drain sends what was committed and not sent. The reconciler sends again what Redis/Valkey has lost. Jobs of workers
that are not heard of any more are done again.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

import structlog
from arq.cron import CronJob
from arq.worker import Function
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import transaction
from app.core.utils.queue import JobState
from app.core.utils.queue.metrics import LOST_WORKERS, RESENT
from app.core.utils.queue.sending import send
from app.core.utils.queue.transport import Transport
from app.core.utils.queue.workers import living_workers
from app.core.utils.redis_link import LinkError
from app.core.worker.claims import Lost, Waiting, end, lost, put_back
from app.core.worker.opened import OwnSession
from app.core.worker.options import pause_before_retry

SENDER_SECONDS: Final = 2.0  # that whoever enqueued a job, and then its workers, have before the drain sends it
RECONCILE_SECONDS: Final = 15.0  # between two looks at what was sent and is gone
# That a worker waits for others, which know what it does not: a deployment is shorter.
NOBODY_KNOWS_SECONDS: Final = 600.0
UNKNOWN_SECONDS: Final = 24 * 3600.0  # after which a job whose function no worker has is a dead letter
MOST_AT_ONCE: Final = 500
PAGE: Final = 5000
ONE_RECONCILER: Final = 0x51197A9  # an advisory lock

_LOOK = text(
    "SELECT clock_timestamp() AS now,"
    " EXISTS (SELECT FROM job WHERE state = 'queued' AND sent_at IS NULL"
    " AND run_after <= clock_timestamp() - make_interval(secs => :grace)) AS any_unsent,"
    " EXISTS (SELECT FROM job WHERE state = 'running' AND lease_until < clock_timestamp()"
    " AND queue = :queue) AS any_lost"
)
_TAKE_UNSENT = text(
    "UPDATE job SET sent_at = clock_timestamp() WHERE id IN (SELECT id FROM job WHERE state = 'queued'"
    " AND sent_at IS NULL AND run_after <= clock_timestamp() - make_interval(secs => :grace)"
    " ORDER BY run_after LIMIT :most FOR UPDATE SKIP LOCKED) RETURNING id, queue, run_after"
)
_DUE = text(
    "SELECT id, run_after FROM job WHERE state = 'queued' AND queue = :queue AND (run_after, id) > (:after, :id)"
    " AND run_after <= clock_timestamp() ORDER BY run_after, id LIMIT :page"
)
_NOBODY_KNOWS = text(
    "UPDATE job SET state = 'dead', error = 'No worker knows its function.', finished_at = clock_timestamp()"
    " WHERE id = ANY(CAST(:ids AS text[])) AND state = 'queued'"
    " AND run_after < clock_timestamp() - make_interval(secs => :patience)"
)

log = structlog.stdlib.get_logger("slipway.worker")


class Upkeep:
    """The rounds of one worker."""

    def __init__(
        self,
        transport: Transport,
        session: OwnSession,
        queue: str,
        functions: dict[str, Function | CronJob],
        max_tries: int,
        unknown_seconds: float = UNKNOWN_SECONDS,
    ) -> None:
        """
        Args:
            transport: what carries ids to workers.
            session: opens a session of the worker's own.
            queue: the queue that this worker works on.
            functions: what it knows, by name.
            max_tries: of functions that do not say.
            unknown_seconds: how long a job whose function no worker has is due before it is a dead letter.
        """
        self.clock = timedelta()  # what to add to this machine's time to have the database's
        self._transport = transport
        self._queue = queue
        self._functions = functions
        self._max_tries = max_tries
        self._unknown_seconds = unknown_seconds
        self._session = session
        self._has_lost = True  # Redis/Valkey; at a start, who knows.
        self._unknown_since: dict[str, float] = {}  # by function, on the monotonic clock

    def now(self) -> datetime:
        """The database's time, as far as is known."""
        return datetime.now(UTC) + self.clock

    async def round(self) -> None:
        """Does whatever there is to do. Raises: DatabaseUnavailable, LinkError."""
        values = {"grace": SENDER_SECONDS, "queue": self._queue}
        async with self._session() as db:
            look = (await (await db.connection()).execute(_LOOK, values)).one()
        self.clock = look.now - datetime.now(UTC)
        if look.any_lost:
            await self._take_from_the_lost()
        if not self._transport.link.up:
            return
        was_usable = self._transport.usable
        if await self._transport.was_emptied() or not was_usable:
            self._has_lost = True
        if look.any_unsent:
            await self._drain()

    async def reconcile(self) -> None:
        """Sends again what Redis/Valkey has lost, when that can be or it is time to look. Raises: as `round`."""
        if not self._transport.usable:
            return
        if self._has_lost or await self._transport.is_ones_turn(self._queue, RECONCILE_SECONDS):
            self._has_lost = False
            try:
                await self._compare()
            except BaseException:
                self._has_lost = True
                raise

    async def refuse_unknown(self, jobs: Sequence[Waiting]) -> None:
        """Ends those of these jobs that have been due for too long, and whose function no living worker has.

        This worker has waited for another one by then, in case it was the first to start.
        """
        for job in jobs:
            self._unknown_since.setdefault(job.function, monotonic())
        since = monotonic() - NOBODY_KNOWS_SECONDS
        late = self.now() - timedelta(seconds=self._unknown_seconds)
        found = [job for job in jobs if self._unknown_since[job.function] <= since and job.run_after <= late]
        if not found:
            return
        try:
            workers = await living_workers(self._transport.link)
        except LinkError:
            return
        known = {name for worker in workers if worker.queue == self._queue for name in worker.functions}
        if ids := [job.id for job in found if job.function not in known]:
            async with self._session() as db:
                await (await db.connection()).execute(_NOBODY_KNOWS, {"ids": ids, "patience": self._unknown_seconds})

    def watch(self) -> None:
        """Hears from now on when Redis/Valkey comes back."""
        self._transport.link.on_change(self._on_change)

    def _on_change(self, up: bool) -> None:
        if up:
            self._has_lost = True  # Its last second, or all.

    async def _drain(self) -> None:
        """Notes first, and sends then: a row that is locked could not be claimed. What is lost in between is resent."""
        sent = MOST_AT_ONCE
        while sent == MOST_AT_ONCE:
            async with self._session() as db:
                values = {"grace": SENDER_SECONDS, "most": MOST_AT_ONCE}
                rows = (await (await db.connection()).execute(_TAKE_UNSENT, values)).all()
            for queue in {row.queue for row in rows}:
                await self._transport.send_all(queue, {row.id: row.run_after for row in rows if row.queue == queue})
            sent = len(rows)

    async def _compare(self) -> None:
        """Compares all that is due in this queue with what Redis/Valkey has. One worker at a time."""
        async with transaction() as db:
            connection = await db.connection()
            is_ours = text("SELECT pg_try_advisory_xact_lock(:lock, hashtext(:queue))")
            if not await connection.scalar(is_ours, {"lock": ONE_RECONCILER, "queue": self._queue}):
                return
            last = {"after": datetime(1970, 1, 1, tzinfo=UTC), "id": ""}
            while last:
                rows = (await connection.execute(_DUE, last | {"queue": self._queue, "page": PAGE})).all()
                missing = await self._transport.missing(self._queue, [row.id for row in rows])
                if missing:
                    await self._transport.send_all(
                        self._queue, {row.id: row.run_after for row in rows if row.id in missing}
                    )
                    RESENT.inc(len(missing))
                last = {"after": rows[-1].run_after, "id": rows[-1].id} if len(rows) == PAGE else {}

    async def _take_from_the_lost(self) -> None:
        async with transaction() as db:
            jobs = await lost(db, self._queue, list(self._functions), NOBODY_KNOWS_SECONDS, MOST_AT_ONCE)
            due = [(job, await self._again_or_dead(db, job)) for job in jobs]
        for job, moment in due:
            log.warning("worker lost", job_id=job.id, function=job.function, attempt=job.attempt, worker=job.worker)
            LOST_WORKERS.inc()
            if moment is not None:
                with suppress(LinkError):
                    await send(job.queue, job.id, moment)

    async def _again_or_dead(self, db: AsyncSession, job: Lost) -> datetime | None:
        error = f"Its worker was lost, in attempt {job.attempt}."
        function = self._functions.get(job.function)
        own = function.max_tries if function is not None else None
        if job.attempt >= (self._max_tries if own is None else own) and not job.cancel_requested:
            await end(db, job, JobState.DEAD, error, None)
            return None
        # The first time it was probably the worker; what kills a second one can wait.
        pause = 0.0 if job.attempt == 1 else pause_before_retry(function, job.attempt)
        return await put_back(db, job, pause, error)
