"""One request, one transaction: committed before the answer starts, rolled back on any error."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.db import engine
from app.core.db.database import after_commit, async_get_db, close_database, open_database, reading
from app.core.db.models import utc_now
from app.core.db.outages import (
    DatabaseUnavailable,
    LockTimeout,
    StatementTimeout,
    TransactionConflict,
    TransactionTimeout,
)
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.models.tier import Tier
from tests.conftest import client_of, connect, opened_session
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio


class KeptConflict(Conflict):
    keeps_changes = True


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A small app whose routes end their transaction in every way there is."""
    router = APIRouter()

    @router.post("/fine")
    async def fine(db: SessionDep) -> None:
        db.add(Tier(name="fine"))

    @router.post("/refused")
    async def refused(db: SessionDep) -> None:
        db.add(Tier(name="refused"))
        await db.flush()
        raise Conflict

    @router.post("/kept")
    async def kept(db: SessionDep) -> None:
        db.add(Tier(name="kept"))
        raise KeptConflict

    @router.post("/crashed")
    async def crashed(db: SessionDep) -> None:
        db.add(Tier(name="crashed"))
        await db.flush()
        raise ZeroDivisionError

    @router.post("/unserialisable", response_model=int)
    async def unserialisable(db: SessionDep) -> Any:
        db.add(Tier(name="unserialisable"))
        return "not an int"

    @router.post("/commit-fails")
    async def commit_fails(db: SessionDep) -> str:
        await db.exec(text("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"))  # type: ignore[call-overload]
        await db.exec(text("INSERT INTO late VALUES (1), (1)"))  # type: ignore[call-overload]
        return "created"  # Nothing is wrong until COMMIT checks the deferred constraint.

    app = create_application(router, settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def tier_names() -> list[str]:
    async with asynccontextmanager(async_get_db)() as db:
        return list(await db.exec(select(Tier.name)))


async def test_success_is_committed(client: httpx2.AsyncClient) -> None:
    assert (await client.post("fine")).status_code == 200
    assert await tier_names() == ["fine"]


@pytest.mark.parametrize(("path", "status"), [("refused", 409), ("crashed", 500), ("unserialisable", 500)])
async def test_any_error_is_rolled_back(client: httpx2.AsyncClient, path: str, status: int) -> None:
    assert (await client.post(path)).status_code == status
    assert await tier_names() == []


async def test_a_failed_commit_is_never_answered_as_a_success(client: httpx2.AsyncClient) -> None:
    answer = await client.post("commit-fails")
    assert answer.status_code == 409
    assert "created" not in answer.text


async def test_a_statement_that_takes_too_long_is_a_timeout(settings: Settings) -> None:
    with pytest.raises(StatementTimeout):
        async with opened_session(settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT_SECONDS": 0.2})) as db:
            await db.exec(text("SELECT pg_sleep(5)"))  # type: ignore[call-overload]


async def test_a_request_that_gets_no_connection_is_told_to_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 0.1)
    small = settings.model_copy(update={"POSTGRES_POOL_SIZE": 1})
    async with opened_session(small) as db:
        await db.exec(select(1))
        with pytest.raises(DatabaseUnavailable):
            async with asynccontextmanager(async_get_db)() as other:
                await other.exec(select(1))


async def test_a_deadlock_is_a_conflict_of_one_of_the_two(settings: Settings) -> None:
    """Of two that wait for each other PostgreSQL ends one, which may try again."""
    async with opened_session(settings) as db:
        db.add_all([Tier(name="a"), Tier(name="b")])

    async def rename(first: str, second: str, barrier: asyncio.Barrier) -> None:
        async with asynccontextmanager(async_get_db)() as db:
            await db.exec(update(Tier).where(col(Tier.name) == first).values(updated_at=utc_now()))
            await barrier.wait()
            await db.exec(update(Tier).where(col(Tier.name) == second).values(updated_at=utc_now()))

    engine = open_database(settings)
    barrier = asyncio.Barrier(2)
    outcomes = await asyncio.gather(rename("a", "b", barrier), rename("b", "a", barrier), return_exceptions=True)
    await close_database(engine)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "TransactionConflict"]


@pytest.mark.parametrize(
    ("sqlstate", "problem"),
    [
        ("08006", DatabaseUnavailable),
        ("53300", DatabaseUnavailable),
        ("57P01", DatabaseUnavailable),
        ("40001", TransactionConflict),
        ("40P01", TransactionConflict),
        ("57014", StatementTimeout),
        ("55P03", LockTimeout),
        ("25P04", TransactionTimeout),
    ],
)
async def test_what_says_not_now_is_no_error_of_ours(
    settings: Settings, sqlstate: str, problem: type[DatabaseUnavailable]
) -> None:
    with pytest.raises(problem):
        async with opened_session(settings) as db:
            await db.exec(text(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$"))  # type: ignore[call-overload]


async def test_a_question_outside_of_a_transaction_is_one_statement_and_its_outage_is_one_too(
    settings: Settings,
) -> None:
    engine = open_database(settings)
    try:
        with counted_statements() as statements:
            async with reading() as db:
                assert not (await db.connection()).sync_connection.connection.driver_connection.is_in_transaction()  # type: ignore[union-attr]
                assert (await db.exec(select(Tier))).all() == []
        assert len(statements) == 1
        with pytest.raises(DatabaseUnavailable):
            async with reading() as db:
                await db.exec(text("DO $$ BEGIN RAISE SQLSTATE '57P01'; END $$"))  # type: ignore[call-overload]
    finally:
        await close_database(engine)
    with pytest.raises(RuntimeError, match="not open"):
        async with reading():
            raise AssertionError


async def test_an_error_can_keep_what_was_written(client: httpx2.AsyncClient) -> None:
    assert (await client.post("kept")).status_code == 409
    assert await tier_names() == ["kept"]


async def test_what_is_to_follow_the_commit_does_and_only_then(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[list[str]] = []

    async def note() -> None:
        done.append(await tier_names())

    async def fail() -> None:
        raise LookupError("the mail server is away")

    async with opened_session(settings) as db:
        db.add(Tier(name="first"))
        for action in (note, fail, note):
            after_commit(db, action)
        assert done == []
    assert done == [["first"], ["first"]]
    assert "the mail server is away" in capsys.readouterr().out

    with pytest.raises(Conflict):  # noqa: PT012  (the session ends there)
        async with opened_session(settings) as db:
            after_commit(db, note)
            raise Conflict
    assert len(done) == 2


async def test_a_connection_that_was_closed_while_idle_fails_no_request(settings: Settings) -> None:
    async with opened_session(settings) as db:
        await db.exec(select(1))
        await db.commit()
        await _end_idle_connections(settings)
        assert (await db.exec(select(1))).one() == 1


async def _end_idle_connections(settings: Settings) -> None:
    connection = await connect(settings.POSTGRES_DB)
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
    await asyncio.sleep(0.05)  # The end has to arrive.


async def test_a_table_that_was_altered_meanwhile_is_asked_anew(settings: Settings) -> None:
    """As during a rollout: the new release has migrated, and this one still runs with its prepared statements."""
    async with opened_session(settings) as db:
        await db.exec(select(Tier))
        await db.commit()
        connection = await connect(settings.POSTGRES_DB)
        await connection.execute("ALTER TABLE tier ALTER name TYPE varchar(60)")
        await connection.close()
        with pytest.raises(DatabaseUnavailable):
            await db.exec(select(Tier))
        await db.rollback()
        assert (await db.exec(select(Tier))).all() == []


async def test_errors_do_not_show_the_values(settings: Settings) -> None:
    with pytest.raises(DBAPIError) as error:  # noqa: PT012  (the session flushes where it ends)
        async with opened_session(settings) as db:
            db.add(Tier(name="hunter2" * 20))
            await db.flush()
    assert "hunter2" not in str(error.value)
