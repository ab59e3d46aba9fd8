"""The job queue: ARQ, with JSON instead of pickle, since what is read from Redis must never be run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name
from arq.jobs import DeserializationError, Deserializer, Job, JobResult, JobStatus
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.core.config import RedisQueueSettings
from app.core.exceptions.http_exceptions import ServiceUnavailable

CONNECT_TIMEOUT = 2.0  # seconds
ANSWER_TIMEOUT = 2.0  # seconds, for one answer, and for all that one request asks of the queue
OUTAGES = [RedisConnectionError, RedisTimeoutError, OSError]

# Set while an app with `RedisQueueSettings` runs: `await queue.pool.enqueue_job("name_of_function", argument)`.
pool: ArqRedis


class QueueUnavailable(ServiceUnavailable):
    text = "The job queue is not available. Try again shortly."


def dumps(value: dict[str, Any]) -> bytes:
    """JSON; an exception, which ARQ stores as the result of a failed job, becomes its text.

    Half of a surrogate pair, which could be stored but not answered with, becomes a question mark.

    Raises: TypeError for what JSON cannot hold.
    """
    return json.dumps(value, default=_exception_as_text, ensure_ascii=False).encode(errors="replace")


def loads(value: bytes) -> dict[str, Any]:
    """The reverse of `dumps`. Raises: ValueError for anything but JSON, pickles included."""
    loaded: dict[str, Any] = json.loads(value)
    return loaded


def _exception_as_text(value: object) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


class ArqJob(Job):
    """A handle to a job: `ArqJob(task_id, queue.pool)`."""

    def __init__(
        self,
        job_id: str,
        redis: Redis,
        _queue_name: str = default_queue_name,
        _deserializer: Deserializer | None = loads,
    ) -> None:
        super().__init__(job_id, redis, _queue_name, _deserializer)


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    """Gives up on a queue that is away, hangs or takes nothing (out of memory, read-only). Raises: QueueUnavailable.

    The client's own time limits do not do: it connects under a lock, where those who wait have none.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            yield
    except (TimeoutError, RedisError) as error:
        raise QueueUnavailable from error


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the queue knows it; `success` and `result` come with its end, `attempt` with its start."""

    id: str
    function: str
    status: str
    enqueued_at: datetime
    attempt: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    success: bool | None = None
    result: Any = None


async def find_job(job_id: str) -> JobInfo | None:
    """The job with this id, as long as it waits, runs or has its result kept."""
    job = ArqJob(job_id, pool)
    status = await job.status()  # First: a job that ends in between then has its result all the same.
    try:
        known = await job.info()
    except DeserializationError:
        return None
    if known is None or status is JobStatus.not_found:
        return None
    described = JobInfo(job_id, known.function, status.value, known.enqueue_time, known.job_try)
    if not isinstance(known, JobResult):
        return described
    return replace(
        described,
        status=JobStatus.complete.value,
        started_at=known.start_time,
        finished_at=known.finish_time,
        success=known.success,
        result=known.result,
    )


async def open_queue(settings: RedisQueueSettings) -> ArqRedis:
    """Sets `pool`. Connects only when first used, so that an API starts while Redis/Valkey is away."""
    global pool
    pool = ArqRedis(
        ConnectionPool.from_url(
            settings.redis_queue_url, socket_connect_timeout=CONNECT_TIMEOUT, socket_timeout=ANSWER_TIMEOUT
        ),
        job_serializer=dumps,
        job_deserializer=loads,
    )
    return pool


async def close_queue(opened: ArqRedis) -> None:
    """Closes every connection of the pool."""
    await opened.aclose(close_connection_pool=True)


def worker_redis_settings(settings: RedisQueueSettings) -> RedisSettings:
    """The same address in ARQ's words; the worker outlives a restart of Redis/Valkey by retrying for a minute."""
    address = parse_url(settings.redis_queue_url)
    return RedisSettings(
        host=address.get("host", "localhost"),
        port=address.get("port", 6379),
        unix_socket_path=address.get("path"),
        database=address.get("db", 0),
        username=address.get("username"),
        password=address.get("password"),
        ssl=settings.redis_queue_url.startswith("rediss:"),
        conn_timeout=int(CONNECT_TIMEOUT),
        conn_retries=60,
        retry_on_timeout=True,
        retry_on_error=list(OUTAGES),
        retry=Retry(ExponentialBackoff(cap=2, base=0.05), 40),
    )
