"""ARQ's own ways, with the table behind them: `queue.pool.enqueue_job(...)` and `ArqJob(task_id, queue.pool)`."""

import asyncio
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import arq.connections
import arq.worker
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Deserializer, JobDef, JobResult, JobStatus, ResultNotFound
from arq.jobs import Job as ArqOwnJob
from arq.worker import JobExecutionFailed
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlmodel import col, select

from app.core.config import PostgresSettings, RedisQueueSettings
from app.core.db.commits import note_commit
from app.core.db.database import open_transaction, reading
from app.core.db.sharing import is_part_of_a_transaction
from app.core.utils.queue.functions import JobFunctionLike, resolve
from app.core.utils.queue.lifecycle import request_cancel
from app.core.utils.queue.sending import JobIdTaken, current_link, enqueue_now, is_unsent
from app.core.utils.queue.serialization import dumps, loads
from app.core.utils.queue.table import DEFAULT_QUEUE, Job, JobState
from app.core.utils.redis_link.address import SENTINEL, connections_to, forget_sentinels, parse

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

        Raises: ResultNotFound, JobExecutionFailed with the job's error, CancelledError, TimeoutError; RuntimeError for
            a job that the open transaction has enqueued: it starts after the commit.
        """
        if not self._durable:
            return await super().result(timeout, poll_delay=poll_delay, pole_delay=pole_delay)
        if (caller := open_transaction()) is not None and is_unsent(caller, self.job_id):
            raise RuntimeError(
                f"Job {self.job_id} starts after the commit of the transaction that enqueued it: commit"
                " that before you wait for the result."
            )
        # Not by `asyncio.timeout`: a statement that is cancelled would break the transaction that it is a part of.
        deadline = None if timeout is None else monotonic() + timeout
        while (job := await find(self.job_id)) is not None and not job.has_ended:
            left = poll_delay if deadline is None else min(poll_delay, deadline - monotonic())
            if left <= 0:
                raise TimeoutError
            await asyncio.sleep(left)
        if job is None:
            raise ResultNotFound("There is no such job, or its result has expired.")
        if job.state == JobState.CANCELLED:
            raise asyncio.CancelledError
        if job.state == JobState.DEAD:
            raise JobExecutionFailed(job.error)
        return job.result

    async def abort(self, *, timeout: float | None = None, poll_delay: float = 0.5) -> bool:  # noqa: ASYNC109 -- ARQ's
        """Cancels the job. Returns: whether it is cancelled.

        In a transaction that has executed statements, this is part of it: a job that waits is cancelled by its commit.
        The worker of a job that runs hears of it after the commit, so this returns False without waiting.
        """
        if not self._durable:
            return await super().abort(timeout=timeout, poll_delay=poll_delay)
        async with reading() as db:
            await request_cancel(db, self.job_id)
            if is_part_of_a_transaction(db):
                job = await db.get(Job, self.job_id) if "\x00" not in self.job_id else None
                return job is not None and job.state == JobState.CANCELLED
        note_commit()
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

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes its connections, those to sentinels included."""
        await super().aclose(close_connection_pool)
        await forget_sentinels(self.connection_pool)

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
        self, function: JobFunctionLike, *args: Any, _queue_name: str | None = None, **options: Any
    ) -> ArqOwnJob | None:
        """ARQ's, with all of its options, and those of `enqueue`.

        The job belongs to the transaction that is open in this request or job: it is sent after the commit, and not
        enqueued when that is rolled back. Where none is open, it is sent at once.

        Returns: the job; None when there is one with this `_job_id`.

        Raises: UnknownFunction, TypeError, ValueError, DatabaseUnavailable.
        """
        queue = _queue_name or DEFAULT_QUEUE
        if not self.durable:
            name = await resolve(function, queue, current_link())
            return await super().enqueue_job(name, *args, _queue_name=_queue_name, **options)
        try:
            enqueued = await enqueue_now(function, *args, _queue_name=queue, **options)
        except JobIdTaken:
            return None
        return ArqJob(enqueued.job_id, self, queue)


def pool_to(settings: RedisQueueSettings, *, durable: bool) -> JobPool:
    """A pool, which connects when it is first used: by way of sentinels, to whichever server is the primary then."""
    connections = connections_to(settings.redis_queue_url, CONNECT_TIMEOUT, socket_timeout=ANSWER_TIMEOUT)
    return JobPool(connections, durable=durable)


def worker_redis_settings(settings: RedisQueueSettings) -> RedisSettings:
    """The same address in ARQ's words, for `arq --check` and for workers without a database.

    Such a worker outlives a restart of Redis/Valkey, or a failover, by retrying for a minute; a check says at once that
    it is away.
    """
    address = parse(settings.redis_queue_url)
    options = address.options
    patient: dict[str, Any] = {
        "retry_on_timeout": True,
        "retry_on_error": list(OUTAGES),
        "retry": Retry(ExponentialBackoff(cap=2, base=0.05), 40),
    }
    tls: dict[str, Any] = {name: value for name, value in options.items() if name in _TLS}
    durable = isinstance(settings, PostgresSettings)
    common: dict[str, Any] = {
        "database": options.get("db", 0),
        "username": options.get("username"),
        "password": options.get("password"),
        "ssl": address.is_encrypted,
        "conn_timeout": int(CONNECT_TIMEOUT),
        "conn_retries": 0,
        **tls,
        **({} if durable else patient),
    }
    if address.kind == SENTINEL:
        arq.worker.create_pool = create_pool  # type: ignore[attr-defined]  # what ARQ imports it as
        url, hosts = settings.redis_queue_url, list(address.hosts)
        return BySentinels(host=hosts, sentinel=True, sentinel_master=address.service, url=url, **common)
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return RedisSettings(host=host, port=port, unix_socket_path=options.get("path"), **common)


@dataclass(repr=False)
class BySentinels(RedisSettings):
    """What ARQ's own do not say: the sentinels' passwords and certificates. And ARQ does not try again with these."""

    url: str = ""

    def __repr__(self) -> str:  # ARQ's has the passwords in it.
        return f"{type(self).__name__}({self.sentinel_master!r})"


async def create_pool(settings_: RedisSettings | None = None, **options: Any) -> ArqRedis:
    """ARQ's, by which its command connects, and which knows `BySentinels`. Raises: RedisError."""
    if not isinstance(settings_, BySentinels):
        return await arq.connections.create_pool(settings_, **options)
    retrying = {name: getattr(settings_, name) for name in ("retry_on_timeout", "retry_on_error", "retry")}
    pool = JobPool(connections_to(settings_.url, CONNECT_TIMEOUT, **retrying), durable=False)
    for name, value in options.items():  # The serialiser, the queue's name, and so on.
        setattr(pool, name, value)
    try:
        await pool.ping()
    except BaseException:
        await pool.aclose(close_connection_pool=True)
        raise
    return pool


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
