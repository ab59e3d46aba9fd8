"""The worker of `bench.jobs`: the usual one, with a job that does nothing."""

import src  # noqa: F401  (makes `app` importable)

from app.core.utils import queue
from app.core.worker.options import job
from app.core.worker.settings import WorkerSettings as UsualSettings


async def nothing(ctx: dict[str, object]) -> None:
    """The least a job can do."""


class WorkerSettings:
    """The usual options."""

    functions = [job(nothing)]  # noqa: RUF012 -- the form users know
    redis_settings = UsualSettings.redis_settings
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    queue_name = UsualSettings.queue_name
    max_jobs = UsualSettings.max_jobs
    poll_delay = UsualSettings.poll_delay
    job_completion_wait = UsualSettings.job_completion_wait
