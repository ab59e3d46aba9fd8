"""A handler that deals with an error of the database itself: its answer goes out, and nothing is written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError, SQLAlchemyError
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db.database import (
    after_commit,
    around_commit,
    close_database,
    open_database,
    reading,
    transaction,
)
from app.core.db.outages import TransactionAborted
from app.core.exceptions.http_exceptions import Conflict, Problem
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.cache import cache
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

Break = Callable[[AsyncSession], Awaitable[None]]
hooks: list[str] = []


class KeptConflict(Conflict):
    keeps_changes = True


async def hook() -> None:
    hooks.append("ran")


# ---- Ways in which a transaction is aborted, the error caught ----


async def by_flush(db: AsyncSession) -> None:
    db.add(Tier(name="taken"))
    with suppress(IntegrityError):
        await db.flush()


async def by_crud(db: AsyncSession) -> None:
    with suppress(Conflict):
        await crud_tiers.create(db, Tier(name="taken"))


async def by_statement(db: AsyncSession) -> None:
    with suppress(IntegrityError):
        await (await db.connection()).execute(text("INSERT INTO tier (name) VALUES ('taken')"))


async def by_other_error(db: AsyncSession) -> None:
    with suppress(DBAPIError):
        await db.exec(text("SELECT 1 / 0"))  # type: ignore[call-overload]


async def by_driver(db: AsyncSession) -> None:
    """SQLAlchemy does not see this error."""
    await db.exec(select(Tier))
    raw = await (await db.connection()).get_raw_connection()
    with suppress(asyncpg.PostgresError):
        await raw.driver_connection.execute("SELECT no_such_function()")  # type: ignore[union-attr]


async def by_script_of_driver(db: AsyncSession) -> None:
    """Neither does it see this one."""
    await db.exec(select(Tier))
    raw = await (await db.connection()).get_raw_connection()
    with pytest.raises(asyncpg.PostgresError):
        await raw.driver_connection.fetch("INSERT INTO tier (name) VALUES ('taken')")  # type: ignore[union-attr]


async def by_later_statements(db: AsyncSession) -> None:
    await by_flush(db)
    with pytest.raises(PendingRollbackError):
        await db.exec(select(Tier))


async def by_later_statements_of_a_connection(db: AsyncSession) -> None:
    await by_statement(db)
    with pytest.raises(DBAPIError, match="aborted"):
        await (await db.connection()).execute(text("SELECT 1"))


async def within_savepoint(db: AsyncSession) -> None:
    """Caught inside of the block, which then cannot be released."""
    with pytest.raises(SQLAlchemyError):
        async with db.begin_nested():
            await by_statement(db)


async def by_lost_connection(db: AsyncSession) -> None:
    with pytest.raises(Problem):
        await db.exec(text("SELECT pg_terminate_backend(pg_backend_pid())"))  # type: ignore[call-overload]


ABORTED = [
    by_flush,
    by_crud,
    by_statement,
    by_other_error,
    by_driver,
    by_script_of_driver,
    by_later_statements,
    by_later_statements_of_a_connection,
    within_savepoint,
    by_lost_connection,
]


# ---- Ways in which it is not ----


async def by_rollback(db: AsyncSession) -> None:
    """All that came before is gone, and the transaction that follows is another one."""
    await by_flush(db)
    await db.rollback()
    after_commit(db, hook)
    db.add(Tier(name="kept"))


async def by_savepoint(db: AsyncSession) -> None:
    after_commit(db, hook)
    db.add(Tier(name="kept"))
    with pytest.raises(IntegrityError):  # noqa: PT012 (the session ends there)
        async with db.begin_nested():
            after_commit(db, hook)
            await queue.enqueue(db, "sample_background_task", "never")
            db.add(Tier(name="taken"))


async def by_savepoint_with_error_caught_inside(db: AsyncSession) -> None:
    after_commit(db, hook)
    db.add(Tier(name="kept"))
    async with db.begin_nested():
        after_commit(db, hook)
        await by_flush(db)


async def by_savepoint_in_savepoint(db: AsyncSession) -> None:
    """The inner one is released, and is gone with the outer one."""
    after_commit(db, hook)
    db.add(Tier(name="kept"))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (the session ends there)
        async with db.begin_nested():
            async with db.begin_nested():
                after_commit(db, hook)
            raise ZeroDivisionError


KEPT = [by_rollback, by_savepoint, by_savepoint_with_error_caught_inside, by_savepoint_in_savepoint]


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    router = APIRouter()

    @router.post("/{way}/{status}")
    async def write(way: str, status: int, db: SessionDep) -> Any:
        if way != by_lost_connection.__name__:
            db.add(Tier(name="before"))
            await db.flush()
        after_commit(db, hook)
        await globals()[way](db)
        if status == 409:
            return JSONResponse({"mine": way}, 409)
        if status == 418:
            raise KeptConflict("mine")
        return JSONResponse({"mine": way}, status)

    @router.patch("/cached/{id}")
    @cache("tiers")
    async def write_cached(id: int, db: SessionDep) -> str:  # noqa: A002 -- the cache goes by this name
        await by_statement(db)
        return "mine"

    app = create_application(router, settings)
    async with app.router.lifespan_context(app):
        async with transaction() as db:
            db.add(Tier(name="taken"))
        hooks.clear()
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def tier_names() -> list[str]:
    async with transaction() as db:
        return list(await db.exec(select(Tier.name).order_by(Tier.name)))


@pytest.mark.parametrize("way", ABORTED)
@pytest.mark.parametrize("status", [409, 201])
async def test_the_answer_goes_out_and_nothing_is_written(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], way: Break, status: int
) -> None:
    answer = await client.post(f"{way.__name__}/{status}")
    assert (answer.status_code, answer.json()) == (status, {"mine": way.__name__})
    assert await tier_names() == ["taken"]
    assert hooks == []
    assert capsys.readouterr().out.count("request's transaction was rolled back") == 1


async def by_time_limit(db: AsyncSession) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await db.exec(text("SELECT pg_sleep(5)"))  # type: ignore[call-overload]


async def by_time_limit_of_a_reading_session(db: AsyncSession) -> None:
    async with reading() as other:
        await by_time_limit(other)


async def by_cancelled_task(db: AsyncSession) -> None:
    async def read() -> None:
        async with reading() as other:
            await other.exec(text("SELECT pg_sleep(5)"))  # type: ignore[call-overload]

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("way", [by_time_limit, by_time_limit_of_a_reading_session, by_cancelled_task])
async def test_a_cancelled_statement_is_no_success(client: httpx2.AsyncClient, way: Break) -> None:
    """The handler has caught no error of the database, and does not know that its rows are gone."""
    assert (await client.post(f"{way.__name__}/201")).status_code == 500
    assert await tier_names() == ["taken"]
    assert hooks == []


@pytest.mark.parametrize("way", [by_flush, by_driver])
async def test_a_problem_that_keeps_changes_has_none_to_keep(client: httpx2.AsyncClient, way: Break) -> None:
    answer = await client.post(f"{way.__name__}/418")
    assert (answer.status_code, answer.json()["detail"]) == (409, "mine")
    assert await tier_names() == ["taken"]
    assert hooks == []


async def test_nothing_is_dropped_from_the_cache(client: httpx2.AsyncClient) -> None:
    answer = await client.patch("cached/1")
    assert (answer.status_code, answer.json()) == (200, "mine")
    async with transaction() as db:
        assert (await (await db.connection()).execute(text("SELECT count(*) FROM cache_invalidation"))).scalar() == 0


@pytest.mark.parametrize("way", KEPT)
async def test_what_is_in_no_aborted_transaction_is_kept(client: httpx2.AsyncClient, way: Break) -> None:
    answer = await client.post(f"{way.__name__}/409")
    assert (answer.status_code, answer.json()) == (409, {"mine": way.__name__})
    before = [] if way is by_rollback else ["before"]
    assert await tier_names() == sorted([*before, "kept", "taken"])
    assert len(hooks) == (1 if way is by_rollback else 2)


async def test_requests_at_once_do_not_meet(client: httpx2.AsyncClient) -> None:
    ways = [by_flush, by_savepoint_in_savepoint, by_driver] * 4
    answers = await asyncio.gather(*(client.post(f"{way.__name__}/409") for way in ways[:3] * 1))
    assert [answer.status_code for answer in answers] == [409] * 3
    assert await tier_names() == ["before", "kept", "taken"]


# ---- Without a request: nobody has answered anything, so it is an error ----


@pytest.mark.parametrize("way", ABORTED)
async def test_a_transaction_of_a_script_says_that_nothing_was_written(app: FastAPI, way: Break) -> None:
    with pytest.raises(TransactionAborted, match="begin_nested"):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            after_commit(db, hook)
            await way(db)
    assert await tier_names() == ["taken"]
    assert hooks == []


@pytest.mark.parametrize("way", [by_flush, by_driver, by_statement])
async def test_a_commit_in_a_handler_says_so_too(app: FastAPI, way: Break) -> None:
    async with transaction() as db:
        after_commit(db, hook)
        await way(db)
        with pytest.raises(TransactionAborted):
            await db.commit()
        await db.rollback()
    assert hooks == []


@pytest.mark.parametrize("way", KEPT)
async def test_a_script_may_use_savepoints(app: FastAPI, way: Break) -> None:
    async with transaction() as db:
        await way(db)
    assert await tier_names() == ["kept", "taken"]
    assert hooks == ["ran"]


async def test_what_is_around_the_commit_is_left_with_the_error(app: FastAPI) -> None:
    seen: list[str] = []

    def around(db: AsyncSession) -> Any:
        @asynccontextmanager
        async def noting() -> AsyncIterator[None]:
            try:
                yield
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

        return noting()

    with pytest.raises(TransactionAborted):  # noqa: PT012 (the session ends there)
        async with transaction() as db:
            around_commit(db, around)
            await by_driver(db)
    assert seen == ["TransactionAborted"]


async def test_a_reading_session_that_is_one_transaction(settings: Settings) -> None:
    """As behind PgBouncer: its commit has nothing to write, and fails nobody."""
    engine = open_database(settings.model_copy(update={"POSTGRES_POOL_MODE": "transaction"}))
    try:
        for way in (by_other_error, by_driver):
            async with reading() as db:
                await way(db)
    finally:
        await close_database(engine)
