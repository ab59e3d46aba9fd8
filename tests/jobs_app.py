"""An app and its workers whose jobs leave rows behind, for tests in which they are real processes.

uvicorn tests.jobs_app:app        arq tests.jobs_app.WorkerSettings

With COMPLETION_WAIT and JOB_LEASE in the environment, workers have other graces and leases than usual, in seconds; with
QUIET both write warnings only.
"""

import asyncio
import logging
import os
import signal
from typing import Any

import src  # noqa: F401  (makes `app` importable from the project's folder)
import structlog
from arq import cron
from fastapi import APIRouter
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.api.dependencies import SessionDep
from app.core.config import get_settings
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils import queue
from app.core.worker import claims, worker
from app.core.worker.options import job
from app.core.worker.settings import WorkerSettings as UsualSettings

if lease := os.environ.get("JOB_LEASE"):
    for module in (claims, worker):
        vars(module)["LEASE"] = float(lease)

if "QUIET" in os.environ:
    logging.getLogger("slipway").setLevel(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

TABLES = (
    "CREATE TABLE placed (number integer)",
    "CREATE TABLE delivered (number integer, attempt integer)",
    "CREATE TABLE begun (number integer, attempt integer, at timestamptz DEFAULT clock_timestamp())",
    "CREATE TABLE ticked (tick text, at timestamptz DEFAULT clock_timestamp())",
)

router = APIRouter()


class Refused(Conflict):
    text = "It was not to be."


async def write(db: AsyncSession, statement: str, **values: Any) -> None:
    """Runs a statement in this transaction."""
    await (await db.connection()).execute(text(statement), values)


@router.post("/orders/{number}", status_code=201)
async def place_order(number: int, db: SessionDep, fail: bool = False, seconds: float = 0) -> dict[str, str]:
    """An order and the job that delivers it, or, with `fail`, neither."""
    await write(db, "INSERT INTO placed (number) VALUES (:number)", number=number)
    enqueued = await queue.enqueue(db, "deliver", number, seconds)
    if fail:
        raise Refused
    return {"id": enqueued.job_id}


async def deliver(ctx: dict[Any, Any], number: int, seconds: float = 0) -> int:
    """Takes so many seconds, and leaves a row that says that it did; another one says, at once, that it began."""
    await note_begin(ctx, number)
    await write(
        ctx["db"],
        "INSERT INTO delivered (number, attempt) VALUES (:number, :attempt)",
        number=number,
        attempt=ctx["job_try"],
    )
    await asyncio.sleep(seconds)
    return number


async def deliver_by_statement(ctx: dict[Any, Any], number: int, seconds: float) -> None:
    """The same, where it is the database that takes so many seconds."""
    await note_begin(ctx, number)
    await write(
        ctx["db"],
        "INSERT INTO delivered (number, attempt) SELECT :number, :attempt FROM pg_sleep(:seconds)",
        number=number,
        attempt=ctx["job_try"],
        seconds=seconds,
    )


async def note_begin(ctx: dict[Any, Any], number: int) -> None:
    """Notes a start outside of the job's transaction: it stays, whatever becomes of the job."""
    from app.core.db.database import reading

    async with reading() as db:
        await write(
            db, "INSERT INTO begun (number, attempt) VALUES (:number, :attempt)", number=number, attempt=ctx["job_try"]
        )


async def kill_worker(ctx: dict[Any, Any], number: int) -> None:
    """What nothing can be done about."""
    await note_begin(ctx, number)
    os.kill(os.getpid(), signal.SIGKILL)


async def fail(ctx: dict[Any, Any], number: int) -> None:
    """Begins, and fails after it has written something."""
    await note_begin(ctx, number)
    await write(ctx["db"], "INSERT INTO delivered (number, attempt) VALUES (:number, 0)", number=number)
    raise RuntimeError(f"order {number} cannot be delivered")


async def count_to(ctx: dict[Any, Any], total: int, seconds: float) -> str:
    """Reports its progress."""
    for done in range(total):
        await queue.progress(ctx, done + 1, total, f"{done + 1} of {total}")
        await asyncio.sleep(seconds)
    return "counted"


async def tick(ctx: dict[Any, Any]) -> None:
    """What a cron does: notes which tick it is."""
    await write(ctx["db"], "INSERT INTO ticked (tick) VALUES (:tick)", tick=ctx["job_id"])


class WorkerSettings:
    """Workers whose jobs are these."""

    functions = [  # noqa: RUF012
        *UsualSettings.functions,
        job(deliver, first_retry=0.1),
        job(deliver_by_statement, first_retry=0.1),
        job(kill_worker, max_tries=3, first_retry=0.1),
        job(fail, max_tries=3, first_retry=0.1),
        count_to,
    ]
    redis_settings = UsualSettings.redis_settings
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    queue_name = queue.DEFAULT_QUEUE
    max_jobs = 10
    poll_delay = 0.02
    job_completion_wait = int(os.environ.get("COMPLETION_WAIT", "2"))
    health_check_interval = 3


class CronSettings:
    """Workers with a job for each second."""

    functions = WorkerSettings.functions
    cron_jobs = [cron(tick, second=set(range(60)))]  # noqa: RUF012
    redis_settings = UsualSettings.redis_settings
    job_serializer = queue.dumps
    job_deserializer = queue.loads
    queue_name = queue.DEFAULT_QUEUE
    poll_delay = 0.02


_settings = get_settings()
_router = APIRouter()
_router.include_router(build_router(_settings))
_router.include_router(router)
app = create_application(_router, _settings)
