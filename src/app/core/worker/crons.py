"""Jobs by the clock. Each tick is a row whose id says which: however many workers there are, it is done once."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Final

from arq.cron import CronJob

from app.core.utils.queue.sending import JobIdTaken, enqueue_now

LONGEST_TAKEN: Final = timedelta(seconds=30)  # for which a cron job's own id stays taken: more than clocks differ
FOREVER: Final = timedelta(days=3650)
_NAME = re.compile(r"[!-~]{1,90}")


class Crons:
    """The cron jobs of one worker."""

    def __init__(self, jobs: Sequence[CronJob], queue: str, timezone: tzinfo | None) -> None:
        """
        Args:
            jobs: what to enqueue when.
            queue: where.
            timezone: whose clock is meant.
        """
        self._jobs = jobs
        self._queue = queue
        self._timezone = timezone

    async def round(self) -> None:
        """Enqueues what is due. A tick that nobody was there for is not made up for.

        Raises: what the first of those has failed with that could not be enqueued; they are tried again.
        """
        now = datetime.now(self._timezone)
        failures = [failure for job in self._jobs if (failure := await self._look_at(job, now)) is not None]
        if failures:
            raise failures[0]

    async def _look_at(self, job: CronJob, now: datetime) -> Exception | None:
        if job.next_run is None:
            if job.run_at_startup:
                job.next_run = now
            else:
                job.calculate_next(now)
        if job.next_run is None or job.next_run > now:
            return None
        tick = job.next_run
        try:
            job.calculate_next(tick)
            await self._enqueue(job, tick)
        except JobIdTaken:  # Another worker was faster.
            pass
        except Exception as failure:
            job.next_run = tick
            return failure
        job.calculate_next(now)
        return None

    async def _enqueue(self, job: CronJob, tick: datetime) -> None:
        """`job.next_run` is the tick after this one."""
        if job.job_id:
            until_next = job.next_run - tick if job.next_run is not None else LONGEST_TAKEN
            taken = min(LONGEST_TAKEN, until_next / 2)
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=job.job_id, _id_is_taken=taken)
        elif job.unique:
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=_id_of(job, tick), _id_is_taken=FOREVER)
        else:
            await enqueue_now(job.name, _queue_name=self._queue)


def _id_of(job: CronJob, tick: datetime) -> str:
    """The same wherever the worker stands, and whatever the function is called."""
    name = job.name if _NAME.fullmatch(job.name) else sha256(job.name.encode()).hexdigest()[:32]
    return f"{name}:{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}"
