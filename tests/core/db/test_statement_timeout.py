"""A statement that takes too long is a problem of its own, and a block or a request can have another limit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import ReadingSessionDep, SessionDep
from app.core.config import Settings
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.db.engine import create_engine
from app.core.db.outages import (
    DatabaseUnavailable,
    LockTimeout,
    StatementTimeout,
    TransactionConflict,
    TransactionTimeout,
)
from app.core.db.statement_timeout import request_statement_timeout, statement_timeout
from app.core.setup import create_application
from app.crud.crud_users import crud_users
from app.models.tier import Tier
from tests.conftest import client_of, connect
from tests.postgres_topologies import pgbouncer_before

pytestmark = pytest.mark.anyio

LIMIT = 0.5  # seconds: the setting's
SLOW = 1.2  # seconds that a statement takes which is slower than that
LONG = 30  # seconds that no test waits for

Opener = Callable[[], AbstractAsyncContextManager[AsyncSession]]


async def ask(db: AsyncSession, statement: str) -> Any:
    return (await (await db.connection()).execute(text(statement))).scalar()


async def sleep(db: AsyncSession, seconds: float) -> None:
    await ask(db, f"SELECT pg_sleep({seconds})")


async def is_too_slow(db: AsyncSession) -> None:
    with pytest.raises(StatementTimeout):
        await sleep(db, SLOW)
    await db.rollback()


async def server_limit(db: AsyncSession) -> str:
    return str(await ask(db, "SHOW statement_timeout"))


@pytest.fixture(params=["session", "transaction"])
def limited(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """With a short limit, with and without a pooler that is told nothing about limits."""
    update = {"POSTGRES_STATEMENT_TIMEOUT_SECONDS": LIMIT, "POSTGRES_POOL_MODE": request.param, "POSTGRES_POOL_SIZE": 1}
    return settings.model_copy(update=update)


@pytest.fixture
async def engine(limited: Settings) -> AsyncIterator[AsyncEngine]:
    """One connection only: whoever leaves a limit in it leaves it to the next."""
    engine = open_database(limited)
    yield engine
    await close_database(engine)


async def use_early(db: SessionDep) -> None:
    """Begins the transaction before the route's own dependencies."""
    await ask(db, "SELECT 1")


@pytest.fixture
async def client(limited: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    router = APIRouter()
    longer, shorter = Depends(request_statement_timeout(LONG)), Depends(request_statement_timeout(0.2))

    async def slow(db: SessionDep, seconds: float = SLOW) -> str:
        await sleep(db, seconds)
        return await server_limit(db)

    async def slow_to_read(db: ReadingSessionDep, seconds: float = SLOW) -> str:
        await sleep(db, seconds)
        return await server_limit(db)

    async def slow_in_handler(seconds: float = SLOW) -> str:
        async with reading() as db:
            await sleep(db, seconds)
            await crud_users.look_up(db, "ada")
            return await server_limit(db)

    async def slow_stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with transaction() as db:
                await sleep(db, SLOW)
                yield "done"

        return StreamingResponse(lines())

    handlers: dict[str, Callable[..., Any]] = {"write": slow, "read": slow_to_read, "handler": slow_in_handler}
    handlers["stream"] = slow_stream
    for name, handler in handlers.items():
        router.get(f"/usual/{name}")(handler)
        router.get(f"/longer/{name}", dependencies=[longer])(handler)
        router.get(f"/shorter/{name}", dependencies=[longer, shorter])(handler)
        router.get(f"/late/{name}", dependencies=[Depends(use_early), longer])(handler)
    app = create_application(router, limited)
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


# ---- The setting ----


@pytest.mark.parametrize("how", ["write", "read", "handler"])
async def test_a_slow_statement_is_a_problem_of_its_own(client: httpx2.AsyncClient, how: str) -> None:
    answer = await client.get(f"usual/{how}")
    assert answer.status_code == 504
    assert answer.json()["type"] == "urn:problem-type:statement-timeout"
    assert "Retry-After" not in answer.headers
    assert (await client.get(f"usual/{how}?seconds=0")).status_code == 200


async def test_the_server_is_told_where_it_can_be(limited: Settings, engine: AsyncEngine) -> None:
    async with transaction() as db:
        expected = "500ms" if limited.POSTGRES_POOL_MODE == "session" else "0"
        assert await server_limit(db) == expected


# ---- A request ----


@pytest.mark.parametrize("how", ["write", "read", "handler"])
async def test_a_route_has_a_limit_of_its_own_and_leaves_it_to_nobody(client: httpx2.AsyncClient, how: str) -> None:
    answer = await client.get(f"longer/{how}")
    assert (answer.status_code, answer.json()) == (200, "30s")
    assert (await client.get(f"longer/{how}?seconds=0")).json() == "30s"
    usual = await client.get(f"usual/{how}?seconds=0")
    assert usual.json() in {"500ms", "0"}
    assert (await client.get(f"usual/{how}")).status_code == 504


async def test_the_innermost_dependency_counts(client: httpx2.AsyncClient) -> None:
    assert (await client.get("shorter/write?seconds=0")).json() == "200ms"
    assert (await client.get("shorter/write?seconds=0.3")).status_code == 504
    assert (await client.get("usual/write?seconds=0.3")).status_code == 200


async def test_a_transaction_that_had_begun_before_has_the_limit_too(client: httpx2.AsyncClient) -> None:
    answer = await client.get("late/write")
    assert (answer.status_code, answer.json()) == (200, "30s")


async def test_a_stream_keeps_the_limit_of_its_route(client: httpx2.AsyncClient) -> None:
    assert (await client.get("longer/stream")).text == "done"


async def test_requests_at_once_have_their_own_limits(limited: Settings, client: httpx2.AsyncClient) -> None:
    paths = ["longer/write?seconds=0", "usual/write?seconds=0", "shorter/write?seconds=0"] * 3
    answers = await asyncio.gather(*(client.get(path) for path in paths))
    usual = "500ms" if limited.POSTGRES_POOL_MODE == "session" else "0"
    assert [answer.json() for answer in answers] == ["30s", usual, "200ms"] * 3


# ---- A block ----


@pytest.mark.parametrize("opener", [transaction, reading])
async def test_a_block_has_a_limit_of_its_own_until_its_end(engine: AsyncEngine, opener: Opener) -> None:
    async with opener() as db:
        before = await server_limit(db)
        async with statement_timeout(db, LONG):
            assert await server_limit(db) == "30s"
            await sleep(db, SLOW)
            async with statement_timeout(db, None):
                assert await server_limit(db) == "0"
                await sleep(db, SLOW)
            assert await server_limit(db) == "30s"
        assert await server_limit(db) == before
        await is_too_slow(db)
    async with opener() as db:
        assert await server_limit(db) == before


@pytest.mark.parametrize("opener", [transaction, reading])
async def test_a_shorter_limit(engine: AsyncEngine, opener: Opener) -> None:
    with pytest.raises(StatementTimeout):
        async with opener() as db, statement_timeout(db, 0.1):
            await sleep(db, 0.4)
    async with opener() as db:
        await sleep(db, 0.2)


@pytest.mark.parametrize("opener", [transaction, reading])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_transaction_that_begins_within_the_block(engine: AsyncEngine, opener: Opener, end: str) -> None:
    async with opener() as db:
        before = await server_limit(db)
        async with statement_timeout(db, LONG):
            await getattr(db, end)()
            if opener is transaction:
                assert await server_limit(db) == "30s"
                await sleep(db, SLOW)
                await getattr(db, end)()
    async with opener() as db:
        assert await server_limit(db) == before
        await is_too_slow(db)


@pytest.mark.parametrize("opener", [transaction, reading])
async def test_a_block_that_fails_leaves_no_limit(engine: AsyncEngine, opener: Opener) -> None:
    async with opener() as db:
        before = await server_limit(db)
    with pytest.raises(DBAPIError):
        async with opener() as db, statement_timeout(db, LONG):
            await ask(db, "SELECT 1 / 0")
    with pytest.raises(ZeroDivisionError):
        async with opener() as db, statement_timeout(db, LONG):
            raise ZeroDivisionError
    leaving = asyncio.create_task(_leave_in_block(opener))
    await asyncio.sleep(0.3)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with opener() as db:
        assert await server_limit(db) == before


async def _leave_in_block(opener: Opener) -> None:
    async with opener() as db, statement_timeout(db, LONG):
        await sleep(db, LONG)


async def test_a_block_in_a_reading_session_that_is_part_of_a_transaction(engine: AsyncEngine) -> None:
    async with transaction() as db, statement_timeout(db, LONG):
        async with reading() as other, statement_timeout(other, 2 * LONG):
            assert await server_limit(other) == "1min"
        assert await server_limit(db) == f"{LONG}s"
        await sleep(db, SLOW)


async def test_a_block_in_a_savepoint(engine: AsyncEngine) -> None:
    async with transaction() as db:
        before = await server_limit(db)
        with pytest.raises(DBAPIError):
            async with db.begin_nested(), statement_timeout(db, LONG):
                await ask(db, "SELECT 1 / 0")
        assert await server_limit(db) == before
        await is_too_slow(db)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_a_limit_that_is_none_is_refused(engine: AsyncEngine, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        request_statement_timeout(seconds)
    async with transaction() as db:
        with pytest.raises(ValueError, match="above 0"):
            async with statement_timeout(db, seconds):
                raise AssertionError


async def test_an_engine_without_a_limit_takes_one(settings: Settings) -> None:
    """As a worker's."""
    engine = open_database(settings, time_limit=False)
    try:
        with pytest.raises(StatementTimeout):
            async with transaction() as db, statement_timeout(db, 0.2):
                await sleep(db, LONG)
        async with transaction() as db:
            assert await server_limit(db) == "0"
    finally:
        await close_database(engine)


async def test_any_other_session(settings: Settings) -> None:
    engine = create_engine(settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT_SECONDS": LIMIT}), pool_size=1)
    try:
        async with AsyncSession(engine) as db:
            async with statement_timeout(db, LONG):
                await sleep(db, SLOW)
            await is_too_slow(db)
    finally:
        await engine.dispose()


# ---- Other limits of PostgreSQL ----


async def test_the_limit_of_a_role(settings: Settings) -> None:
    """What PgBouncer has no part in."""
    shared = settings.model_copy(update={"POSTGRES_POOL_MODE": "transaction"})
    connection = await connect(settings.POSTGRES_DB)
    await connection.execute(f"ALTER DATABASE {settings.POSTGRES_DB} SET statement_timeout = '200ms'")
    await connection.close()
    engine = open_database(shared)
    try:
        with pytest.raises(StatementTimeout):
            async with reading() as db:
                await sleep(db, LONG)
        async with transaction() as db, statement_timeout(db, LONG):
            await sleep(db, 0.4)
    finally:
        await close_database(engine)


async def test_a_cancelled_statement(engine: AsyncEngine) -> None:
    with pytest.raises(StatementTimeout):
        async with transaction() as db:
            await ask(db, "SELECT pg_cancel_backend(pg_backend_pid())")


@pytest.mark.parametrize("statement", ["SET LOCAL lock_timeout = '100ms'; {}", "{} NOWAIT"])
async def test_a_lock_that_is_not_to_be_had(settings: Settings, statement: str) -> None:
    engine = open_database(settings)
    lock = "SELECT id FROM tier WHERE name = 'locked' FOR UPDATE"
    try:
        async with transaction() as db:
            db.add(Tier(name="locked"))
        async with transaction() as db:
            await ask(db, lock)
            with pytest.raises(LockTimeout):  # noqa: PT012 (the session ends there)
                async with transaction() as other:
                    for part in statement.format(lock).split(";"):
                        await (await other.connection()).execute(text(part))
    finally:
        await close_database(engine)


async def test_a_transaction_that_takes_too_long(settings: Settings) -> None:
    engine = open_database(settings)
    try:
        with pytest.raises(TransactionTimeout):  # noqa: PT012 (the session ends there)
            async with transaction() as db:
                await (await db.connection()).execute(text("SET LOCAL transaction_timeout = '200ms'"))
                await sleep(db, LONG)
        with pytest.raises(DatabaseUnavailable):  # noqa: PT012 (the reason does not arrive)
            async with transaction() as db:
                await (await db.connection()).execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
                await asyncio.sleep(0.5)
                await sleep(db, 0)
    finally:
        await close_database(engine)


async def test_a_serialization_failure(settings: Settings) -> None:
    engine = open_database(settings)
    write = "UPDATE tier SET name = name || '!'"
    try:
        async with transaction() as db:
            db.add(Tier(name="a"))
        with pytest.raises(TransactionConflict):  # noqa: PT012 (the session ends there)
            async with transaction() as db:
                await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
                await ask(db, "SELECT count(*) FROM tier")
                async with transaction() as other:
                    await (await other.connection()).execute(text(write))
                await (await db.connection()).execute(text(write))
    finally:
        await close_database(engine)


async def test_behind_pgbouncer(settings: Settings) -> None:
    with pgbouncer_before(settings.POSTGRES_PORT) as port:
        update = {"POSTGRES_STATEMENT_TIMEOUT_SECONDS": LIMIT, "POSTGRES_POOL_MODE": "transaction"}
        engine = open_database(settings.model_copy(update=update | {"POSTGRES_PORT": port}))
        try:
            for opener in (transaction, reading):
                with pytest.raises(StatementTimeout):
                    async with opener() as db:
                        await sleep(db, LONG)
                async with opener() as db, statement_timeout(db, LONG):
                    await sleep(db, SLOW)
                    assert await server_limit(db) == "30s"
            for _ in range(20):  # PgBouncer's own connections have no limit left in them.
                async with transaction() as db:
                    assert await server_limit(db) == "0"
        finally:
            await close_database(engine)
