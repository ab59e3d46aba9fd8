"""A job that is enqueued while a transaction is open belongs to it; where none is open, it is sent at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, HTTPException
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db.database import after_commit, begin_request, open_transaction, reading, transaction
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils import queue
from app.core.worker.options import job
from app.core.worker.testing import drain_jobs
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier
from tests.conftest import client_of
from tests.durable_jobs import Context, run, sent, until

pytestmark = pytest.mark.anyio


class KeptConflict(Conflict):
    keeps_changes = True


FAILURES = {"http": HTTPException(409), "problem": Conflict(), "crash": ZeroDivisionError(), "kept": KeptConflict()}
tasks: list[asyncio.Task[Any]] = []


async def use(db: AsyncSession) -> None:
    await (await db.connection()).execute(text("SELECT 1"))


async def enqueue(what: str = "it") -> None:
    assert await queue.pool.enqueue_job("work", what) is not None


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A small app whose routes enqueue a job in every way there is."""
    router = APIRouter()
    tasks.clear()

    @router.post("/fail/{how}")
    async def fail(how: str, db: SessionDep, used: bool = False) -> None:
        if used:
            await use(db)
        await enqueue()
        await queue.enqueue_now("work", "and this")
        raise FAILURES[how]

    @router.post("/fine")
    async def fine(db: SessionDep) -> list[str]:
        await enqueue()
        return sorted(await sent())  # Before the commit.

    @router.post("/without")
    async def without() -> list[str]:
        await enqueue()
        return sorted(await sent())

    @router.post("/in-the-background")
    async def in_the_background(db: SessionDep, tasks: BackgroundTasks) -> None:
        await use(db)
        tasks.add_task(enqueue)

    @router.post("/started/{milliseconds}")
    async def started(milliseconds: int, db: SessionDep, fails: bool = False) -> None:
        async def later() -> None:
            await asyncio.sleep(milliseconds / 1000)
            await enqueue()

        await use(db)
        tasks.append(asyncio.create_task(later()))
        await asyncio.sleep(0.005)
        if fails:
            raise Conflict

    @router.post("/first-at-once")
    async def first_at_once(db: SessionDep) -> None:
        await asyncio.gather(enqueue(), use(db), enqueue(), queue.find("unknown"))

    @router.post("/committed")
    async def committed(db: SessionDep) -> None:
        await enqueue("stays")
        await db.commit()
        await enqueue("goes")
        raise Conflict

    @router.post("/two")
    async def two(db: SessionDep) -> None:
        await use(db)
        async with transaction():
            await enqueue("inner")
        await enqueue("outer")
        raise Conflict

    @router.post("/after-commit")
    async def afterwards(db: SessionDep) -> None:
        after_commit(db, enqueue)

    @router.post("/caught/{used}")
    async def caught(used: str, db: SessionDep) -> str:
        await enqueue("before")
        with suppress(IntegrityError):
            if used == "flush":
                db.add(Tier(name="twice"))
                db.add(Tier(name="twice"))
                await db.flush()
            else:
                await (await db.connection()).execute(text("INSERT INTO tier (name) VALUES ('twice'), ('twice')"))
        async with reading() as other:
            found = await crud_tiers.get_by_name(other, "twice")
        await enqueue("after")
        return f"found {found}"

    @router.post("/savepoint")
    async def savepoint(db: SessionDep) -> None:
        with suppress(IntegrityError):
            async with db.begin_nested():
                await (await db.connection()).execute(text("INSERT INTO tier (name) VALUES ('twice'), ('twice')"))
        await enqueue()
        assert await sent() == {}

    app = create_application(router, settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def jobs() -> list[Any]:
    """What the jobs that are committed were given, in the order of it."""
    begin_request()
    return sorted(args[0] for args in (await run("SELECT args FROM job")).scalars())


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("how", ["http", "problem", "crash"])
async def test_a_handler_that_enqueues_and_fails_has_enqueued_nothing(
    client: httpx2.AsyncClient, how: str, used: bool
) -> None:
    assert (await client.post(f"fail/{how}", params={"used": used})).status_code in {409, 500}
    assert await jobs() == []
    assert await sent() == {}


async def test_an_error_that_keeps_changes_keeps_jobs(client: httpx2.AsyncClient) -> None:
    await client.post("fail/kept")
    assert await jobs() == ["and this", "it"]


async def test_a_job_is_sent_after_the_commit_of_the_handler(client: httpx2.AsyncClient) -> None:
    assert (await client.post("fine")).json() == []
    assert len(await sent()) == 1


async def test_without_a_session_a_job_is_sent_at_once(client: httpx2.AsyncClient) -> None:
    assert len((await client.post("without")).json()) == 1


async def test_a_task_after_the_answer_enqueues_by_itself(client: httpx2.AsyncClient) -> None:
    await client.post("in-the-background")
    assert await jobs() == ["it"]


@pytest.mark.parametrize("milliseconds", [*range(10), 30])
async def test_a_task_that_outlives_its_handler_loses_no_job(client: httpx2.AsyncClient, milliseconds: int) -> None:
    answers = await asyncio.gather(*(client.post(f"started/{milliseconds}") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    await asyncio.gather(*tasks)
    assert await jobs() == ["it"] * 5

    async def all_sent() -> bool:
        return len(await sent()) == 5

    await until(all_sent)


async def test_a_task_that_outlives_a_handler_that_failed_enqueues_by_itself(client: httpx2.AsyncClient) -> None:
    await client.post("started/20", params={"fails": True})
    await asyncio.gather(*tasks)
    assert await jobs() == ["it"]


async def test_several_tasks_can_begin_one_transaction(client: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("first-at-once") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert await jobs() == ["it"] * 40


async def test_after_a_commit_another_transaction_begins(client: httpx2.AsyncClient) -> None:
    await client.post("committed")
    assert await jobs() == ["stays"]


async def test_of_several_transactions_the_innermost_has_the_job(client: httpx2.AsyncClient) -> None:
    await client.post("two")
    assert await jobs() == ["inner"]


async def test_an_action_after_the_commit_can_enqueue(client: httpx2.AsyncClient) -> None:
    await client.post("after-commit")
    assert await jobs() == ["it"]
    assert len(await sent()) == 1


@pytest.mark.parametrize("used", ["flush", "statement"])
async def test_a_transaction_that_an_error_has_aborted_takes_no_job_with_it(
    client: httpx2.AsyncClient, used: str
) -> None:
    answer = await client.post(f"caught/{used}")
    assert (answer.status_code, answer.json()) == (200, "found None")
    assert await jobs() == ["after"]


async def test_an_error_in_a_savepoint_leaves_the_transaction_its_jobs(client: httpx2.AsyncClient) -> None:
    assert (await client.post("savepoint")).status_code == 200
    assert await jobs() == ["it"]


# ---- In jobs, and by hand ----


@pytest.mark.parametrize("fails", [True, False])
async def test_a_job_that_fails_has_enqueued_nothing(db: AsyncSession, fails: bool) -> None:
    async def parent(ctx: Context) -> None:
        await queue.enqueue_now("child", _queue_name="nobody's")
        await queue.pool.enqueue_job("child", _queue_name="nobody's")
        assert await sent("nobody's") == {}
        if fails:
            raise ValueError("no")

    await queue.enqueue_now("parent")
    await drain_jobs([job(parent, name="parent", max_tries=1)], allow_dead=True)
    count = await run("SELECT count(*) FROM job WHERE function = 'child'")
    assert count.scalar() == (0 if fails else 2)


async def test_what_a_transaction_has_written_is_read_in_it_and_nowhere_else(db: AsyncSession) -> None:
    async with transaction() as caller:
        await use(caller)
        mine = await queue.enqueue_now("work")
        assert await queue.find(mine.job_id) is not None
        begin_request()  # Somebody else looks.
        assert await queue.find(mine.job_id) is None


async def test_a_transaction_outlives_the_session_that_reads_in_it(db: AsyncSession) -> None:
    async with transaction() as caller:
        await use(caller)
        async with reading() as inner:
            await use(inner)
        mine = await queue.enqueue(caller, "work")
    assert await queue.find(mine.job_id) is not None


async def test_no_transaction_is_open_after_its_end(db: AsyncSession) -> None:
    assert open_transaction() is None
    async with transaction() as caller:
        assert open_transaction() is caller
        task = asyncio.create_task(asyncio.sleep(0.01, result=None))
        opened = asyncio.create_task(_after(task))
    assert open_transaction() is None
    assert await opened is None


async def _after(task: asyncio.Task[Any]) -> Any:
    await task
    return open_transaction()
