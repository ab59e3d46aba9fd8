"""A job is enqueued for a function, or for its name; a function that no worker has is found out."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from arq import cron
from arq.worker import func
from fastapi import APIRouter
from prometheus_client import REGISTRY
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.api.dependencies import SessionDep
from app.core.config import Settings, get_settings
from app.core.db.database import transaction
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.queue import (
    ArqJob,
    SameName,
    UnknownFunction,
    arq_pool,
    functions,
    known_functions,
    sending,
    workers,
)
from app.core.utils.queue.sending import current_link
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import Link
from app.core.worker import intake as intake_module
from app.core.worker import settings as worker_settings
from app.core.worker import upkeep as upkeep_module
from app.core.worker.functions import sample_background_task
from app.core.worker.options import job
from app.core.worker.settings import WorkerSettings
from app.core.worker.testing import drain_jobs
from app.core.worker.worker import DurableWorker
from scripts.embedded import free_port
from tests.conftest import client_of
from tests.durable_jobs import Context, becomes, enqueued, job_of, run, until, working
from tests.processes import ROOT

pytestmark = pytest.mark.anyio


async def send_invoice(ctx: Context, order: int, *, copy: bool = False) -> str:
    return f"invoice {order}"


async def send_reminder(ctx: Context) -> None: ...


async def import_rows(ctx: Context) -> None: ...


async def sweep(ctx: Context) -> None: ...


class Short:
    functions = (send_invoice, job(send_reminder, name="remind"))
    cron_jobs = (cron(sweep, minute=1),)


class Long:
    functions = (import_rows,)
    queue_name = queue.LONG_QUEUE


@contextmanager
def known(*settings: Any) -> Iterator[None]:
    with known_functions(settings or (Short, Long)):
        yield


async def alive(*names: str, queue_name: str = queue.DEFAULT_QUEUE) -> None:
    """A worker says that it lives, and has these functions."""
    link = current_link()
    assert link is not None
    told = {"running": 0, "queue": queue_name, "started_at": "2026-01-01T00:00:00+00:00", "functions": list(names)}
    await workers.beat(link, f"of {queue_name}", f"{queue_name}:health-check", 30, told | {"max_jobs": 1})


def unknown() -> float:
    return REGISTRY.get_sample_value("slipway_jobs_unknown_function_total") or 0.0


# ---- By the function ----


async def test_a_function_is_enqueued_by_itself_in_every_way(db: AsyncSession) -> None:
    await queue.enqueue(db, send_invoice, 1)
    await db.commit()
    await queue.enqueue_now(send_invoice, 2, copy=True)
    await queue.pool.enqueue_job(send_invoice, 3, _defer_by=0.01)
    done = await drain_jobs([send_invoice])
    assert sorted(found.result for found in done) == ["invoice 1", "invoice 2", "invoice 3"]
    assert {found.function for found in done} == {"send_invoice"}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (send_reminder, "remind"),
        ("remind", "remind"),
        (Short.functions[1], "remind"),
        (send_invoice, "send_invoice"),
        (func(send_invoice), "send_invoice"),
        ("cron:sweep", "cron:sweep"),
        (Short.cron_jobs[0], "cron:sweep"),
        (sweep, "cron:sweep"),
    ],
)
async def test_it_has_the_name_that_the_workers_give_it(db: AsyncSession, function: Any, name: str) -> None:
    arguments = [1] if name == "send_invoice" else []
    with known():
        assert (await job_of(await enqueued(function, *arguments))).function == name


async def test_a_function_that_is_also_a_cron_job_has_its_own_name(db: AsyncSession) -> None:
    with known(SimpleNamespace(functions=[job(sweep, name="clean")], cron_jobs=[cron(sweep, minute=1)])):
        assert (await job_of(await enqueued(sweep))).function == "clean"


async def test_a_function_that_has_several_names_is_enqueued_by_one_of_them(db: AsyncSession) -> None:
    settings = SimpleNamespace(functions=[job(sweep, name="once"), job(sweep, name="twice")])
    with known(settings):
        with pytest.raises(UnknownFunction, match="once, twice"):
            await enqueued(sweep)
        assert (await job_of(await enqueued("twice"))).function == "twice"


@pytest.mark.parametrize(("args", "kwargs"), [([], {}), ([1, 2], {}), ([1], {"typo": True})])
async def test_arguments_that_a_function_does_not_take_are_refused(
    db: AsyncSession, args: list[Any], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="send_invoice: "):
        await queue.enqueue_now(send_invoice, *args, **kwargs)


@pytest.mark.parametrize("function", [7, None, object()])
async def test_what_is_neither_a_function_nor_a_name_is_refused(db: AsyncSession, function: Any) -> None:
    with pytest.raises(TypeError, match="for a function or its name"):
        await enqueued(function)


# ---- A function that no worker of this application has ----


async def in_a_transaction(name: str, *args: Any) -> None:
    async with transaction() as db:
        await queue.enqueue(db, name, *args)


async def by_the_pool(name: str, *args: Any) -> None:
    await queue.pool.enqueue_job(name, *args)


@pytest.mark.parametrize("way", [in_a_transaction, queue.enqueue_now, by_the_pool])
async def test_a_typing_error_is_refused_with_what_is_like_it(db: AsyncSession, way: Any) -> None:
    with known(), pytest.raises(UnknownFunction, match=r"'send_invioce'.* Similar names: send_invoice"):
        await way("send_invioce", 1)
    assert isinstance(UnknownFunction(), ValueError)
    assert (await run("SELECT count(*) FROM job")).scalar() == 0


async def test_a_function_that_was_not_added_to_the_settings_is_refused(db: AsyncSession) -> None:
    async def forgotten(ctx: Context) -> None: ...

    with known(), pytest.raises(UnknownFunction, match="add it to `functions`"):
        await enqueued(forgotten)


async def test_a_function_of_another_queue_is_refused_and_the_queue_named(db: AsyncSession) -> None:
    with known():
        with pytest.raises(UnknownFunction, match="'arq:queue:long' has it: pass `_queue_name`"):
            await enqueued(import_rows)
        await enqueued(import_rows, _queue_name=queue.LONG_QUEUE)


async def test_another_function_of_the_same_name_is_refused(db: AsyncSession) -> None:
    async def other(ctx: Context) -> None: ...

    other.__qualname__ = "send_invoice"
    with known(), pytest.raises(UnknownFunction, match="'send_invoice' is another function"):
        await enqueued(other)


async def test_two_functions_of_one_name_are_refused() -> None:
    both = [send_invoice, job(sweep, name="send_invoice")]
    with pytest.raises(SameName, match="'send_invoice'"):
        functions.KnownFunctions([SimpleNamespace(functions=both)])
    with pytest.raises(SameName, match="'send_invoice'"):
        DurableWorker(both, handle_signals=False)
    DurableWorker([send_invoice, job(send_invoice, max_tries=2)], handle_signals=False)


async def test_a_handler_with_a_typing_error_fails_at_once(settings: Settings) -> None:
    router = APIRouter()

    @router.post("/orders")
    async def place(db: SessionDep) -> None:
        await queue.enqueue(db, "send_invioce", 1)

    app = create_application(router, settings, workers=lambda: (Short, Long))
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.post(str(httpx2.URL("http://test/orders")))).status_code == 500
        assert (await run("SELECT count(*) FROM job")).scalar() == 0


def test_the_application_knows_its_workers() -> None:
    """In a process of its own: the import of `main` configures the log."""
    lines = "from app import main; print(*(found.__name__ for found in main.workers()))"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    known = done.stdout.split()
    assert {"WorkerSettings", "LongWorkerSettings"} <= set(known)
    for name in vars(worker_settings):
        assert not name.endswith("WorkerSettings") or name in known, f"return {name} in `workers` of src/app/main.py"


def test_functions_and_crons_of_all_queues_are_known() -> None:
    named = functions.KnownFunctions([WorkerSettings, worker_settings.LongWorkerSettings])
    assert {queue.DEFAULT_QUEUE, queue.LONG_QUEUE} == set(named.by_queue)
    assert named.name_of(sample_background_task, queue.DEFAULT_QUEUE) == "sample_background_task"
    given: list[Any] = [*WorkerSettings.functions, *WorkerSettings.cron_jobs]
    listed = [functions.name_and_coroutine(it)[0] for it in given]
    assert set(named.by_queue[queue.DEFAULT_QUEUE]) == set(listed)


# ---- Releases that overlap, and workers that are deployed apart ----


async def test_a_function_of_a_newer_worker_is_no_error(db: AsyncSession) -> None:
    await alive("newer")
    with known():
        assert (await job_of(await enqueued("newer"))).state == "queued"
        with pytest.raises(UnknownFunction):
            await enqueued("newer", _queue_name=queue.LONG_QUEUE)


async def test_while_redis_is_away_an_unknown_function_is_a_warning(db: AsyncSession) -> None:
    away = Link(f"redis://127.0.0.1:{free_port()}/0", "away")
    await away.open()
    transport, before = Transport(away), unknown()
    sending.add(transport)
    try:
        with known(), capture_logs() as lines:
            job_id = await enqueued("away")
    finally:
        sending.remove(transport)
        await away.close()
    assert (await job_of(job_id)).state == "queued"
    assert [line["function"] for line in lines if line["log_level"] == "warning"] == ["away"]
    assert unknown() == before + 1


@pytest.mark.parametrize("registered", [True, False])
async def test_of_workers_that_are_deployed_apart_one_that_lacks_the_function_is_a_warning(
    db: AsyncSession, registered: bool
) -> None:
    name, before = f"apart_{registered}", unknown()
    await alive("something_else", queue_name="apart")
    with known(*([Short] if registered else [SimpleNamespace()])), capture_logs() as lines:
        for _ in range(3):
            await enqueued(name, _queue_name="apart")

        async def has_warned() -> bool:
            return unknown() == before + 1

        await until(has_warned)
    told = [line for line in lines if line["event"] == "no worker is known to have this function"]
    assert [(line["function"], line["queue"]) for line in told] == [(name, "apart")]


@pytest.mark.parametrize("lives", [True, False])
async def test_workers_that_are_deployed_apart_are_believed(db: AsyncSession, lives: bool) -> None:
    if lives:
        await alive("train", queue_name="apart")
    with capture_logs() as lines:
        await enqueued("train", _queue_name="apart")
        await asyncio.gather(*functions._looking)
    assert [line for line in lines if line["log_level"] == "warning"] == []
    functions._checked.clear()


async def test_a_job_whose_function_no_worker_has_is_dead_after_the_set_time(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "UNKNOWN_PAUSE", timedelta(milliseconds=20))
    monkeypatch.setattr(upkeep_module, "NOBODY_KNOWS_SECONDS", 0)
    old, new = await enqueued("unknown"), await enqueued("unknown")
    hours = get_settings().JOB_UNKNOWN_HOURS
    await run("UPDATE job SET run_after = now() - make_interval(hours => :hours) WHERE id = :id", id=old, hours=hours)
    async with working(job(sweep)):
        row = await becomes(old, "dead")
        assert row.error == "No worker knows its function."
        assert (await job_of(new)).state == "queued"


async def test_a_job_whose_function_a_living_worker_has_waits_for_it(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "UNKNOWN_PAUSE", timedelta(milliseconds=20))
    monkeypatch.setattr(upkeep_module, "NOBODY_KNOWS_SECONDS", 0)
    monkeypatch.setenv("JOB_UNKNOWN_HOURS", "0.00001")
    get_settings.cache_clear()
    await alive("newer")
    waits, dies = await enqueued("newer"), await enqueued("unknown")
    async with working(job(sweep)):
        await becomes(dies, "dead")
        assert (await job_of(waits)).state == "queued"


# ---- Without a database ----


async def test_without_a_database_it_is_the_same(db: AsyncSession) -> None:
    pool = arq_pool.pool_to(get_settings(), durable=False)
    try:
        with known():
            found = await pool.enqueue_job(send_reminder)
            assert found is not None
            info = await ArqJob(found.job_id, pool).info()
            assert info is not None
            assert info.function == "remind"
            with pytest.raises(UnknownFunction):
                await pool.enqueue_job("send_invioce", 1)
    finally:
        await pool.aclose(close_connection_pool=True)
