"""Durable jobs in tests: workers in this process, what they do, and what becomes of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from app.core.db.database import reading, separate_reading
from app.core.utils import queue
from app.core.utils.queue import Job, JobFunctionLike
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.transport import Transport
from app.core.worker.opened import Opened, OwnSession
from app.core.worker.options import job
from app.core.worker.worker import DurableWorker

PATIENCE = 20.0  # seconds, on a busy machine
Context = dict[Any, Any]


@asynccontextmanager
async def working(
    *functions: Any, transport: Transport | None = None, session: OwnSession = separate_reading, **options: Any
) -> AsyncIterator[DurableWorker]:
    """A worker that knows these functions, with the running app's database and queue, until it is closed."""
    usual: dict[str, Any] = {"handle_signals": False, "poll_delay": 0.01}
    worker = DurableWorker(functions, **usual | options)
    task = asyncio.create_task(worker.work(Opened(queue.pool, transport or current_transport(), session)))
    try:
        yield worker
        assert not task.done(), "the worker has ended by itself"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await worker.close()


async def until(condition: Callable[[], Awaitable[object]], seconds: float = PATIENCE) -> None:
    """Returns once it is so."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 -- of all kinds of things
            await asyncio.sleep(0.01)


async def happens(event: asyncio.Event) -> None:
    """Returns once it is set, and not too late."""
    await asyncio.wait_for(event.wait(), PATIENCE)


async def job_of(job_id: str) -> Job:
    """The row of a job."""
    row = await queue.find(job_id)
    assert row is not None
    return row


async def seen_from_outside(job_id: str) -> Job | None:
    """The row of a job as others see it, while a transaction is open here."""
    async with separate_reading() as db:
        return await db.get(Job, job_id)


async def becomes(job_id: str, state: str) -> Job:
    """The row of a job, once it is in this state."""

    async def is_so() -> bool:
        return (await job_of(job_id)).state == state

    await until(is_so)
    return await job_of(job_id)


async def enqueued(function: JobFunctionLike, *args: Any, **options: Any) -> str:
    """The id of a new job."""
    return (await queue.enqueue_now(function, *args, **options)).job_id


async def sent(name: str = queue.DEFAULT_QUEUE) -> dict[str, datetime]:
    """What is in Redis/Valkey for the workers: ids, and when they are due, rounded to what the table would say."""
    found = await queue.pool.zrange(name, 0, -1, withscores=True)
    rows = {job_id.decode(): await seen_from_outside(job_id.decode()) for job_id, _ in found}
    due = {job_id.decode(): datetime.fromtimestamp(score / 1000, UTC) for job_id, score in found}
    for job_id, row in rows.items():
        if row is not None and abs(row.run_after - due[job_id]) < timedelta(milliseconds=1):
            due[job_id] = row.run_after
    return due


async def run(statement: str, **values: Any) -> Any:
    """The result of a statement, committed."""
    async with reading() as db:
        return await (await db.connection()).execute(text(statement), values)


async def create_done() -> None:
    """A table for what jobs do."""
    await run("DROP TABLE IF EXISTS done CASCADE")  # the application's
    await run("CREATE TABLE done (what text)")


async def do(ctx: Context, what: str) -> None:
    """Leaves a row in it, if it is committed."""
    await (await ctx["db"].connection()).execute(text("INSERT INTO done (what) VALUES (:what)"), {"what": what})


async def all_done() -> list[str]:
    """What is committed."""
    return sorted((await run("SELECT what FROM done")).scalars())


class Holding:
    """A job that has begun and goes on when it is let, or for as long as it is not cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.starts = 0

    async def __call__(self, ctx: Context, what: str = "held") -> str:
        self.starts += 1
        await do(ctx, what)
        self.begun.set()
        await self.may_end.wait()
        return what

    @property
    def function(self) -> Any:
        """What a worker takes."""

        async def hold(ctx: Context, what: str = "held") -> str:
            return await self(ctx, what)

        return job(hold, name="hold", first_retry=0)
