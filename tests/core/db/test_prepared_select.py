"""Statements on the driver's own connection: the same results as in a session, and the pool is whole in each case."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Integer, bindparam, func, inspect, literal, text
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import col, select

from app.core.config import Settings
from app.core.db import engine as engine_module
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.db.outages import DatabaseUnavailable, StatementTimeout
from app.core.db.prepared_select import PreparedSelect
from app.crud.crud_users import crud_users
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User
from tests.helper import counted_statements, create_user

pytestmark = pytest.mark.anyio

LOGINS: PreparedSelect[LoginSession] = PreparedSelect(
    select(LoginSession).where(
        col(LoginSession.kind) == bindparam("kind"),
        col(LoginSession.expires_at) > bindparam("now"),
        col(LoginSession.revoked_at).is_(None),
    )
)
SLEEP: PreparedSelect[tuple[None, str]] = PreparedSelect(
    select(func.pg_sleep(bindparam("seconds")), literal("slept").label("what"))
)
RATIO: PreparedSelect[int] = PreparedSelect(
    select(func.div(1, bindparam("by", type_=Integer()), type_=Integer()).label("ratio"))
)
POOL = 3


@pytest.fixture
async def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    monkeypatch.setattr(engine_module, "POOL_TIMEOUT", 0.2)
    limited = settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT_SECONDS": 1.0})
    opened = open_database(limited, pool_size=POOL)
    yield opened
    await close_database(opened)


def lent(engine: AsyncEngine) -> int:
    """How many connections somebody has."""
    return int(engine.sync_engine.pool.checkedout())  # type: ignore[attr-defined]  # a QueuePool has it


async def ask(statement: PreparedSelect[Any], **values: object) -> list[Any]:
    async with reading() as db:
        return await statement.all(db, **values)


async def ask_behind_pgbouncer(settings: Settings, statement: PreparedSelect[Any], **values: object) -> list[Any]:
    shared = open_database(settings.model_copy(update={"POSTGRES_POOL_MODE": "transaction"}), pool_size=1)
    try:
        return await ask(statement, **values)
    finally:
        await close_database(shared)


async def test_it_finds_what_a_session_finds(settings: Settings, engine: AsyncEngine) -> None:
    async with transaction() as db:
        user = await create_user(db)
        await create_user(db)
    now = datetime.now(UTC)
    async with transaction() as db:
        in_transaction = await LOGINS.all(db, kind=LoginKind.API, now=now)
        by_session = list((await db.exec(select(LoginSession))).all())
    direct = await ask(LOGINS, kind=LoginKind.API, now=now)
    assert [row.model_dump() for row in direct] == [row.model_dump() for row in by_session]
    assert direct == in_transaction == by_session
    assert {row.user_id for row in direct} > {user.id}
    assert all(row.expires_at.tzinfo is UTC for row in direct)
    assert await ask(LOGINS, kind=LoginKind.CONSOLE, now=now) == []
    async with reading() as db:
        assert await LOGINS.first(db, kind=LoginKind.CONSOLE, now=now) is None
    assert await ask_behind_pgbouncer(settings, LOGINS, kind=LoginKind.API, now=now) == by_session


async def test_a_detached_row_is_as_a_closed_session_leaves_it(engine: AsyncEngine) -> None:
    async with transaction() as db:
        name = (await create_user(db, profile_image_url="https://example.com/me.png")).username
    async with reading() as db:
        by_session = await crud_users.get_by_username(db, name)
    async with reading() as db:
        direct = await crud_users.look_up(db, name)
    assert direct is not None
    assert by_session is not None
    assert direct == by_session
    assert inspect(direct).detached
    assert inspect(direct).identity == inspect(by_session).identity
    assert not inspect(direct).modified
    async with transaction() as db:
        merged = await db.merge(direct)
        merged.name = "Another"
    async with reading() as db:
        changed = await crud_users.look_up(db, name)
    assert changed is not None
    assert (changed.name, direct.name) == ("Another", "A Person")


async def test_in_a_transaction_the_result_is_detached_and_the_callers_row_is_not(engine: AsyncEngine) -> None:
    async with transaction() as db:
        user = await create_user(db)
        found = await crud_users.look_up(db, user.username)
        assert inspect(found).detached
        assert inspect(user).persistent


@pytest.mark.parametrize(
    "change", ["ADD COLUMN more text", "ALTER COLUMN name TYPE text", "ALTER COLUMN id TYPE bigint"]
)
async def test_a_table_that_is_altered_meanwhile(engine: AsyncEngine, change: str) -> None:
    async with transaction() as db:
        name = (await create_user(db)).username
    async with reading() as db:
        assert await crud_users.look_up(db, name) is not None
    async with transaction() as db:
        await (await db.connection()).execute(text(f'ALTER TABLE "user" {change}'))
    async with reading() as db:
        assert await crud_users.look_up(db, name) is not None
    assert lent(engine) == 0


async def test_in_a_session_it_sees_what_that_has_changed(engine: AsyncEngine) -> None:
    async with transaction() as db:
        user = await create_user(db)
        user.name = "Another"
        found = await crud_users.look_up(db, user.username)
        assert found is not None
        assert found.name == "Another"


async def test_no_value_is_made_up(engine: AsyncEngine) -> None:
    with pytest.raises(StatementError, match="by"):
        await ask(RATIO)
    assert lent(engine) == 0


async def test_nobody_gets_a_connection_with_something_left_in_it(engine: AsyncEngine) -> None:
    for _ in range(POOL + 1):
        with pytest.raises(DBAPIError, match="division by zero"):
            await ask(RATIO, by=0)
        with pytest.raises(DBAPIError, match="invalid input"):
            await ask(RATIO, by="no number")
    assert lent(engine) == 0
    assert await ask(RATIO, by=1) == [1]


async def test_too_slow_a_statement_is_a_timeout(engine: AsyncEngine) -> None:
    for _ in range(POOL + 1):
        with pytest.raises(StatementTimeout):
            await ask(SLEEP, seconds=30)
    assert lent(engine) == 0
    assert await ask(SLEEP, seconds=0) == [(None, "slept")]
    await until_the_server_is_done()


async def test_who_leaves_takes_the_connection_along(engine: AsyncEngine) -> None:
    for _ in range(POOL + 1):
        leaving = asyncio.create_task(ask(SLEEP, seconds=30))
        await until_lent(engine, 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert lent(engine) == 0
    assert await ask(SLEEP, seconds=0) == [(None, "slept")]
    await until_the_server_is_done()


async def test_who_leaves_twice(engine: AsyncEngine) -> None:
    leaving = asyncio.create_task(ask(SLEEP, seconds=30))
    await until_lent(engine, 1)
    leaving.cancel()
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(10):
        while lent(engine):  # noqa: ASYNC110 -- a pool has no event
            await asyncio.sleep(0.01)
    await until_the_server_is_done()


async def test_no_connection_is_free(engine: AsyncEngine) -> None:
    others = [asyncio.create_task(ask(SLEEP, seconds=0.8)) for _ in range(POOL)]
    await until_lent(engine, POOL)
    with pytest.raises(DatabaseUnavailable):
        await ask(RATIO, by=1)
    assert len(await asyncio.gather(*others)) == POOL
    assert await ask(RATIO, by=1) == [1]


async def test_the_server_has_ended_it(engine: AsyncEngine) -> None:
    end = PreparedSelect(select(func.pg_terminate_backend(func.pg_backend_pid()).label("ended")))
    with pytest.raises(DatabaseUnavailable):
        await ask(end)
    assert await ask(RATIO, by=1) == [1]
    async with transaction() as db:  # while it was idle
        await (await db.connection()).execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )
        )
    assert await ask(RATIO, by=1) == [1]


async def test_one_session_never_holds_two_connections(engine: AsyncEngine) -> None:
    """Of many that hold one and wait for another, none would get it."""

    async def two_statements() -> list[int]:
        async with reading() as db:
            await db.exec(select(User).where(col(User.uuid) == uuid4()))
            return await RATIO.all(db, by=1)

    assert await asyncio.gather(*(two_statements() for _ in range(4 * POOL))) == [[1]] * (4 * POOL)


async def test_it_counts_as_a_statement(engine: AsyncEngine) -> None:
    with counted_statements() as statements:
        await ask(RATIO, by=1)
        async with transaction() as db:
            await RATIO.all(db, by=1)
    assert len(statements) == 2


async def until_lent(engine: AsyncEngine, connections: int) -> None:
    async with asyncio.timeout(10):
        while lent(engine) < connections:  # noqa: ASYNC110 -- a pool has no event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # until the statement is under way


async def until_the_server_is_done() -> None:
    """Returns once no statement that sleeps is left there."""
    sleeping = text(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        " AND datname = current_database()"
    )
    async with asyncio.timeout(10), reading() as db:
        while await (await db.connection()).scalar(sleeping):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.05)
