"""What the documents' Python about jobs stands in."""

import inspect
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from arq import cron
from arq.worker import func
from fastapi import APIRouter

from app.api.dependencies import SessionDep
from app.core.db.database import transaction
from app.core.utils import queue
from app.core.utils.queue import JobStatus
from app.core.utils.queue.functions import KnownFunctions
from app.core.worker.functions import sample_background_task
from app.core.worker.options import job
from app.core.worker.schedule import Schedule
from app.core.worker.settings import WorkerSettings
from app.core.worker.testing import drain_jobs
from tests.docs.surroundings import Code, Post, run_test


async def job_function(code: Code) -> None:
    """A job's function, called `send_invoice` or otherwise: it can be called, and a worker can do it."""
    before = {"queue": queue, "job": job}
    names = await code.run(**before)
    (function,) = (value for value in names.values() if inspect.iscoroutinefunction(value))
    async with code.started():
        async with transaction() as db:
            direct = await function({"db": db}, 1)
        await queue.enqueue_now(function.__name__, 1)
        (done,) = await drain_jobs([func(function)])
    assert (done.status, done.result) == (JobStatus.COMPLETE, direct)


async def _send_invoice(ctx: dict[str, Any], order_id: int) -> str:
    return "sent"


_send_invoice.__name__ = _send_invoice.__qualname__ = "send_invoice"


async def job_list(code: Code) -> None:
    """What `WorkerSettings.functions` may be."""
    names = await code.run(sample_background_task=sample_background_task, job=job, send_invoice=_send_invoice)
    async with code.started():
        await queue.enqueue_now("send_invoice", 1)
        (done,) = await drain_jobs(names["functions"])
    assert done.result == "sent"


async def enqueueing(code: Code) -> None:
    """Ways to enqueue `send_invoice` for an order, each of which makes a job."""
    async with code.started():
        async with transaction() as db:
            await code.run(queue=queue, db=db, order=Post(id=7), send_invoice=_send_invoice)
        done = await drain_jobs([_send_invoice])
    ways = code.block.text.count("await ")
    assert [(found.function, found.args) for found in done] == [("send_invoice", [7])] * ways


async def known_workers(code: Code) -> None:
    """A function that returns the application's worker classes, a third one among them."""

    class ReportWorkerSettings:
        functions = (_send_invoice,)
        queue_name = "reports"

    names = await code.run(ReportWorkerSettings=ReportWorkerSettings)
    known = KnownFunctions(names["workers"]())
    assert known.name_of(_send_invoice, "reports") == "send_invoice"
    assert set(known.by_queue) == {queue.DEFAULT_QUEUE, queue.LONG_QUEUE, "reports"}


async def cron_zone(code: Code) -> None:
    """Worker settings with two cron jobs: one with fixed hours, and one without."""

    async def send_reports(ctx: dict[Any, Any]) -> None: ...

    async def poll(ctx: dict[Any, Any]) -> None: ...

    names = await code.run(cron=cron, ZoneInfo=ZoneInfo, send_reports=send_reports, poll=poll)
    given = names["WorkerSettings"]
    daily, often = (Schedule(job, given.timezone) for job in given.cron_jobs)
    night = datetime(2026, 3, 29, tzinfo=UTC)  # Summer begins at 1:00 UTC.
    assert daily.next_after(night) == night.replace(hour=1, microsecond=123_456)
    assert often.next_after(night.replace(minute=55)) == night.replace(hour=1, microsecond=123_456)


async def in_a_job(code: Code) -> None:
    """What a job does on its way."""

    async def import_rows(ctx: dict[Any, Any]) -> None:
        await code.run(queue=queue, ctx=ctx, done=1, total=2)

    import_rows.__qualname__ = "import_rows"
    async with code.started():
        await queue.enqueue_now("import_rows")
        (done,) = await drain_jobs([import_rows])
    assert done.status is JobStatus.COMPLETE
    assert done.progress is not None


async def job_test(code: Code) -> None:
    """A test of somebody's order, whose handler enqueues `send_invoice`."""
    router = APIRouter()

    @router.post("/orders/{number}", status_code=201)
    async def place(number: int, db: SessionDep) -> None:
        await queue.enqueue(db, "send_invoice", number)

    usual = WorkerSettings.functions
    WorkerSettings.functions = [*usual, func(_send_invoice)]
    try:
        await run_test(code, router)
    finally:
        WorkerSettings.functions = usual
