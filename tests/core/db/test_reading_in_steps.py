"""`reading()` keeps its promise, each statement a transaction of its own, also where it takes one for all of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.database import async_get_db, begin_request, close_database, open_database, reading, transaction
from app.core.db.outages import TransactionAborted
from app.core.db.timeouts import set_request_limit
from app.models.tier import Tier
from tests.core.db.test_around_commit import tier_names

pytestmark = pytest.mark.anyio

INSERT: Any = text("INSERT INTO tier (name) VALUES ('kept')")


@pytest.fixture(params=["autocommit", "pgbouncer", "limited"])
async def opened(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    mode = "transaction" if request.param == "pgbouncer" else "session"
    engine = open_database(settings.model_copy(update={"POSTGRES_POOL_MODE": mode}))
    begin_request()
    if request.param == "limited":
        set_request_limit(5.0)
    yield
    set_request_limit(None)
    await close_database(engine)


async def test_what_it_wrote_stays_when_its_user_fails(opened: None, settings: Settings) -> None:
    with suppress(ZeroDivisionError):
        async with reading() as db:
            await (await db.connection()).execute(INSERT)
            raise ZeroDivisionError
    assert await tier_names(settings) == ["kept"]


@pytest.mark.filterwarnings("ignore:transaction already deassociated")
async def test_a_flush_that_fails_aborts_the_transaction_that_it_is_part_of(opened: None, settings: Settings) -> None:
    async def fail(caller: AsyncSession) -> None:
        caller.add(Tier(name="first"))
        await caller.flush()
        async with reading() as db:
            db.add(Tier(name="first"))
            with pytest.raises(SQLAlchemyError):
                await db.flush()

    request = asynccontextmanager(async_get_db)
    async with request() as caller:
        await fail(caller)
    with pytest.raises(TransactionAborted):
        async with transaction() as caller:
            await fail(caller)
    assert await tier_names(settings) == []
    async with transaction() as caller:
        await fail(caller)
        await caller.rollback()
        caller.add(Tier(name="third"))
    assert await tier_names(settings) == ["third"]


async def test_a_commit_past_the_session_stays_an_error(opened: None, settings: Settings) -> None:
    """The actions after the commit would be left out without a word."""
    request = asynccontextmanager(async_get_db)
    with pytest.raises(InvalidRequestError):  # noqa: PT012 (the session ends there)
        async with request() as db:
            connection = await db.connection()
            await connection.execute(INSERT)
            await connection.commit()
