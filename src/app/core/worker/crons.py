"""Jobs by the clock. Each tick is a row whose id says which: however many workers there are, it is done once."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from typing import Final

from arq.cron import CronJob

from app.core.utils.queue.sending import JobIdTaken, enqueue_now

# For cron jobs with an id of their own: longer than workers' clocks differ, shorter than any tick.
ID_IS_TAKEN: Final = timedelta(seconds=30)


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
        """Enqueues what is due. A tick that nobody was there for is not made up for. Raises: DatabaseUnavailable."""
        now = datetime.now(self._timezone)
        for job in self._jobs:
            if job.next_run is None:
                if job.run_at_startup:
                    job.next_run = now
                else:
                    job.calculate_next(now)
            if job.next_run is not None and job.next_run <= now:
                with suppress(JobIdTaken):  # Another worker was faster.
                    await self._enqueue(job, job.next_run)
                job.calculate_next(now)

    async def _enqueue(self, job: CronJob, tick: datetime) -> None:
        if job.job_id:
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=job.job_id, _id_is_taken=ID_IS_TAKEN)
        elif job.unique:
            tick_id = f"{job.name}:{tick:%Y-%m-%dT%H:%M:%S.%f%z}"
            await enqueue_now(job.name, _queue_name=self._queue, _job_id=tick_id, _id_is_taken=timedelta(days=3650))
        else:
            await enqueue_now(job.name, _queue_name=self._queue)
