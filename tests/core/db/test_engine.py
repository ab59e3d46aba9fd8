"""A server that says nothing any more, and one that is slow: nobody waits for either, and no statement is left there.

The proxy is that of `make chaos`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from chaos.proxy import HOST, Fault, FaultProxy
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db import engine
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.db.outages import DatabaseUnavailable, StatementTimeout
from scripts.embedded import free_port
from tests.conftest import connect

pytestmark = pytest.mark.anyio

LIMIT = 2.0  # seconds for a statement
HANG = 0.2  # seconds in which the server has to have stopped it by itself
CLOSE = 0.2  # seconds for the closing of its connection
BUSY = 1.2  # seconds for which a machine may be busy with other tests: less than SQLAlchemy would wait

Opener = Callable[[], AbstractAsyncContextManager[AsyncSession]]


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CLOSE_TIMEOUT", CLOSE)
    monkeypatch.setattr(engine, "HANG_TIMEOUT", HANG)


def limited(settings: Settings, seconds: float) -> Settings:
    return settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT_SECONDS": seconds})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[None]:
    pools = open_database(settings)
    try:
        yield
    finally:
        await close_database(pools)


async def ask(db: AsyncSession, statement: str) -> Any:
    return (await (await db.connection()).execute(text(statement))).scalar()


@pytest.mark.usefixtures("_short")
async def test_a_server_that_hangs_is_an_outage_as_soon_as_the_statement_has_had_its_time(settings: Settings) -> None:
    hangs, ready = asyncio.Event(), asyncio.Barrier(4)

    async def first_statement(opener: Opener) -> None:
        async with opener() as db:
            await ready.wait()
            await hangs.wait()
            await ask(db, "SELECT 1")

    async def commit() -> None:
        async with transaction() as db:
            await ask(db, "SELECT 1")
            await ready.wait()
            await hangs.wait()

    async def seconds_of(question: asyncio.Task[None]) -> float:
        with pytest.raises(DatabaseUnavailable):
            await question
        return time.monotonic() - since

    async with FaultProxy(free_port(), settings.POSTGRES_PORT) as proxy:
        behind_it = limited(settings, LIMIT).model_copy(update={"POSTGRES_SERVER": HOST, "POSTGRES_PORT": proxy.port})
        async with opened(behind_it):
            await _fill_the_pool(3)
            work = (first_statement(reading), first_statement(transaction), commit())
            questions = [asyncio.create_task(one) for one in work]
            await ready.wait()
            await proxy.switch(Fault.HANG)
            since = time.monotonic()
            hangs.set()
            waited = await asyncio.gather(*map(seconds_of, questions))
            await proxy.switch(Fault.NONE)
            async with transaction() as db:
                assert await ask(db, "SELECT 1") == 1
    assert min(waited) >= LIMIT * 0.9
    assert max(waited) < LIMIT + HANG + CLOSE + BUSY


async def test_the_server_has_a_limit_too_where_there_is_one(settings: Settings) -> None:
    for is_limited, expected in ((True, "5s"), (False, "0")):
        pools = open_database(settings, time_limit=is_limited)
        try:
            async with reading() as db:
                assert await ask(db, "SHOW statement_timeout") == expected
        finally:
            await close_database(pools)


async def _fill_the_pool(connections: int) -> None:
    """So that nobody has to connect, which has a time limit of its own."""
    together = asyncio.Barrier(connections)

    async def hold() -> None:
        async with transaction() as db:
            await ask(db, "SELECT 1")
            await together.wait()

    await asyncio.gather(*(hold() for _ in range(connections)))


@pytest.mark.parametrize("opener", [transaction, reading])
async def test_a_statement_that_took_too_long_is_not_left_to_the_server(settings: Settings, opener: Opener) -> None:
    async with opened(limited(settings, 0.3)):
        with pytest.raises(StatementTimeout):
            async with opener() as db:
                await ask(db, "SELECT pg_sleep(100)")
    look = await connect(settings.POSTGRES_DB)
    try:
        at_it = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND datname = $1"
        async with asyncio.timeout(20):
            while await look.fetchval(at_it, settings.POSTGRES_DB):  # noqa: ASYNC110 -- it asks the server
                await asyncio.sleep(0.05)
    finally:
        await look.close()
