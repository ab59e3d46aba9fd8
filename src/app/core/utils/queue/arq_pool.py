"""ARQ's own ways, with the table behind them: `queue.pool.enqueue_job(...)` and `ArqJob(task_id, queue.pool)`."""

import asyncio
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Deserializer, JobDef, JobResult, JobStatus, ResultNotFound
from arq.jobs import Job as ArqOwnJob
from arq.worker import JobExecutionFailed
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlmodel import col, select

from app.core.config import PostgresSettings, RedisQueueSettings
from app.core.db.database import reading
from app.core.utils.queue.lifecycle import request_cancel
from app.core.utils.queue.sending import JobIdTaken, enqueue_now
from app.core.utils.queue.serialization import dumps, loads
from app.core.utils.queue.table import DEFAULT_QUEUE, Job, JobState

CONNECT_TIMEOUT = 2.0  # seconds
ANSWER_TIMEOUT = 2.0  # seconds, for one answer
OUTAGES = [RedisConnectionError, RedisTimeoutError, OSError]


class ArqJob(ArqOwnJob):
    """A handle to a job: `ArqJob(task_id, queue.pool)`. What it tells comes from the table, if there is one."""

    def __init__(
        self,
        job_id: str,
        redis: Redis,
        _queue_name: str = DEFAULT_QUEUE,
        _deserializer: Deserializer | None = loads,
    ) -> None:
        super().__init__(job_id, redis, _queue_name, _deserializer)

    @property
    def _durable(self) -> bool:
        return isinstance(self._redis, JobPool) and self._redis.durable

    async def info(self) -> JobDef | None:
        """What is known of the job, its result included once it has ended. None: there is no such job."""
        return _described(await find(self.job_id)) if self._durable else await super().info()

    async def result_info(self) -> JobResult | None:
        """The same, for a job that has ended; None for others."""
        if not self._durable:
            return await super().result_info()
        described = _described(await find(self.job_id))
        return described if isinstance(described, JobResult) else None

    async def status(self) -> JobStatus:
        """Where it is."""
        if not self._durable:
            return await super().status()
        job = await find(self.job_id)
        if job is None:
            return JobStatus.not_found
        return JobStatus.complete if job.has_ended else JobStatus(job.status)

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- ARQ's signature
        *,
        poll_delay: float = 0.5,
        pole_delay: float | None = None,
    ) -> Any:
        """Waits for the end of the job.

        Args:
            timeout: seconds after which TimeoutError is raised; None waits for as long as it takes.
            poll_delay: seconds between two looks.

        Raises: ResultNotFound, JobExecutionFailed with the job's error, CancelledError, TimeoutError.
        """
        if not self._durable:
            return await super().result(timeout, poll_delay=poll_delay, pole_delay=pole_delay)
        async with asyncio.timeout(timeout):
            while (job := await find(self.job_id)) is not None and not job.has_ended:  # noqa: ASYNC110 -- as ARQ does
                await asyncio.sleep(poll_delay)
        if job is None:
            raise ResultNotFound("There is no such job, or its result has expired.")
        if job.state == JobState.CANCELLED:
            raise asyncio.CancelledError
        if job.state == JobState.DEAD:
            raise JobExecutionFailed(job.error)
        return job.result

    async def abort(self, *, timeout: float | None = None, poll_delay: float = 0.5) -> bool:  # noqa: ASYNC109 -- ARQ's
        """Cancels the job. Says whether that came before its end."""
        if not self._durable:
            return await super().abort(timeout=timeout, poll_delay=poll_delay)
        async with reading() as db:
            await request_cancel(db, self.job_id)
        try:
            await self.result(timeout, poll_delay=poll_delay)
        except asyncio.CancelledError:
            return True
        except (JobExecutionFailed, ResultNotFound):
            pass
        return False


class JobPool(ArqRedis):
    """A client of the queue's Redis/Valkey, as ARQ's. What is enqueued with it is in the table before it is sent."""

    def __init__(self, connections: ConnectionPool, *, durable: bool) -> None:
        """`durable`: whether there is a database. Without one, jobs are ARQ's own, and only Redis/Valkey has them."""
        super().__init__(connections, job_serializer=dumps, job_deserializer=loads)
        self.durable = durable

    async def queued_jobs(self, *, queue_name: str | None = None) -> list[JobDef]:
        """The jobs that wait, the one that is due first before the others."""
        if not self.durable:
            return await super().queued_jobs(queue_name=queue_name)
        waiting = select(Job).where(col(Job.state) == JobState.QUEUED, col(Job.queue) == (queue_name or DEFAULT_QUEUE))
        async with reading() as db:
            jobs = await db.exec(waiting.order_by(col(Job.run_after), col(Job.id)))
            return [described for job in jobs if (described := _described(job)) is not None]

    async def all_job_results(self) -> list[JobResult]:
        """The jobs that have ended and are kept, in the order in which they were enqueued."""
        if not self.durable:
            return await super().all_job_results()
        async with reading() as db:
            jobs = await db.exec(select(Job).where(col(Job.finished_at).is_not(None)).order_by(col(Job.created_at)))
            return [described for job in jobs if isinstance(described := _described(job), JobResult)]

    async def enqueue_job(
        self, function: str, *args: Any, _queue_name: str | None = None, **options: Any
    ) -> ArqOwnJob | None:
        """ARQ's, with all of its options, and those of `enqueue`. For a job that belongs to a transaction, call that.

        Returns: the job; None when there is one with this `_job_id`.

        Raises: TypeError, ValueError, DatabaseUnavailable.
        """
        if not self.durable:
            return await super().enqueue_job(function, *args, _queue_name=_queue_name, **options)
        name = _queue_name or DEFAULT_QUEUE
        try:
            enqueued = await enqueue_now(function, *args, _queue_name=name, **options)
        except JobIdTaken:
            return None
        return ArqJob(enqueued.job_id, self, name)


def pool_to(settings: RedisQueueSettings, *, durable: bool) -> JobPool:
    """A pool, which connects when it is first used."""
    connections = ConnectionPool.from_url(
        settings.redis_queue_url, socket_connect_timeout=CONNECT_TIMEOUT, socket_timeout=ANSWER_TIMEOUT
    )
    return JobPool(connections, durable=durable)


def worker_redis_settings(settings: RedisQueueSettings) -> RedisSettings:
    """The same address in ARQ's words, for `arq --check` and for workers without a database.

    Such a worker outlives a restart of Redis/Valkey by retrying for a minute; a check says at once that it is away.
    """
    address = parse_url(settings.redis_queue_url)
    patient: dict[str, Any] = {
        "retry_on_timeout": True,
        "retry_on_error": list(OUTAGES),
        "retry": Retry(ExponentialBackoff(cap=2, base=0.05), 40),
    }
    tls: dict[str, Any] = {name: value for name, value in address.items() if name in _TLS}
    durable = isinstance(settings, PostgresSettings)
    return RedisSettings(
        host=address.get("host", "localhost"),
        port=address.get("port", 6379),
        unix_socket_path=address.get("path"),
        database=address.get("db", 0),
        username=address.get("username"),
        password=address.get("password"),
        ssl=settings.redis_queue_url.startswith("rediss:"),
        conn_timeout=int(CONNECT_TIMEOUT),
        conn_retries=0,
        **tls,
        **({} if durable else patient),
    )


_TLS = {field.name for field in fields(RedisSettings) if field.name.startswith("ssl_")}


async def find(job_id: str) -> Job | None:
    """The job with this id, as long as it is kept."""
    if "\x00" in job_id:
        return None
    async with reading() as db:
        job = await db.get(Job, job_id)
    return job if job is None or job.expires_at is None or job.expires_at > datetime.now(UTC) else None


def _described(job: Job | None) -> JobDef | None:
    if job is None:
        return None
    known: dict[str, Any] = {
        "function": job.function,
        "args": tuple(job.args),
        "kwargs": job.keywords,
        "job_try": job.attempt,
        "enqueue_time": job.created_at,
        "score": int(job.run_after.timestamp() * 1000) if job.state == JobState.QUEUED else None,
        "job_id": job.id,
    }
    if job.finished_at is None:
        return JobDef(**known)
    return JobResult(
        **known,
        success=bool(job.success),
        result=job.outcome,
        start_time=job.started_at or job.finished_at,
        finish_time=job.finished_at,
        queue_name=job.queue,
    )
