"""Where a worker's next jobs come from: Redis/Valkey says which, the table says whether."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final

import structlog

from app.core.db.engine import DatabaseUnavailable
from app.core.utils.queue.sending import send
from app.core.worker.claims import (
    Claimed,
    LeaseLost,
    Waiting,
    claim,
    claim_oldest,
    disown,
    put_back,
    still_waiting,
)
from app.core.worker.opened import Opened
from app.core.worker.upkeep import Upkeep

CLAIM_SECONDS: Final = 5.0  # that taking jobs, or putting one back, may take
LOCKED_PAUSE: Final = timedelta(milliseconds=200)  # until a job whose row somebody has locked is looked at again
UNKNOWN_PAUSE: Final = timedelta(seconds=5)  # until a job whose function is not known here is offered again

log = structlog.stdlib.get_logger("slipway.worker")


class Intake:
    """Takes jobs for one worker."""

    def __init__(self, opened: Opened, upkeep: Upkeep, queue: str, functions: Sequence[str], worker: str) -> None:
        """
        Args:
            opened: what the worker holds open.
            upkeep: what knows the database's time, and what becomes of jobs that nobody knows.
            queue: where the jobs come from.
            functions: what the worker can do.
            worker: its name.
        """
        self._transport = opened.transport
        self._session = opened.session
        self._upkeep = upkeep
        self._queue = queue
        self._functions = list(functions)
        self._worker = worker
        self._is_in_doubt = False
        self._told: set[str] = set()

    async def take(self, most: int, held: Collection[str], *, from_table: bool) -> list[Claimed]:
        """Claims jobs that are due, the longest due first.

        Args:
            most: how many there may be.
            held: the jobs that the worker has.
            from_table: whether to look into the table only, which is also done while Redis/Valkey is of no use. Slower
                than what carries ids, and good enough until that is back.

        Raises: DatabaseUnavailable, LinkError, TimeoutError. What was claimed is given up by the next call.
        """
        async with asyncio.timeout(CLAIM_SECONDS):
            await self.give_up_what_is_in_doubt(held)
            self._is_in_doubt = True
            if from_table or not self._transport.usable:
                async with self._session() as db:
                    jobs = await claim_oldest(db, self._queue, most, self._worker, self._functions)
            else:
                jobs = await self._claim_what_was_sent(most)
        self._is_in_doubt = False
        return jobs

    async def give_up_what_is_in_doubt(self, held: Collection[str]) -> None:
        """A claim that was not answered can be made all the same: its jobs are left to others, who find them."""
        if self._is_in_doubt:
            async with self._session() as db:
                await disown(db, self._worker, list(held))
            self._is_in_doubt = False

    async def put_back(self, job: Claimed) -> None:
        """Leaves a job that was not started to others. When that cannot be, its lease ends."""
        try:
            async with asyncio.timeout(CLAIM_SECONDS), self._session() as db:
                due = await put_back(db, job, 0, None, counts=False)
            if due is not None:
                await send(job.queue, job.id, due)
        except (DatabaseUnavailable, LeaseLost, TimeoutError) as error:
            log.warning("job not put back", job_id=job.id, why=repr(error))

    async def _claim_what_was_sent(self, most: int) -> list[Claimed]:
        taken = await self._transport.take(self._queue, self._upkeep.now(), most)
        ids = [job_id for job_id in taken if "\x00" not in job_id]
        if not ids:
            return []
        try:
            async with self._session() as db:
                jobs = await claim(db, ids, self._worker, self._functions)
        except (DatabaseUnavailable, asyncio.CancelledError):  # The latter is the time limit.
            await self._transport.send_all(self._queue, dict.fromkeys(ids, self._upkeep.now()))
            raise
        claimed = {job.id for job in jobs}
        if left := [job_id for job_id in ids if job_id not in claimed]:
            await self._put_aside(left)
        return jobs

    async def _put_aside(self, ids: Sequence[str]) -> None:
        """Of what was sent and could not be claimed, what waits all the same is sent again; the rest is forgotten."""
        async with self._session() as db:
            waiting = await still_waiting(db, ids)
        if not waiting:
            return
        now = self._upkeep.now()
        due = {job.id: max(job.run_after, now + self._pause_for(job)) for job in waiting}
        await self._transport.send_all(self._queue, due)
        if unknown := [job for job in waiting if job.function not in self._functions]:
            self._tell({job.function for job in unknown})
            await self._upkeep.refuse_unknown(unknown)

    def _pause_for(self, job: Waiting) -> timedelta:
        return LOCKED_PAUSE if job.function in self._functions else UNKNOWN_PAUSE

    def _tell(self, functions: set[str]) -> None:
        for function in functions - self._told:  # One line for each.
            log.warning("function not known here", function=function)
        self._told |= functions
