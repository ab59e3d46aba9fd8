"""A caller that is cancelled, at any await: its connection goes back to the pool, and what has to follow does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from time import perf_counter
from typing import Any

import asyncpg
import pytest
from anyio import CancelScope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.config import Settings
from app.core.db import sharing
from app.core.db.database import (
    after_rollback,
    begin_request,
    close_database,
    open_database,
    reading,
    transaction,
)
from app.core.db.outages import DatabaseUnavailable
from app.models.tier import Tier
from tests.core.db.test_around_commit import tier_names

pytestmark = pytest.mark.anyio

SELECT: Any = text("SELECT 1")


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = open_database(settings)
    begin_request()
    yield engine
    await close_database(engine)


def checked_out(engine: AsyncEngine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


async def until_free(engine: AsyncEngine) -> None:
    async with asyncio.timeout(3):
        while checked_out(engine):  # noqa: ASYNC110 -- of another task
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [transaction, reading])
@pytest.mark.parametrize("times", [1, 3])
async def test_while_it_waits_for_another_task(engine: AsyncEngine, kind: Any, times: int) -> None:
    begun, leaving, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def guest() -> None:
        async with reading() as db:
            await db.exec(SELECT)
            begun.set()
            await go_on.wait()

    async def caller() -> None:
        async with kind() as db:
            await db.exec(SELECT)
            guests.append(asyncio.create_task(guest()))
            await begun.wait()
            leaving.set()
            raise ZeroDivisionError

    guests: list[asyncio.Task[None]] = []
    task = asyncio.create_task(caller())
    await leaving.wait()
    for _ in range(times):
        await asyncio.sleep(0.01)
        task.cancel()
    with suppress(asyncio.CancelledError, ZeroDivisionError):
        await task
    go_on.set()
    await guests[0]
    await until_free(engine)


async def test_what_follows_a_rollback_is_done_when_every_await_is_cancelled(engine: AsyncEngine) -> None:
    """As in a scope of anyio, of a streamed answer, say."""
    done = asyncio.Event()

    async def clean_up() -> None:
        await asyncio.sleep(0)
        done.set()

    with CancelScope() as scope:
        async with transaction() as db:
            after_rollback(db, clean_up)
            await db.exec(SELECT)
            scope.cancel()
            await asyncio.sleep(1)
    async with asyncio.timeout(3):
        await done.wait()
    await until_free(engine)


async def test_a_commit_that_is_cancelled_may_be_made(
    engine: AsyncEngine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing is taken back that a row may refer to."""
    taken_back = []

    async def take_back() -> None:
        taken_back.append("file")

    with suppress(asyncio.CancelledError):
        async with transaction() as db:
            after_rollback(db, take_back)
            db.add(Tier(name="fine"))
            driver: Any = await (await db.connection()).get_raw_connection()
            execute = driver.driver_connection.execute

            async def commit_and_leave(query: str, *args: Any, **options: Any) -> str:
                status: str = await execute(query, *args, **options)
                if query == "COMMIT;":
                    raise asyncio.CancelledError
                return status

            monkeypatch.setattr(driver.driver_connection, "execute", commit_and_leave)
    assert await tier_names(settings) == ["fine"]
    await asyncio.sleep(0.05)
    assert taken_back == []


@pytest.mark.parametrize("kind", [transaction, reading])
async def test_a_task_that_never_ends_is_waited_for_once(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setattr(sharing, "MAX_WAIT", 0.5)
    begun = asyncio.Event()

    async def guest() -> None:
        async with reading() as db:
            await db.exec(SELECT)
            begun.set()
            await asyncio.sleep(3600)

    async with kind() as db:
        await db.exec(SELECT)
        task = asyncio.create_task(guest())
        await begun.wait()
        before = perf_counter()
    assert 0.4 < perf_counter() - before < 0.9
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await until_free(engine)


async def test_nobody_waits_for_a_first_statement_that_got_no_connection(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise OSError

    async def read() -> None:
        async with reading() as db:
            await db.exec(SELECT)

    async with transaction() as db:
        with monkeypatch.context() as away:
            away.setattr(asyncpg, "connect", fail)
            with pytest.raises(DatabaseUnavailable):
                await db.exec(SELECT)
        before = perf_counter()
        await asyncio.gather(read(), read())
        assert perf_counter() - before < sharing.MAX_WAIT / 2
