"""The workers: `arq src.app.core.worker.settings.WorkerSettings`, and `...LongWorkerSettings` for what takes long."""

from arq import cron

from app.core.config import get_settings
from app.core.utils import queue
from app.core.worker.account_mail import send_email_verification, send_password_reset
from app.core.worker.functions import sample_background_task, shutdown, startup
from app.core.worker.housekeeping import purge_expired, purge_jobs
from app.core.worker.options import job
from app.subscriptions import SUBSCRIPTIONS


class WorkerSettings:
    """Short jobs. ARQ reads the attributes of this very class, inherited ones are ignored."""

    functions = [  # noqa: RUF012 -- the form users know
        sample_background_task,
        # Its argument is an address: it goes with the job.
        job(send_password_reset, keep_result=0, max_tries=7, first_retry=10, longest_retry=300),
        job(send_email_verification, max_tries=7, first_retry=10, longest_retry=300),
    ]
    cron_jobs = [  # noqa: RUF012
        cron(purge_expired, minute=17, max_tries=3),
        cron(purge_jobs, minute=47, max_tries=3),
    ]
    subscriptions = SUBSCRIPTIONS  # what is called when a job changes something
    on_startup = startup
    on_shutdown = shutdown
    redis_settings = queue.worker_redis_settings(get_settings())
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    queue_name = queue.DEFAULT_QUEUE
    max_jobs = 20  # at once, each with a database connection when it asks for one
    max_tries = 5
    job_timeout = 300  # seconds
    poll_delay = 0.02  # seconds; ARQ's 0.5 would be most of a short job's latency
    job_completion_wait = 10  # seconds a job has to finish after SIGTERM, before it is put back
    health_check_interval = 30  # seconds


class LongWorkerSettings:
    """Jobs that take minutes, in a queue and processes of their own: short ones do not wait behind them.

    Enqueue them with `_queue_name=queue.LONG_QUEUE`.
    """

    functions = WorkerSettings.functions
    subscriptions = SUBSCRIPTIONS  # what is called when a job changes something
    on_startup = startup
    on_shutdown = shutdown
    redis_settings = WorkerSettings.redis_settings
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    queue_name = queue.LONG_QUEUE
    max_jobs = 5
    max_tries = 5
    job_timeout = 6 * 3600  # seconds
    poll_delay = 0.1
    job_completion_wait = 10
    health_check_interval = 30
