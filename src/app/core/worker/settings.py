"""The worker: `arq src.app.core.worker.settings.WorkerSettings`."""

from arq import cron, func

from app.core.config import get_settings
from app.core.utils import queue
from app.core.worker.account_mail import send_email_verification, send_password_reset
from app.core.worker.functions import sample_background_task, shutdown, startup
from app.core.worker.housekeeping import purge_expired


class WorkerSettings:
    """ARQ reads the attributes of this very class, inherited ones are ignored."""

    functions = [  # noqa: RUF012 -- the form users know
        sample_background_task,
        func(
            send_password_reset, keep_result=0
        ),  # ARQ keeps a job's arguments, here an address, as long as its result.
        send_email_verification,
    ]
    cron_jobs = [cron(purge_expired, minute=17)]  # noqa: RUF012
    on_startup = startup
    on_shutdown = shutdown
    redis_settings = queue.worker_redis_settings(get_settings())
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    max_jobs = 50
    poll_delay = 0.05  # seconds; ARQ's 0.5 would be most of a short job's latency
    queue_read_limit = 500
    job_completion_wait = 10  # seconds a job has to finish after SIGTERM, before it is put back
    health_check_interval = 30  # seconds; ARQ's default leaves a dead worker unnoticed for an hour
