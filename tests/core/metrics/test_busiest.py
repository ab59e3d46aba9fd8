"""Who asks most under a rule, and how a subject stands with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.core.config import (
    AppSettings,
    DefaultRateLimitSettings,
    PostgresSettings,
    RateLimitMode,
    RedisRateLimiterSettings,
    Settings,
)
from app.core.db.database import close_database, open_database
from app.core.metrics.recent.keys import BUSIEST_KEPT, MOST_RANKED
from app.core.metrics.recent.recorder import BUSIEST
from app.core.utils.rate_limit import Limiter, Rule, open_rate_limiter
from app.core.utils.rate_limit.metrics import MOST_SUBJECTS, Subject, Subjects
from app.core.utils.rate_limit.rules import Window, load_rules, rule_key
from app.core.utils.redis_link import AnyLink
from scripts.embedded import free_port
from tests.conftest import second_session
from tests.core.metrics.conftest import Client, Process, keys_of, read
from tests.helper import create_rate_limit, create_tier

pytestmark = pytest.mark.anyio

RULE = Rule("list", "/api/v1/users", (Window(5, 60), Window(100, 3600)), 7)


class CountsOnly(AppSettings, RedisRateLimiterSettings, DefaultRateLimitSettings):
    """A limiter, and no database."""


@asynccontextmanager
async def limiting(**values: Any) -> AsyncIterator[Limiter]:
    async with open_rate_limiter(CountsOnly(**values)) as limiter:
        yield limiter


# ---- In a process ----


def test_subjects_are_noted_by_rule_and_told_once() -> None:
    subjects = Subjects()
    for number in range(5):
        for _ in range(number + 1):
            subjects.note("a", f"user:{number}", refused=number == 3)
    subjects.note("b", "user:0", refused=False)
    assert subjects.take(2) == {
        "a": [Subject("user:4", 5, 0), Subject("user:3", 4, 4)],
        "b": [Subject("user:0", 1, 0)],
    }
    assert subjects.take(2) == {}


def test_no_more_subjects_are_noted_than_there_is_room_for() -> None:
    subjects = Subjects()
    for number in range(MOST_SUBJECTS + 500):
        subjects.note(f"rule{number % 3}", f"address:{number}", refused=True)
    subjects.note("rule0", "address:0", refused=True)  # Who is known is counted on.
    found = subjects.take(MOST_SUBJECTS)
    assert sum(map(len, found.values())) == MOST_SUBJECTS
    assert found["rule0"][0] == Subject("address:0", 2, 2)
    subjects.note("rule0", f"address:{MOST_SUBJECTS + 1}", refused=False)
    assert subjects.take(1) == {"rule0": [Subject(f"address:{MOST_SUBJECTS + 1}", 1, 0)]}


@pytest.mark.parametrize("mode", [RateLimitMode.ENFORCE, RateLimitMode.SHADOW])
async def test_the_limiter_notes_who_asks_if_anybody_wants_to_know(plain: Client, mode: RateLimitMode) -> None:
    async with limiting(RATE_LIMIT_MODE=mode) as limiter:
        await limiter.decide("user:1", RULE)
        subjects = limiter.subjects = Subjects()
        for _ in range(6):
            await limiter.decide("user:1", RULE)
        await limiter.decide("user:2", RULE)
    assert subjects.take(5) == {rule_key(7, "/api/v1/users"): [Subject("user:1", 6, 2), Subject("user:2", 1, 0)]}


async def test_rules_of_the_database_know_their_tier(settings: Settings) -> None:
    engine = open_database(PostgresSettings())
    try:
        async with second_session() as db:
            tiers = [await create_tier(db, name) for name in ("free", "pro")]
            for tier in tiers:
                await create_rate_limit(db, tier, path="/api/v1/users/")
        rules = await load_rules(None)
        found = [rules.find(tier.id, "/api/v1/users") for tier in tiers]
        assert [rule and rule.tier_id for rule in found] == [tier.id for tier in tiers]
        assert [rule and rule.key for rule in found] == [f"{tier.id}:/api/v1/users" for tier in tiers]
    finally:
        await close_database(engine)


# ---- Of all processes ----


async def test_the_busiest_of_all_processes(link: AnyLink, plain: Client) -> None:
    first, second = Process(link), Process(link)
    key = rule_key(None, "*")
    for process, ahead in ((first, -1), (second, 0)):
        process.clock.ahead = ahead
        for number in range(20):
            for _ in range(number + 1):
                process.subjects.note(key, f"address:10.0.{number}.0/24", refused=number % 2 == 1)
        process.subjects.note(rule_key(3, "*"), "user:3", refused=False)
        await process.look()
    recent = read(link)
    assert await recent.busiest(None, "*", most=3) == [
        Subject("address:10.0.19.0/24", 40, 40),
        Subject("address:10.0.18.0/24", 38, 0),
        Subject("address:10.0.17.0/24", 36, 36),
    ]
    assert len(await recent.busiest(None, "*")) == 10
    assert len(await recent.busiest(None, "*", most=500)) == 20
    assert [one.subject for one in await recent.busiest(3, "*")] == ["user:3"]
    assert await recent.busiest(4, "*") == []
    for key in keys_of(plain):
        assert 0 < plain.ttl(key) <= BUSIEST_KEPT


async def test_who_was_busy_some_minutes_ago_is_not_told(link: AnyLink) -> None:
    process = Process(link)
    process.clock.ahead = -2
    process.subjects.note(RULE.key, "user:1", refused=False)
    await process.look()
    assert await read(link).busiest(RULE.tier_id, RULE.path) == []


async def test_a_flood_of_subjects_is_bounded_there_too(link: AnyLink, plain: Client) -> None:
    process = Process(link)
    for turn in range(15):
        for number in range(500):
            process.subjects.note(RULE.key, f"address:{turn}.{number}", refused=False)
        for _ in range(3):
            process.subjects.note(RULE.key, "user:busy", refused=True)
        await process.look()
    cards = {key: plain.zcard(key) for key in keys_of(plain)}
    assert max(cards.values()) <= MOST_RANKED < 15 * BUSIEST
    found = await read(link).busiest(RULE.tier_id, RULE.path)
    assert found[0].subject == "user:busy"
    assert found[0].calls == found[0].refused == 45


# ---- One subject ----


async def test_how_a_subject_stands_with_a_rule(plain: Client) -> None:
    async with limiting() as limiter:
        assert [usage.used for usage in await limiter.usage_of("user:1", RULE)] == [0, 0]
        for _ in range(3):
            await limiter.decide("user:1", RULE)
        for _ in range(2):  # To look at it counts nothing.
            short, long = await limiter.usage_of("user:1", RULE)
            assert (short.used, short.remaining, short.window) == (3, 2, RULE.windows[0])
            assert (long.used, long.remaining) == (3, 97)
            assert 0 < short.reset <= 60
        assert [usage.used for usage in await limiter.usage_of("user:2", RULE)] == [0, 0]


async def test_how_it_stands_in_an_outage_is_what_the_process_has_counted(plain: Client) -> None:
    async with limiting(REDIS_RATE_LIMIT_PORT=free_port()) as limiter:
        await limiter.decide("user:1", RULE)
        assert [usage.used for usage in await limiter.usage_of("user:1", RULE)] == [1, 1]


async def test_without_limits_there_is_no_usage(plain: Client) -> None:
    async with limiting(RATE_LIMIT_MODE=RateLimitMode.OFF) as limiter:
        assert await limiter.usage_of("user:1", RULE) == []
