"""No call of ours takes a second connection of the pool while its caller holds one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from typing import Any

import httpx2
import pytest
from arq.jobs import JobStatus
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.api.credentials import reset_password
from app.api.dependencies import ReadingSessionDep, SessionDep, caller_of, get_client, limit_rate
from app.api.sign_in import WrongCredentials, sign_in
from app.core.config import Settings
from app.core.db import engine
from app.core.db.database import reading
from app.core.exceptions.http_exceptions import Problem
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.cache import cache
from app.core.utils.queue import ArqJob
from app.core.worker.housekeeping import purge_expired, purge_jobs
from app.core.worker.opened import open_worker
from app.core.worker.options import job
from app.core.worker.worker import DurableWorker
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_tier import crud_tiers
from app.models.security_event import EventKind
from app.models.token import LoginForm
from app.models.user import PasswordReset
from tests.conftest import client_of
from tests.durable_jobs import Context, job_of

pytestmark = pytest.mark.anyio

Call = Callable[[Request, AsyncSession], Coroutine[Any, Any, None]]
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    """Adds one to what a handler may do while it holds a connection."""
    CALLS[function.__name__] = function
    return function


@call
async def enqueue_job(request: Request, db: AsyncSession) -> None:
    await queue.pool.enqueue_job("sample_background_task", "hello")


@call
async def enqueue_now(request: Request, db: AsyncSession) -> None:
    await queue.enqueue_now("sample_background_task", "hello")


@call
async def enqueue_with_an_id_and_a_key(request: Request, db: AsyncSession) -> None:
    assert await queue.pool.enqueue_job("sample_background_task", "hello", _job_id="only") is not None
    assert await queue.pool.enqueue_job("sample_background_task", "hello", _job_id="only") is None
    first = await queue.enqueue_now("sample_background_task", "hello", _idempotency_key="key")
    assert await queue.enqueue_now("sample_background_task", "hello", _idempotency_key="key") != first


@call
async def a_handle(request: Request, db: AsyncSession) -> None:
    job = await queue.pool.enqueue_job("sample_background_task", "hello")
    assert job is not None
    handle = ArqJob(job.job_id, queue.pool)
    assert await handle.status() is JobStatus.queued
    assert await handle.info() is not None
    assert await handle.result_info() is None
    assert await handle.abort() is True


@call
async def result(request: Request, db: AsyncSession) -> None:
    job = await queue.pool.enqueue_job("sample_background_task", "hello")
    assert job is not None
    with pytest.raises(RuntimeError, match="commit"):
        await job.result()
    await db.commit()
    await db.exec(text("SELECT 1"))  # type: ignore[call-overload]  # a statement without a model
    with pytest.raises(TimeoutError):
        await job.result(0.05, poll_delay=0.01)


@call
async def what_the_pool_tells(request: Request, db: AsyncSession) -> None:
    assert await queue.find("unknown") is None
    await queue.pool.queued_jobs()
    await queue.pool.all_job_results()
    await queue.count_jobs()


@call
async def read(request: Request, db: AsyncSession) -> None:
    async with reading() as other:
        await crud_tiers.get_by_name(other, "none")


@call
async def read_inside_of_a_read(request: Request, db: AsyncSession) -> None:
    async with reading() as one, reading() as two:
        await crud_tiers.get_by_name(one, "none")
        await crud_tiers.get_by_name(two, "none")


@call
async def who_asks(request: Request, db: AsyncSession) -> None:
    request.scope["state"].pop("slipway.caller", None)
    await caller_of(request)


@call
async def sign_in_by_hand(request: Request, db: AsyncSession) -> None:
    form = LoginForm(username="nobody", password="none of the common ones")
    with suppress(WrongCredentials):
        await sign_in(form, db, request.app.state.settings, await get_client(request))


@call
async def reset_a_password(request: Request, db: AsyncSession) -> None:
    values = PasswordReset(token="A" * 43, new_password="a rather long password")
    with suppress(Problem):
        await reset_password(values, db, request.app.state.settings, await get_client(request))


@call
async def record_an_event(request: Request, db: AsyncSession) -> None:
    await crud_security_events.record(db, EventKind.LOGIN_FAILED, Client())


@call
async def housekeeping_after_its_commit(request: Request, db: AsyncSession) -> None:
    await db.commit()
    await purge_expired({})
    await purge_jobs({})


@call
async def several_at_once(request: Request, db: AsyncSession) -> None:
    await asyncio.gather(
        *(queue.pool.enqueue_job("sample_background_task", str(number)) for number in range(5)),
        *(queue.find(f"unknown {number}") for number in range(5)),
        hold(db),
    )


@call
async def a_task_of_its_own(request: Request, db: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.enqueue_now("sample_background_task", "hello"))
        group.create_task(read(request, db))


async def hold(db: AsyncSession) -> None:
    """Has the session take a connection, which it keeps until its end."""
    await (await db.connection()).execute(text("SELECT 1"))


def an_app(settings: Settings, connections: int) -> FastAPI:
    """The whole app, and handlers that hold a connection, with so many of them."""
    router = APIRouter(prefix="/api/v1/held")

    @router.post("/{name}")
    async def held(name: str, request: Request, db: SessionDep, first: bool = True) -> str:
        if first:
            await hold(db)
        await CALLS[name](request, db)
        await hold(db)
        return "done"

    @router.post("/both/sessions")
    async def both(reads: ReadingSessionDep, db: SessionDep) -> str:
        await hold(reads)
        await hold(db)
        await hold(reads)
        await db.commit()
        await hold(reads)
        await hold(db)
        return "done"

    @router.get("/cached/{number}")
    @cache("held", resource_id_name="number")
    async def cached(number: int, db: SessionDep) -> int:
        await hold(db)
        await queue.find("unknown")
        return number

    @router.patch("/cached/{number}")
    @cache("held", resource_id_name="number")
    async def changed(number: int, db: SessionDep) -> int:
        await hold(db)
        await queue.pool.enqueue_job("sample_background_task", "hello")
        return number

    @router.post("/limited/again", dependencies=[Depends(limit_rate)])
    async def limited(request: Request, db: SessionDep) -> str:
        await hold(db)
        await limit_rate(request)
        return "done"

    outer = APIRouter()
    outer.include_router(build_router(settings))
    outer.include_router(router)
    with_fewer = settings.model_copy(update={"POSTGRES_POOL_SIZE": connections})
    return create_application(outer, with_fewer)


@pytest.fixture
async def tight(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx2.AsyncClient]:
    """An app with one connection."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 1.5)  # Whoever waits for a second one need not wait long.
    app = an_app(settings, 1)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


@pytest.fixture
async def busy(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """An app with five connections."""
    app = an_app(settings, 5)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


# ---- With one connection nothing waits, and with five 20 requests at once succeed ----


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", list(CALLS))
async def test_a_handler_with_a_session_needs_one_connection(tight: httpx2.AsyncClient, name: str, first: bool) -> None:
    answer = await tight.post(f"held/{name}", params={"first": first})
    assert (answer.status_code, answer.text) == (200, '"done"')


async def test_a_reading_session_and_a_transaction_share_one(tight: httpx2.AsyncClient) -> None:
    assert (await tight.post("held/both/sessions")).text == '"done"'


async def test_a_cached_handler_needs_one_connection(tight: httpx2.AsyncClient) -> None:
    assert (await tight.get("held/cached/1")).text == "1"
    assert (await tight.patch("held/cached/1")).text == "1"
    assert (await tight.get("held/cached/1")).headers["X-Cache"] == "MISS"


async def test_limiting_a_request_again_needs_one_connection(tight: httpx2.AsyncClient) -> None:
    assert (await tight.post("held/limited/again")).text == '"done"'


@pytest.mark.parametrize("name", ["enqueue_job", "a_handle", "several_at_once", "sign_in_by_hand"])
async def test_20_at_once_succeed_with_five_connections(busy: httpx2.AsyncClient, name: str) -> None:
    started = perf_counter()
    answers = await asyncio.gather(*(busy.post(f"held/{name}") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert perf_counter() - started < 30


# ---- A worker whose jobs have one connection ----


async def test_a_job_with_a_session_needs_one_connection(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 1.5)
    seen: list[Any] = []

    async def busy(ctx: Context) -> str:
        await hold(ctx["db"])
        await queue.progress(ctx, 1, 2)
        async with opened.session() as outside:
            query = text("SELECT progress FROM job WHERE id = :id")
            seen.append(await (await outside.connection()).scalar(query, {"id": ctx["job_id"]}))
        await queue.enqueue_now("follow")
        await queue.find("unknown")
        await asyncio.gather(*(queue.pool.enqueue_job("follow") for _ in range(3)))
        await hold(ctx["db"])
        return "done"

    async def follow(ctx: Context) -> None:
        await hold(ctx["db"])
        seen.append("followed")

    async with open_worker(settings, 1) as opened:
        enqueued = await queue.enqueue_now("busy")
        functions = [job(busy, name="busy", max_tries=1), job(follow, name="follow", max_tries=1)]
        worker = DurableWorker(functions, burst=True, handle_signals=False, max_jobs=1, poll_delay=0.01)
        await worker.work(opened)
        assert (await job_of(enqueued.job_id)).outcome == "done"
        await worker.close()
    assert seen == [{"done": 1, "total": 2, "message": None}, *["followed"] * 4]
