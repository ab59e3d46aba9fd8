"""For tests of what enqueues jobs: does them here and now, as a worker would (docs/jobs.md)."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from arq.worker import Function, func, get_kwargs
from sqlalchemy import text
from sqlmodel import col, select

from app.core.db.database import reading
from app.core.utils import queue
from app.core.utils.queue import Job, JobState
from app.core.utils.queue.sending import current_transport
from app.core.worker.opened import Opened
from app.core.worker.settings import WorkerSettings
from app.core.worker.worker import DurableWorker

MOST_ROUNDS: Final = 1000

_NOW = text("SELECT clock_timestamp()")
_SKIP_DELAYS = text(
    "UPDATE job SET run_after = clock_timestamp() WHERE state = 'queued' AND run_after > now()"
    " AND function = ANY(CAST(:functions AS text[]))"
)
_DUE = text(
    "SELECT DISTINCT queue FROM job WHERE state = 'queued' AND run_after <= clock_timestamp()"
    " AND function = ANY(CAST(:functions AS text[]))"
)


class JobsDied(AssertionError):  # noqa: N818 -- what a test has found
    """Jobs that are dead letters now, with their errors."""


async def drain_jobs(
    functions: Sequence[Function | Callable[..., Coroutine[Any, Any, Any]]] | None = None,
    *,
    skip_delays: bool = True,
    allow_dead: bool = False,
    **options: Any,
) -> list[Job]:
    """Does all jobs that wait, of every queue, and those that they enqueue, with the running app's database.

    What they do and how they end is what a worker does: each has its transaction, is retried, and can die.

    Args:
        functions: what knows how, in the form of `WorkerSettings.functions`, which it is by default. Jobs of other
            functions stay where they are.
        skip_delays: whether what is deferred, or waits for its next attempt, is done at once rather than left.
        allow_dead: whether a job may end as a dead letter.
        options: of the worker, in place of those of `WorkerSettings`, such as `max_tries=1`.

    Returns: the jobs that have ended, as they are now, in that order; without those that are not kept.

    Raises: JobsDied.
    """
    known = [func(function) for function in functions or WorkerSettings.functions]  # type: ignore[arg-type]
    async with reading() as db:
        began = await (await db.connection()).scalar(_NOW)
    names = [function.name for function in known]
    for _ in range(MOST_ROUNDS):
        found = await _queues(names, skip_delays=skip_delays)
        if not found:
            break
        for name in found:
            await _work_on(name, known, options)
    else:
        raise JobsDied(f"After {MOST_ROUNDS} rounds there are still jobs: one seems to enqueue itself again and again.")
    async with reading() as db:
        ended = select(Job).where(col(Job.finished_at) >= began).order_by(col(Job.finished_at))
        jobs = list(await db.exec(ended))
    dead = [f"{job.function}: {job.error}" for job in jobs if job.state == JobState.DEAD]
    if dead and not allow_dead:
        raise JobsDied("\n".join(dead))
    return jobs


async def _queues(names: Sequence[str], *, skip_delays: bool) -> list[str]:
    async with reading() as db:
        connection = await db.connection()
        if skip_delays:
            await connection.execute(_SKIP_DELAYS, {"functions": list(names)})
        return list((await connection.execute(_DUE, {"functions": list(names)})).scalars())


async def _work_on(name: str, functions: Sequence[Any], options: dict[str, Any]) -> None:
    usual = get_kwargs(WorkerSettings) | {"cron_jobs": None, "on_startup": None, "on_shutdown": None}  # type: ignore[arg-type]
    here = {"functions": functions, "queue_name": name, "burst": True, "handle_signals": False, "poll_delay": 0.01}
    worker = DurableWorker(**usual | options | here)
    try:
        await worker.work(Opened(queue.pool, current_transport()))
    finally:
        await worker.close()
