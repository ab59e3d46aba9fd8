"""What a hit costs: one command to the cache, in the limiter's write, and no statement to the database."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.utils.cache import invalidation
from app.core.utils.rate_limit import keeper
from app.core.utils.redis_link import Link
from scripts.embedded import Valkey
from tests.core.utils.cache.conftest import states
from tests.helper import counted_statements, create_rate_limit, create_tier, create_user

pytestmark = pytest.mark.anyio

PATHS = (
    "tiers",
    "tiers?page=2",
    "tier/pro",
    "tier/pro/rate_limits",
    "tier/pro/rate_limit/1",
    "user/ada",
)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked but by requests, and by the cache."""
    monkeypatch.setattr(invalidation, "TICK", 1_000)
    monkeypatch.setattr(keeper, "LOOK", 1_000)
    monkeypatch.setenv("RATE_LIMIT_MODE", "off")


@pytest.fixture
def commands(settings: Settings, valkey: Valkey) -> Iterator[Redis]:
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        yield client


def calls(client: Redis) -> dict[str, int]:
    """How often each command was given, but for this one."""
    stats: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
    found = {name: of["calls"] for name, of in stats.items()}
    return {name: count for name, count in found.items() if name not in {"cmdstat_info", "cmdstat_config|resetstat"}}


@pytest.mark.parametrize("path", PATHS)
async def test_a_hit_is_one_command_and_no_statement(
    path: str, quiet: None, app: FastAPI, client: httpx2.AsyncClient, db: AsyncSession, commands: Redis
) -> None:
    await create_rate_limit(db, await create_tier(db))
    await create_user(db, username="ada")
    assert states(await client.get(path)) == ["MISS"]
    commands.config_resetstat()

    with counted_statements() as statements:
        answers = [await client.get(path) for _ in range(10)]

    assert states(*answers) == ["HIT"] * 10
    assert statements == []
    assert calls(commands) == {"cmdstat_hget": 10}


# ---- With the limiter ----


@pytest.fixture
def limited(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache and limiter are at the same server, and the default rule allows 3 requests."""
    monkeypatch.setenv("RATE_LIMIT_MODE", "enforce")
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "3")


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands were in each write to a server."""
    counted: list[int] = []
    flush = Link._flush

    def counting(link: Link) -> None:
        counted.append(len(link._out))
        flush(link)

    monkeypatch.setattr(Link, "_flush", counting)
    return counted


async def test_a_hit_and_its_limit_are_one_write(
    limited: None, app: FastAPI, client: httpx2.AsyncClient, db: AsyncSession, writes: list[int]
) -> None:
    await create_tier(db)
    await client.get("tier/pro")
    writes.clear()

    answer = await client.get("tier/pro")

    assert states(answer) == ["HIT"]
    assert "r=1" in answer.headers["RateLimit"]
    assert writes == [2]


async def test_who_is_refused_is_told_nothing_and_is_no_hit(
    limited: None, app: FastAPI, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    def hits() -> float:
        labels = {"prefix": "tier", "result": "hit"}
        return REGISTRY.get_sample_value("slipway_cache_requests_total", labels) or 0

    await create_tier(db)
    answers = [await client.get("tier/pro") for _ in range(3)]
    before = hits()

    refused = await client.get("tier/pro")

    assert states(*answers) == ["MISS", "HIT", "HIT"]
    assert refused.status_code == 429
    assert not {"X-Cache", "ETag", "Age"} & set(refused.headers)
    assert hits() == before
