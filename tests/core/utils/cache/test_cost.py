"""What a hit costs: one command to the cache, and no statement to the database."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.utils.cache import invalidation
from app.core.utils.rate_limit import keeper
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
