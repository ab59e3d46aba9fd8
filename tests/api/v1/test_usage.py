"""What a user has used of their rate limits, over HTTP."""

from typing import Any

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import RateLimitMode, Settings, get_settings
from app.core.utils.redis_link import Link
from app.models.user import User
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio

USAGE = "/api/v1/user/me/usage"
PATIENT = 5.0  # seconds


@pytest.fixture
def mode() -> RateLimitMode:
    return RateLimitMode.ENFORCE


@pytest.fixture
def settings(settings: Settings, mode: RateLimitMode, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # A busy machine answers late, and what is then counted in process is counted apart.
    monkeypatch.setitem(Link.__init__.__kwdefaults__ or {}, "answer_timeout", PATIENT)
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "70")
    monkeypatch.setenv("RATE_LIMIT_MODE", mode)
    get_settings.cache_clear()
    return get_settings()


async def usage_of(client: httpx2.AsyncClient, headers: dict[str, str]) -> list[dict[str, Any]]:
    """The list, whose times are looked at here: they are the only thing in it that no test can know."""
    answer = await client.get("user/me/usage", headers=headers)
    assert answer.status_code == 200
    windows: list[dict[str, Any]] = answer.json()
    for window in windows:
        reset = window.pop("reset")
        assert 0 < reset <= window["period"] if window["used"] else reset == 0
    return windows


def window(name: str, path: str, limit: int, used: int, period: int = 60) -> dict[str, Any]:
    """One line of the list."""
    left = max(0, limit - used)
    return {"name": name, "path": path, "limit": limit, "period": period, "used": used, "remaining": left}


async def create_user_of_tier(db: AsyncSession, *rules: dict[str, Any]) -> User:
    """A user of a tier "pro" with these rules, the first of which has the id 1."""
    tier = await create_tier(db, "pro")
    for rule in rules:
        await create_rate_limit(db, tier, **rule)
    return await create_user(db, tier_id=tier.id)


async def test_only_users_have_a_usage(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        refused = await client.get("user/me/usage", headers=headers)
        assert refused.status_code == 401
        assert "RateLimit" not in refused.headers
    answer = await client.get("user/me/usage", headers=signed_in(await create_user(db), settings))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert [set(one) for one in answer.json()] == [{"name", "path", "limit", "period", "used", "remaining", "reset"}]


async def test_asking_counts_once_and_is_part_of_the_answer(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    ada, bob = [signed_in(await create_user(db), settings) for _ in range(2)]
    for used in (1, 2, 3):
        assert await usage_of(client, ada) == [window("default", "*", 70, used)]
    await client.get("tiers", headers=ada)
    answer = await client.get("user/me/usage", headers=ada)
    assert answer.json()[0]["used"] == 5
    assert f"r={answer.json()[0]['remaining']};" in answer.headers["RateLimit"]
    assert await usage_of(client, bob) == [window("default", "*", 70, 1)]


async def test_each_rule_that_applies_has_its_line(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user_of_tier(
        db,
        {"name": "list", "path": "/api/v1/users", "limit": 20},
        {"name": "profiles", "path": "/api/v1/user/{username}", "limit": 30, "period": 3_600},
    )
    headers = signed_in(user, settings)
    for path in ("users", "users?page=2", f"user/{user.username}", "user/nosuch", "user/nosuch2", "tiers"):
        await client.get(path, headers=headers)
    await client.get("users")  # Somebody else.
    expected = [
        window("profiles", "/api/v1/user/{username}", 30, 3, 3_600),
        window("list", "/api/v1/users", 20, 2),
    ]
    assert await usage_of(client, headers) == [*expected, window("default", "*", 70, 2)]
    assert await usage_of(client, headers) == [*expected, window("default", "*", 70, 3)]


async def test_a_tiers_rule_for_every_path_replaces_the_default(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    rules = [{"name": "all", "path": "*", "limit": 40}, {"name": "list", "path": "/api/v1/users", "limit": 20}]
    headers = signed_in(await create_user_of_tier(db, *rules), settings)
    await client.get("tiers", headers=headers)
    assert await usage_of(client, headers) == [window("all", "*", 40, 2), window("list", "/api/v1/users", 20, 0)]


async def test_asking_counts_by_the_rule_for_its_own_route_alone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    rules = [{"name": "all", "path": "*", "limit": 40}, {"name": "usage", "path": USAGE, "limit": 2}]
    headers = signed_in(await create_user_of_tier(db, *rules), settings)
    for used in (1, 2):
        assert await usage_of(client, headers) == [window("all", "*", 40, 0), window("usage", USAGE, 2, used)]
    assert (await client.get("user/me/usage", headers=headers)).status_code == 429
    assert "r=39;" in (await client.get("tiers", headers=headers)).headers["RateLimit"]


async def test_each_window_of_a_rule_has_its_line(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    more = [{"limit": 500, "period": 86_400}, {"limit": 200, "period": 3_600}]
    rules = [
        {"name": "all", "path": "*", "limit": 40, "additional_windows": more},
        {"name": "list", "path": "/api/v1/users", "limit": 20, "additional_windows": more[:1]},
    ]
    headers = signed_in(await create_user_of_tier(db, *rules), settings)
    await client.get("users", headers=headers)
    assert await usage_of(client, headers) == [
        window("all", "*", 40, 1),
        window("all", "*", 500, 1, 86_400),
        window("all", "*", 200, 1, 3_600),
        window("list", "/api/v1/users", 20, 1),
        window("list", "/api/v1/users", 500, 1, 86_400),
    ]


@pytest.mark.parametrize("high", [20, 200], ids=["log", "sub-windows"])
async def test_after_a_limit_was_lowered_more_than_it_is_used(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, high: int
) -> None:
    headers = signed_in(
        await create_user_of_tier(db, {"name": "list", "path": "/api/v1/users", "limit": high}), settings
    )
    admin = signed_in(await create_superuser(db), settings)
    for _ in range(6):
        await client.get("users", headers=headers)
    for low in (2, 6, 7, high):
        changed = await client.patch("tier/pro/rate_limit/1", json={"limit": low}, headers=admin)
        assert changed.status_code == 200
        line = (await usage_of(client, headers))[0]
        assert line == window("list", "/api/v1/users", low, 6)
        assert line["remaining"] == max(0, low - 6)


async def test_what_was_used_stays_when_a_user_is_moved(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    headers = signed_in(await create_user_of_tier(db, {"name": "all", "path": "*", "limit": 40}), settings)
    await client.get("tiers", headers=headers)
    admin = signed_in(await create_superuser(db), settings)
    username = (await client.get("user/me/", headers=headers)).json()["username"]
    await client.patch(f"user/{username}/tier", json={"tier_id": None}, headers=admin)
    assert await usage_of(client, headers) == [window("default", "*", 70, 3)]


@pytest.mark.parametrize("mode", [RateLimitMode.OFF])
async def test_switched_off_there_is_none(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user = await create_user_of_tier(db, {"name": "all", "path": "*", "limit": 1})
    for _ in range(3):
        assert await usage_of(client, signed_in(user, settings)) == []
    assert (await client.get("user/me/usage")).status_code == 401


@pytest.mark.parametrize("mode", [RateLimitMode.SHADOW])
async def test_in_shadow_it_is_what_it_would_be(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    headers = signed_in(await create_user_of_tier(db, {"name": "all", "path": "*", "limit": 2}), settings)
    for used in (1, 2, 2, 2):
        assert await usage_of(client, headers) == [window("all", "*", 2, used)]
