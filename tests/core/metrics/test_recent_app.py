"""The last hour of a whole app: when it is recorded, and that of several real processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.routing import Route

from app.core.config import (
    AppSettings,
    ConsoleSettings,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    Settings,
    SettingsGroup,
)
from app.core.metrics.recent import Recent
from app.core.setup import create_application
from app.core.utils.redis_link import AnyLink, link_to
from tests.conftest import client_of
from tests.core.metrics.conftest import read
from tests.processes import ROOT, running_api

pytestmark = pytest.mark.anyio


class Console(AppSettings, ConsoleSettings):
    """A console, and nowhere to keep anything."""


class Limited(Console, RedisRateLimiterSettings):
    """With a limiter."""


class Queueing(Console, RedisQueueSettings):
    """With a queue."""


class Caching(Console, RedisCacheSettings):
    """With a cache."""


class NoConsole(AppSettings, RedisRateLimiterSettings):
    """Without a console."""


@asynccontextmanager
async def started(settings: SettingsGroup) -> AsyncIterator[FastAPI]:
    app = create_application(APIRouter(), settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.mark.parametrize("kind", [Limited, Queueing, Caching])
async def test_it_is_recorded_wherever_it_can_be_kept(kind: type[Console], settings: Settings) -> None:
    async with started(kind()) as app:
        assert isinstance(app.state.recent, Recent)
        assert (await app.state.recent.last_hour()).last().requests == 0
        limiter = getattr(app.state, "rate_limiter", None)
        assert limiter is None or limiter.subjects is not None


async def test_without_a_console_it_is_not(settings: Settings) -> None:
    for given in (Limited(CONSOLE_ENABLED=False), NoConsole()):
        async with started(given) as app:
            assert app.state.recent is None
            assert app.state.rate_limiter.subjects is None


async def test_nor_where_there_is_nowhere_to_keep_it() -> None:
    async with started(Console()) as app:
        assert app.state.recent is None


@pytest.fixture
async def outside(settings: Settings, patient: None) -> AsyncIterator[AnyLink]:
    """A link of the test's own to where the last hour is."""
    link = link_to(settings.redis_rate_limit_url, "test")
    await link.open()
    yield link
    await link.close()


async def test_a_running_app_adds_what_it_has_counted(
    app: FastAPI, client: httpx2.AsyncClient, outside: AnyLink
) -> None:
    for _ in range(3):
        assert (await client.get("tiers")).status_code == 200
    await client.get("no/such/route")
    await client.get("http://test/admin/nothing")
    assert (await client.get("user/me")).status_code == 401
    async with asyncio.timeout(10):
        while (total := (await app.state.recent.last_hour()).last()).requests < 4:  # noqa: ASYNC110 -- it is looked at by a clock
            await asyncio.sleep(0.05)
    assert (total.requests, total.errors, total.unrouted_errors) == (4, 0, 0)
    assert total.unrouted == 2
    assert sum(total.buckets.values()) == 4
    tiers = total.caches["tiers"]
    assert tiers.hits + tiers.misses + tiers.bypass + tiers.stale == 3
    routes = {route.route: route.requests for route in await read(outside).routes()}
    assert routes == {"/api/v1/tiers": 3, "/api/v1/user/me": 1}


async def test_what_is_mounted_is_counted_apart(outside: AnyLink) -> None:
    """As the console is."""

    async def fine(request: Request) -> Response:
        return Response()

    async def fails(request: Request) -> Response:
        return Response(status_code=500)

    app = create_application(APIRouter(), Limited())
    app.mount("/mounted", Starlette(routes=[Route("/fine", fine), Route("/fails", fails)]))
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert [(await client.get(f"http://test/mounted/{name}")).status_code for name in ("fine", "fails")] == [
            200,
            500,
        ]
    total = (await read(outside).last_hour()).last()
    assert (total.requests, total.errors, total.unrouted, total.unrouted_errors) == (0, 0, 2, 1)


async def test_of_two_real_processes_none_is_missing_and_none_is_twice(
    outside: AnyLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    command = "uvicorn app.main:app --workers 2 --port {port} --log-level warning"
    asked = 0
    with running_api(*command.split(), cwd=ROOT / "src") as url:
        async with asyncio.timeout(20):
            while asked < 40 or those_who_counted(tmp_path, "/api/v1/tiers") < 2:
                async with httpx2.AsyncClient(base_url=url) as client:  # On a connection that any of them may take.
                    assert (await client.get("/api/v1/tiers")).status_code == 200
                asked += 1
    (route,) = [route for route in await read(outside).routes() if route.route == "/api/v1/tiers"]
    assert (route.requests, route.errors) == (asked, 0)
    (subject,) = await read(outside).busiest(None, "*")
    assert subject == ("address:127.0.0.1", asked, 0)


def those_who_counted(folder: Path, route: str) -> int:
    """How many processes have counted a request to a route."""
    return sum(route.encode() in file.read_bytes() for file in folder.glob("counter_*.db"))
