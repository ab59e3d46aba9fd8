"""Liveness asks nobody; readiness asks everybody, and knows who it can do without."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from sqlmodel import select
from structlog.testing import capture_logs

from app.api import build_router
from app.core.config import Settings, get_settings
from app.core.db.database import async_get_db
from app.core.setup import create_application
from scripts.embedded import Valkey, free_port
from tests.conftest import client_of, connect, opened_session
from tests.helper import create_user, signed_in, silent_server

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


@pytest.fixture
def nothing_there(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose every service is a closed port."""
    for name in ("POSTGRES_PORT", "REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT"):
        monkeypatch.setenv(name, str(free_port()))
    return Settings(POSTGRES_SERVER="127.0.0.1")


async def test_with_everything_there_it_is_ready(client: httpx2.AsyncClient) -> None:
    answer = await client.get("ready")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    assert set(answer.json()["dependencies"].values()) == {"up"}
    assert answer.headers["Cache-Control"] == "no-store"


async def test_with_nothing_there_it_lives_but_is_not_ready(nothing_there: Settings) -> None:
    async with running(nothing_there) as client:
        alive = await client.get("health")
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        assert alive.headers["Cache-Control"] == "no-store"

        ready = await client.get("ready")
        assert ready.status_code == 503
        assert ready.headers["Retry-After"]
        assert ready.json()["type"] == "urn:problem-type:not-ready"
        assert set(ready.json()["dependencies"].values()) == {"down"}


async def test_without_valkey_it_is_degraded_and_still_of_use(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
        monkeypatch.setenv(f"REDIS_{use}_PORT", str(free_port()))
    async with running(Settings()) as client:
        answer = await client.get("ready")
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "degraded",
            "dependencies": {
                "postgres": "up",
                "schema": "up",
                "redis_cache": "down",
                "redis_rate_limit": "down",
                "redis_queue": "down",
            },
        }
        assert (await client.get("tiers")).status_code == 200
        enqueued = await client.post("tasks/task", params={"message": "hello"})
        assert enqueued.status_code == 201
        assert (await client.get(f"tasks/task/{enqueued.json()['id']}")).json()["status"] == "queued"


async def test_a_hanging_dependency_counts_as_down(database: str, valkey: Valkey) -> None:
    async with silent_server() as port, running(Settings(POSTGRES_PORT=port)) as client:
        answer = await client.get("ready")
        assert answer.status_code == 503
        assert answer.json()["dependencies"]["postgres"] == "down"


async def test_a_busy_pool_is_no_reason_to_be_taken_out(database: str, valkey: Valkey) -> None:
    small = Settings(POSTGRES_POOL_SIZE=1)
    async with running(small) as client, asynccontextmanager(async_get_db)() as db:
        await db.exec(select(1))  # Holds the only connection.
        assert (await client.get("ready")).json()["status"] == "ready"


ABOUT_AN_OUTAGE = {"dependency down", "refused"}


async def test_the_log_says_why_a_dependency_is_down(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Settings(POSTGRES_PASSWORD="wrong")) as client:
        with capture_logs() as lines:
            assert (await client.get("ready")).status_code == 503
            assert (await client.get("tiers")).status_code == 503
    causes = [str(line.get("error") or line.get("cause")) for line in lines if line["event"] in ABOUT_AN_OUTAGE]
    assert len(causes) == 4  # Two checks, the answer of /ready, and that of /tiers.
    assert sum("password authentication failed" in cause for cause in causes) == 3, causes


async def test_an_unmigrated_database_is_behind(empty_database: str, valkey: Valkey) -> None:
    async with running(get_settings()) as client:
        answer = await client.get("ready")
    assert answer.status_code == 503
    assert answer.json()["dependencies"]["schema"] == "behind"


@pytest.mark.parametrize(("version", "status"), [("", 503), ("from_the_future", 200)])
async def test_an_older_schema_is_behind_and_a_newer_one_is_not(
    client: httpx2.AsyncClient, database: str, version: str, status: int
) -> None:
    connection = await connect(database)
    await connection.execute("DELETE FROM alembic_version")
    if version:  # what a newer release, which this one knows nothing of, has left there
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", version)
    await connection.close()
    assert (await client.get("ready")).status_code == status


async def test_a_hanging_queue_holds_no_database_connection(
    database: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as silent:
        monkeypatch.setenv("REDIS_QUEUE_PORT", str(silent.sockets[0].getsockname()[1]))
        small = Settings(POSTGRES_POOL_SIZE=1)
        async with opened_session(small) as db:
            headers = signed_in(await create_user(db), small)
        async with running(small) as client:
            waiting = [
                asyncio.create_task(client.post("tasks/task", params={"message": "hello"}, headers=headers))
                for _ in range(5)
            ]
            answers = [await client.get("tiers"), *await asyncio.gather(*waiting)]
            assert [answer.status_code for answer in answers] == [200] + 5 * [201]
            read = await client.get(f"tasks/task/{answers[1].json()['id']}", headers=headers)
            assert read.json()["status"] == "queued"
