"""A settings group switches its feature: with it the feature is there, without it nothing of it is."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from arq.jobs import Job as ArqOwnJob
from arq.jobs import JobStatus
from arq.worker import func
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import iter_route_contexts

from app.api import build_router
from app.api.dependencies import get_current_superuser, limit_rate
from app.core.config import (
    AppSettings,
    ClientSideCacheSettings,
    ConsoleSettings,
    CORSSettings,
    CryptSettings,
    DefaultRateLimitSettings,
    EnvironmentSettings,
    FirstTierSettings,
    FirstUserSettings,
    MetricsSettings,
    PostgresSettings,
    ProxySettings,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    Settings,
    SettingsGroup,
    SMTPSettings,
    StorageSettings,
    TracingSettings,
    get_settings,
)
from app.core.db import database
from app.core.setup import create_application
from app.core.utils import queue
from app.core.worker import worker as worker_module
from app.core.worker.worker import DurableWorker
from tests.conftest import client_of
from tests.helper import create_superuser, create_user, signed_in

pytestmark = pytest.mark.anyio

GROUPS: tuple[type[SettingsGroup], ...] = (
    AppSettings,
    CryptSettings,
    PostgresSettings,
    FirstUserSettings,
    FirstTierSettings,
    RedisCacheSettings,
    ClientSideCacheSettings,
    CORSSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    DefaultRateLimitSettings,
    ProxySettings,
    SMTPSettings,
    StorageSettings,
    MetricsSettings,
    TracingSettings,
    ConsoleSettings,
    EnvironmentSettings,
)


def without(*left_out: type[SettingsGroup]) -> SettingsGroup:
    """Settings as a user writes them who leaves groups out of `class Settings(...)`."""
    chosen = tuple(group for group in GROUPS if group not in left_out)
    settings: SettingsGroup = type("Settings", chosen, {})()
    return settings


@asynccontextmanager
async def running(settings: SettingsGroup, **kwargs: Any) -> AsyncIterator[tuple[FastAPI, httpx2.AsyncClient]]:
    app = create_application(build_router(settings), settings, **kwargs)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield app, client


def paths_of(app: FastAPI) -> set[str]:
    return {str(route.path) for route in iter_route_contexts(app.routes)}


async def dependencies(client: httpx2.AsyncClient) -> set[str]:
    return set((await client.get("ready")).json()["dependencies"])


async def test_everything_is_there_with_all_groups(settings: Settings) -> None:
    async with running(without()) as (app, client):
        assert await dependencies(client) == {"postgres", "schema", "redis_cache", "redis_rate_limit", "redis_queue"}
        assert {"/api/v1/login", "/api/v1/users", "/api/v1/tasks/task", "/docs"} <= paths_of(app)


async def test_without_postgres_there_is_no_engine_and_nothing_that_needs_one(settings: Settings) -> None:
    async with running(without(PostgresSettings)) as (app, client):
        assert await dependencies(client) == {"redis_cache", "redis_rate_limit", "redis_queue"}
        assert {path for path in paths_of(app) if path.startswith("/api")} == {"/api/v1/health", "/api/v1/ready"}
        with pytest.raises(RuntimeError, match="not open"):
            await anext(database.async_get_db())


async def test_without_crypt_nobody_can_sign_in(settings: Settings) -> None:
    async with running(without(CryptSettings)) as (app, client):
        assert (await client.post("login", data={"username": "a", "password": "b"})).status_code == 404
        assert "/api/v1/users" not in paths_of(app)


async def test_without_storage_there_are_no_uploads(settings: Settings) -> None:
    async with running(without(StorageSettings)) as (app, client):
        assert not hasattr(app.state, "storage")
        assert not [path for path in paths_of(app) if "media" in path or "image" in path]
        assert (await client.get("users")).status_code == 200


async def test_without_a_queue_there_are_no_tasks(settings: Settings) -> None:
    async with running(without(RedisQueueSettings)) as (app, client):
        assert "redis_queue" not in await dependencies(client)
        assert not [path for path in paths_of(app) if "task" in path]
        assert "/api/v1/users" in paths_of(app)


async def test_without_redis_nobody_can_be_noted_and_the_replica_is_not_asked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_READ_URL", "postgresql://nobody@127.0.0.1:1/none")
    async with running(without(RedisCacheSettings, RedisQueueSettings, RedisRateLimiterSettings)) as (_, client):
        assert "postgres_read" not in await dependencies(client)
        assert (await client.get("users")).status_code == 200
        new = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": "correct horse battery"}
        assert (await client.post("user", json=new)).status_code == 201


(PLAIN_WORKER,) = DurableWorker.__bases__  # ARQ's; under its own name is ours.
# ARQ closes its connections by redis-py's old name for that.
arqs_close = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@arqs_close
async def test_without_postgres_the_queue_is_arqs_own(settings: Settings) -> None:
    async with running(without(PostgresSettings)):
        enqueued = await queue.pool.enqueue_job("greet", "hello", _job_id="one")
        assert type(enqueued) is ArqOwnJob
        assert await queue.pool.enqueue_job("greet", "again", _job_id="one") is None
        stored = json.loads(await queue.pool.get("arq:job:one"))
        assert (stored["f"], stored["a"]) == ("greet", ["hello"])

        await work_without_a_table(PLAIN_WORKER)

        handle = queue.ArqJob("one", queue.pool)
        assert await handle.status() is JobStatus.complete
        assert await handle.result(5) == "hello to you"
        info = await handle.result_info()
        assert info is not None
        assert info.success
        assert await queue.ArqJob("unknown", queue.pool).info() is None


@arqs_close
async def test_without_postgres_a_worker_is_arqs_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "get_settings", lambda: without(PostgresSettings))
    monkeypatch.setattr(worker_module, "configure_logging", lambda _: None)
    async with running(without(PostgresSettings)):
        enqueued = await queue.pool.enqueue_job("greet", "hello")
        assert enqueued is not None
        await work_without_a_table(DurableWorker)
        assert await queue.ArqJob(enqueued.job_id, queue.pool).result(5) == "hello to you"


async def work_without_a_table(kind: type[Any]) -> None:
    """Has a worker of this class do what waits, with a connection of its own."""

    async def greet(_: dict[Any, Any], message: str) -> str:
        return f"{message} to you"

    worker = kind(
        [func(greet, name="greet")],  # type: ignore[arg-type]  # arq wants a protocol of any arguments
        redis_settings=queue.worker_redis_settings(get_settings()),
        burst=True,
        handle_signals=False,
        poll_delay=0.01,
        job_serializer=queue.dumps,
        job_deserializer=queue.loads,
    )
    try:
        await worker.main()
    finally:
        await worker.close()


async def test_without_a_cache_there_is_no_connection_to_one(settings: Settings) -> None:
    async with running(without()) as (app, _):
        assert app.state.cache.usable
    async with running(without(RedisCacheSettings)) as (app, client):
        assert "redis_cache" not in await dependencies(client)
        assert not hasattr(app.state, "cache")
        assert (await client.get("tiers")).status_code == 200


async def test_without_a_rate_limiter_there_is_no_connection_to_one(settings: Settings) -> None:
    async with running(without()) as (app, client):
        assert app.state.rate_limiter.link.up
        assert "RateLimit" in (await client.get("tiers")).headers
        assert "/api/v1/user/me/usage" in paths_of(app)
    async with running(without(RedisRateLimiterSettings)) as (app, client):
        assert "redis_rate_limit" not in await dependencies(client)
        assert not hasattr(app.state, "rate_limiter")
        assert "RateLimit" not in (await client.get("tiers")).headers
        assert "/api/v1/user/me/usage" not in paths_of(app)


async def test_a_limit_needs_nothing_else(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyLimits(RedisRateLimiterSettings, DefaultRateLimitSettings):
        pass

    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "3")
    router = APIRouter(dependencies=[Depends(limit_rate)])

    @router.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    app = create_application(router, OnlyLimits())
    async with app.router.lifespan_context(app), client_of(app) as client:
        asked = [{}, {"Authorization": "Bearer anything"}, {"Authorization": "Basic eA=="}, {}]
        answers = [await client.get("http://test/hello", headers=headers) for headers in asked]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]


async def test_without_client_side_caching_no_answer_says_what_to_keep(settings: Settings) -> None:
    async with running(without()) as (_, client):
        assert (await client.get("tiers")).headers["Cache-Control"] == "public, max-age=60"
    async with running(without(ClientSideCacheSettings)) as (_, client):
        assert "Cache-Control" not in (await client.get("tiers")).headers


async def test_without_cors_no_answer_depends_on_the_origin(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://page.example")
    asked = {"Origin": "https://page.example"}
    async with running(without()) as (_, client):
        assert (await client.get("health", headers=asked)).headers["Access-Control-Allow-Origin"] == asked["Origin"]
    async with running(without(CORSSettings)) as (_, client):
        assert "Access-Control-Allow-Origin" not in (await client.get("health", headers=asked)).headers


async def test_without_a_default_a_user_without_tier_has_no_rate_limit(settings: Settings) -> None:
    for left_out, expected in ((), 1), ((DefaultRateLimitSettings,), 0):
        async with running(without(*left_out)) as (_, client), asynccontextmanager(database.async_get_db)() as db:
            user = await create_user(db)
            answer = await client.get(f"user/{user.username}/rate_limits", headers=signed_in(user, settings))
            assert len(answer.json()) == expected


async def test_without_app_settings_the_metadata_is_the_frameworks(settings: Settings) -> None:
    assert create_application(APIRouter(), without()).title == "Slipway"
    assert create_application(APIRouter(), without(AppSettings)).title == "FastAPI"


async def test_metadata_is_in_the_document(settings: Settings) -> None:
    named = Settings(APP_NAME="Mine", APP_VERSION="9", CONTACT_EMAIL="me@example.com", LICENSE_NAME="MIT")
    info = create_application(APIRouter(), named).openapi()["info"]
    assert info == {
        "title": "Mine",
        "version": "9",
        "contact": {"email": "me@example.com"},
        "license": {"name": "MIT"},
    }


async def test_user_code_builds_its_own_app(settings: Settings) -> None:
    opened = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asynccontextmanager(database.async_get_db)() as db:  # Ours is open by now.
            opened.append(await create_user(db))
        yield

    router = APIRouter()

    @router.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    app = create_application(router, without(), lifespan=lifespan, title="Kept")
    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = await client.get("http://test/hello")
    assert answer.json() == {"hello": "world"}
    assert answer.headers["X-Request-ID"]
    assert opened
    assert app.title == "Kept"


DOCS = ("docs", "redoc", "openapi.json")


@pytest.mark.parametrize("page", DOCS)
async def test_local_shows_the_documentation_to_everybody(settings: Settings, page: str) -> None:
    async with running(without()) as (_, client):
        assert (await client.get(f"http://test/{page}")).status_code == 200


@pytest.mark.parametrize("page", DOCS)
async def test_staging_shows_the_documentation_to_superusers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    async with running(without(), docs_guard=[Depends(get_current_superuser)]) as (_, client):
        async with asynccontextmanager(database.async_get_db)() as db:
            user, admin = await create_user(db), await create_superuser(db)
        assert (await client.get(f"http://test/{page}")).status_code == 401
        assert (await client.get(f"http://test/{page}", headers=signed_in(user, settings))).status_code == 403
        assert (await client.get(f"http://test/{page}", headers=signed_in(admin, settings))).status_code == 200


@pytest.mark.parametrize("page", DOCS)
async def test_nobody_sees_the_documentation_in_production_or_without_an_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setenv("SECRET_KEY", "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD")
    monkeypatch.setenv("ENVIRONMENT", "production")
    for settings_without_docs in without(), without(EnvironmentSettings):
        async with running(settings_without_docs, docs_guard=[Depends(get_current_superuser)]) as (_, client):
            assert (await client.get(f"http://test/{page}")).status_code == 404


async def test_the_documentations_files_come_whole(settings: Settings) -> None:
    async with running(without()) as (_, client):
        for wanted in ("bytes=abc", "bytes=99999999-", "bytes=0-1"):
            answer = await client.get("http://test/docs/assets/swagger/swagger-ui.css", headers={"Range": wanted})
            assert answer.status_code == 200


@pytest.mark.parametrize("page", ["docs", "redoc"])
async def test_the_documentation_needs_no_internet(settings: Settings, page: str) -> None:
    async with running(without()) as (_, client):
        html = (await client.get(f"http://test/{page}")).text
        assert "https://" not in html.replace('href="https://fastapi.tiangolo.com', "")
        for asset in [part.split('"')[0] for part in html.split('="/docs/assets/')[1:]]:
            assert (await client.get(f"http://test/docs/assets/{asset}")).status_code == 200
