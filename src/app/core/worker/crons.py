"""Jobs by the clock. Each tick is a row whose id says which: however many workers there are, it is done once."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Final

from arq.cron import CronJob

from app.core.utils.queue.sending import JobIdTaken, enqueue_now
from app.core.worker.schedule import Schedule

LONGEST_TAKEN: Final = timedelta(seconds=30)  # for which a cron job's own id stays taken: more than clocks differ
RESTART: Final = timedelta(minutes=1)  # that a restart of the only worker may take without a tick being lost
FOREVER: Final = timedelta(days=3650)
_NAME = re.compile(r"[!-~]{1,90}")


class Crons:
    """The cron jobs of one worker."""

    def __init__(self, jobs: Sequence[CronJob], queue: str, timezone: tzinfo | None) -> None:
        """
        Args:
            jobs: what to enqueue when.
            queue: where.
            timezone: whose wall clock is meant; None for that of the system.

        Raises: ValueError for a job that is never due.
        """
        self._jobs = [(job, Schedule(job, timezone)) for job in jobs]
        self._queue = queue

    async def round(self) -> None:
        """Enqueues what is due.

        A worker that starts makes up for the last tick of the last minute, which can have been lost in a restart.
        Earlier ones are not made up for.

        Raises: what the first of those has failed with that could not be enqueued; they are tried again.
        """
        now = datetime.now(UTC)
        failures = [
            failure for job, schedule in self._jobs if (failure := await self._look_at(job, schedule, now)) is not None
        ]
        if failures:
            raise failures[0]

    async def _look_at(self, job: CronJob, schedule: Schedule, now: datetime) -> Exception | None:
        if job.next_run is None:
            job.next_run = now if job.run_at_startup else _first_of(job, schedule, now)
        if job.next_run > now:
            return None
        tick = job.next_run
        try:
            await self._enqueue(job, tick, until_next=schedule.next_after(tick) - tick)
        except JobIdTaken:  # Another worker was faster.
            pass
        except Exception as failure:
            return failure
        job.next_run = schedule.next_after(now)
        return None

    async def _enqueue(self, job: CronJob, tick: datetime, until_next: timedelta) -> None:
        if job.job_id:
            taken = min(LONGEST_TAKEN, until_next / 2)
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=job.job_id, _id_is_taken=taken)
        elif job.unique:
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=_id_of(job, tick), _id_is_taken=FOREVER)
        else:
            await enqueue_now(job.name, _queue_name=self._queue)


def _first_of(job: CronJob, schedule: Schedule, now: datetime) -> datetime:
    """The tick to propose first. Only the row of a unique tick tells whether another worker has proposed it."""
    missed = schedule.last_within(RESTART, now) if job.unique and not job.job_id else None
    return missed or schedule.next_after(now)


def _id_of(job: CronJob, tick: datetime) -> str:
    """The same wherever the worker stands, and whatever the function is called."""
    name = job.name if _NAME.fullmatch(job.name) else sha256(job.name.encode()).hexdigest()[:32]
    return f"{name}:{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}"
