"""Limits now: which rule is used up by whom."""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import RateLimitMode, Settings
from app.core.metrics.recent.keys import busiest_keys, totals_key
from app.core.utils.rate_limit.enforcement import user_subject
from app.core.utils.rate_limit.rules import rule_key
from app.crud.crud_rate_limit import crud_rate_limits
from app.models.rate_limit import RateLimit
from scripts.embedded import Valkey
from tests.admin.operator import text_of
from tests.admin.valkeys import minute_of, own_valkey, plain
from tests.admin.world import HOSTILE
from tests.durable_jobs import until
from tests.helper import counted_statements, create_rate_limit, create_tier, create_user, signed_in

__all__ = ["own_valkey", "plain"]  # fixtures

pytestmark = pytest.mark.anyio
PAGE = "limits"


@pytest.fixture
def enforced(app: FastAPI) -> Iterator[None]:
    """Limits are enforced, whatever the settings say."""
    mode, app.state.rate_limiter.mode = app.state.rate_limiter.mode, RateLimitMode.ENFORCE
    yield
    app.state.rate_limiter.mode = mode


def asked(plain: Redis, tier_id: int | None, path: str, subject: str, calls: int, refused: int = 0) -> None:
    """As the processes tell of a minute: who has asked under a rule."""
    minute = minute_of(plain)
    for key, number in zip(busiest_keys(minute, rule_key(tier_id, path)), (calls, refused), strict=True):
        if number:
            plain.zincrby(key, number, subject)


def refused_in(plain: Redis, minutes_ago: int, path: str, number: int) -> None:
    """As the processes tell of a minute: how many calls were refused."""
    minute = minute_of(plain) - minutes_ago
    plain.hincrby(totals_key(minute), f"limit:refused:{path}", number)


async def test_it_shows_who_uses_up_which_rule(
    enforced: None,
    app: FastAPI,
    operator: httpx2.AsyncClient,
    client: httpx2.AsyncClient,
    db: AsyncSession,
    settings: Settings,
    plain: Redis,
) -> None:
    tier = await create_tier(db, "frequent")
    await create_rate_limit(db, tier, path="*", limit=2, period=3600, additional_windows=[{"limit": 50, "period": 60}])
    user = await create_user(db, username="caller", tier_id=tier.id)
    await db.commit()
    await _in_force(app, tier.id)
    headers = signed_in(user, settings)
    answers = [(await client.get("tiers", headers=headers)).status_code for _ in range(3)]
    assert answers == [200, 200, 429]
    asked(plain, tier.id, "*", user_subject(user.id or 0), 300, refused=298)

    page = await operator.get(PAGE)

    text = text_of(page)
    assert "frequent: * 2 per 3,600 s, 50 per 60 s" in text
    assert "caller 2 of 2 per 3,600 s 2 of 50 per 60 s 300 298" in text
    assert f"/admin/user/detail?pk={user.id}" in page.text
    assert 'aria-label="Used by caller, per 3600 s"' in page.text
    assert "Everybody else" in text
    assert 'data-live="2"' in page.text
    counted = [
        (await app.state.rate_limiter.usage_of(user_subject(user.id or 0), rule)) for rule in _rules(app, tier.id)
    ]
    assert [usage.used for usages in counted for usage in usages] == [2, 2], "looking counts nothing"


async def test_addresses_and_users_that_are_gone_are_shown_as_they_are_counted(
    operator: httpx2.AsyncClient, plain: Redis
) -> None:
    asked(plain, None, "*", "address:2001:db8::/64", 9)
    asked(plain, None, "*", "user:987654321", 8, refused=5)
    asked(plain, None, "*", f"address:{HOSTILE}", 7)
    asked(plain, None, "*", "user:99999999999999999999999", 6)

    page = await operator.get(PAGE)

    text = text_of(page)
    assert page.status_code == 200
    assert "2001:db8::/64 0 of" in text
    assert "user 987654321 0 of" in text
    assert "<script>fail()" not in page.text
    assert HOSTILE in text


async def test_refused_calls_of_the_last_hour_by_path(operator: httpx2.AsyncClient, plain: Redis) -> None:
    for n in range(9):
        refused_in(plain, n, f"/api/v1/path{n}", 10 - n)
    refused_in(plain, 59, "/api/v1/path0", 100)
    refused_in(plain, 70, "/api/v1/path0", 1000)

    page = await operator.get(PAGE)

    assert "/api/v1/path0 0 110 0 /api/v1/path1 0 9 0" in text_of(page), "those with most refused calls first"
    assert "/api/v1/path0: last 0, highest 100 at" in page.text
    assert "/api/v1/path1: last 9, highest 9 at" in page.text
    assert "2 others: last 0, highest 3 at" in page.text


async def test_it_says_that_nothing_was_refused(operator: httpx2.AsyncClient) -> None:
    assert "none refused: last 0" in (await operator.get(PAGE)).text


@pytest.mark.parametrize(
    ("mode", "sentence"), [(RateLimitMode.OFF, "nothing is counted"), (RateLimitMode.SHADOW, "none is refused")]
)
async def test_it_says_in_which_mode_limits_are(
    enforced: None, app: FastAPI, operator: httpx2.AsyncClient, plain: Redis, mode: RateLimitMode, sentence: str
) -> None:
    assert sentence not in text_of(await operator.get(PAGE))
    app.state.rate_limiter.mode = mode
    asked(plain, None, "*", "address:203.0.113.7/32", 9)
    assert sentence in text_of(await operator.get(PAGE))


async def test_it_costs_few_statements_however_many_rules_there_are(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession, plain: Redis
) -> None:
    for n in range(3):
        tier = await create_tier(db, f"tier {n}")
        for m in range(4):
            row = RateLimit(tier_id=tier.id, name=f"r{m}", path=f"/api/v1/path{m}", limit=5, period=60)
            await crud_rate_limits.create(db, row)
            user = await create_user(db)
            asked(plain, tier.id, row.path, user_subject(user.id or 0), 3)
    await db.commit()
    await _in_force(app, tier.id)

    with counted_statements() as statements:
        page = await operator.get(PAGE, headers={"X-Console-Live": "1"})

    assert page.text.count("<meter") == 12
    assert len(statements) <= 5, statements


async def test_it_answers_without_valkey(own_valkey: Valkey, app: FastAPI, operator: httpx2.AsyncClient) -> None:
    assert "The limits' server is away" not in text_of(await operator.get(PAGE))
    await asyncio.to_thread(own_valkey.stop)

    async def is_down() -> bool:
        return not app.state.rate_limiter.link.up

    await until(is_down)

    page = await operator.get(PAGE)

    text = text_of(page)
    assert page.status_code == 200
    assert "The limits' server is away. Each process counts on its own" in text
    assert "The last hour and the busiest callers are not known" in text
    assert "Everybody else * " in text, "the rules are known all the same"


async def test_it_answers_where_nothing_is_recorded(app: FastAPI, operator: httpx2.AsyncClient) -> None:
    app.state.recent = None
    page = await operator.get(PAGE)
    assert page.status_code == 200
    assert "are not known" in text_of(page)


def _rules(app: FastAPI, tier_id: int | None) -> list[object]:
    return [rule for rule in app.state.rate_limiter.rules.all_of(tier_id) if rule.tier_id == tier_id]


async def _in_force(app: FastAPI, tier_id: int | None) -> None:
    """Waits until this process has read the rules that were committed."""

    async def have_been_read() -> bool:
        return bool(_rules(app, tier_id))

    await until(have_been_read)
