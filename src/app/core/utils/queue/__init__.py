"""The job queue: durable jobs, with ARQ's simple API (docs/jobs.md).

await queue.enqueue(db, function, argument)    # in a transaction: sent if and only if it is committed
await queue.pool.enqueue_job("name_of_function", argument)    # in the open transaction; at once where none is open
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from app.core.config import PostgresSettings, RedisQueueSettings
from app.core.utils.queue import sending
from app.core.utils.queue.arq_pool import ArqJob, JobPool, find, pool_to, worker_redis_settings
from app.core.utils.queue.feed import Feed
from app.core.utils.queue.functions import (
    JobFunctionLike,
    SameName,
    UnknownFunction,
    known_functions,
    stop_looking,
)
from app.core.utils.queue.lifecycle import replay, replay_all, request_cancel, run_now
from app.core.utils.queue.metrics import count_jobs
from app.core.utils.queue.reporting import progress
from app.core.utils.queue.sending import DRAWN_ID, Enqueued, IdempotencyKeyReused, JobIdTaken, enqueue, enqueue_now
from app.core.utils.queue.serialization import dumps, loads
from app.core.utils.queue.table import DEFAULT_QUEUE, LONG_QUEUE, LONGEST_NAME, Job, JobState, JobStatus
from app.core.utils.queue.transport import Transport
from app.core.utils.queue.workers import WorkerSeen, living_workers
from app.core.utils.redis_link import AnyLink, link_to

__all__ = [
    "DEFAULT_QUEUE",
    "DRAWN_ID",
    "LONGEST_NAME",
    "LONG_QUEUE",
    "ArqJob",
    "Enqueued",
    "Feed",
    "IdempotencyKeyReused",
    "Job",
    "JobFunctionLike",
    "JobIdTaken",
    "JobPool",
    "JobState",
    "JobStatus",
    "SameName",
    "UnknownFunction",
    "WorkerSeen",
    "count_jobs",
    "dumps",
    "enqueue",
    "enqueue_now",
    "find",
    "known_functions",
    "living_workers",
    "loads",
    "open_queue",
    "pool",
    "progress",
    "replay",
    "replay_all",
    "request_cancel",
    "run_now",
    "worker_redis_settings",
]

# Set while an app with `RedisQueueSettings` runs: `await queue.pool.enqueue_job("name_of_function", argument)`.
pool: JobPool


@asynccontextmanager
async def open_queue(
    settings: RedisQueueSettings, shared: AnyLink | None = None, workers: Iterable[type] = ()
) -> AsyncIterator[JobPool]:
    """The queue, while an app or a worker runs; sets `pool`. It opens, and takes jobs, while Redis/Valkey is away.

    Args:
        settings: where the server is, and whether there is a database.
        shared: an open link to the same server, to use instead of another one.
        workers: the worker settings of the application. A job for a function that none of them has is refused.

    Raises: SameName.
    """
    global pool
    pool = opened = pool_to(settings, durable=isinstance(settings, PostgresSettings))
    link = shared or link_to(settings.redis_queue_url, "queue")
    transport = Transport(link)
    try:
        if link is not shared:
            await link.open()
        sending.add(transport)
        with known_functions(workers):
            yield opened
    finally:
        await stop_looking()
        sending.remove(transport)
        if link is not shared:
            await link.close()
        await opened.aclose(close_connection_pool=True)
