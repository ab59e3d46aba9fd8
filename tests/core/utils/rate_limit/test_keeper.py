"""How a limiter keeps its rules current, and how it knows how many processes share them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from redis import Redis
from structlog.testing import capture_logs

from app.core.config import AppSettings, DefaultRateLimitSettings, RedisRateLimiterSettings, Settings
from app.core.db.database import close_database, open_database, transaction
from app.core.utils import rate_limit
from app.core.utils.rate_limit import Limiter, Rule, keeper, open_rate_limiter, rules_changed
from app.core.utils.rate_limit.keeper import CHANNEL, PROCESSES_KEY
from app.core.utils.rate_limit.rules import Window
from app.core.utils.redis_link import link as redis_link
from app.core.utils.redis_link import link_to, subscription
from app.crud.crud_rate_limit import crud_rate_limits
from app.models.rate_limit import RateLimit
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.conftest import connect
from tests.core.utils.rate_limit.conftest import Client, metric
from tests.core.utils.test_redis_link import nothing_unseen, until

pytestmark = pytest.mark.anyio

PATH = "/api/v1/users"
TIER = 1
LOOK = 2.0  # seconds after which every process goes by a change, at most
BUSY = 1.0  # seconds more that a busy machine may take
NEVER = 1000.0
END_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'slipway'
"""


class CountsOnly(AppSettings, RedisRateLimiterSettings, DefaultRateLimitSettings):
    """A limiter, and no database."""


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection past everything of ours, to a database with a tier and a rule that the app has open."""
    engine = open_database(settings)
    connection = await connect(settings.POSTGRES_DB)
    await connection.execute("INSERT INTO tier (id, name) VALUES (1, 'pro')")
    statement = "INSERT INTO rate_limit (tier_id, name, path, \"limit\", period) VALUES (1, 'list', $1, 5, 60)"
    await connection.execute(statement, PATH)
    try:
        yield connection
    finally:
        await connection.close()
        await close_database(engine)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has keepers look often."""
    monkeypatch.setattr(keeper, "LOOK", 0.05)


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has keepers look when they are told that there is something, and at no other time."""
    monkeypatch.setattr(keeper, "LOOK", NEVER)


@asynccontextmanager
async def another_process(settings: RedisRateLimiterSettings) -> AsyncIterator[Limiter]:
    """A limiter that is told of changes over pub/sub only."""
    async with open_rate_limiter(settings) as limiter:
        rate_limit._keepers.pop()
        yield limiter


async def until_listened(client: Client, count: int) -> None:
    """Returns once so many listen for changes."""
    await until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == count)


def limit_of(limiter: Limiter, path: str = PATH) -> int | None:
    """The limit that applies to the tier's callers."""
    rule = limiter.rules.find(TIER, path)
    return None if rule is None else rule.windows[0].limit


def keepers_tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


# ---- Rules ----


async def test_the_rules_are_there_from_the_start(sql: asyncpg.Connection, settings: Settings) -> None:
    async with open_rate_limiter(settings) as limiter:
        assert limit_of(limiter) == 5
        assert limit_of(limiter, "/another") == settings.DEFAULT_RATE_LIMIT_LIMIT


@pytest.mark.parametrize(
    ("statement", "limit"),
    [
        ('UPDATE rate_limit SET "limit" = 7', 7),
        ("DELETE FROM rate_limit", 1_000_000),
        (
            'DELETE FROM rate_limit; INSERT INTO rate_limit (tier_id, name, path, "limit", period) '
            "VALUES (1, 'all', '*', 8, 60)",
            8,
        ),
        ("DELETE FROM tier", 1_000_000),
    ],
)
async def test_a_change_by_whatever_hand_is_in_force_soon(
    sql: asyncpg.Connection, settings: Settings, statement: str, limit: int
) -> None:
    async with open_rate_limiter(settings) as limiter, another_process(settings) as other:
        await sql.execute(statement)
        await until(lambda: limit_of(limiter) == limit_of(other) == limit, seconds=LOOK + BUSY)


async def test_an_announced_change_is_in_force_before_the_commit_returns_and_elsewhere_at_once(
    sql: asyncpg.Connection, settings: Settings, client: Client, told_only: None
) -> None:
    async with open_rate_limiter(settings) as limiter, another_process(settings) as other:
        await until_listened(client, 2)
        async with transaction() as db:
            await crud_rate_limits.create(db, RateLimit(tier_id=TIER, name="all", path="*", limit=8, period=60))
            rules_changed(db)
            assert limit_of(limiter, "/another") == settings.DEFAULT_RATE_LIMIT_LIMIT
            await db.commit()
            assert limit_of(limiter, "/another") == 8
        begin = time.monotonic()
        await until(lambda: limit_of(other, "/another") == 8, seconds=0.5 + BUSY)
        assert time.monotonic() - begin < LOOK


async def test_a_change_that_is_rolled_back_is_not_announced(
    sql: asyncpg.Connection, settings: Settings, client: Client, told_only: None
) -> None:
    async with open_rate_limiter(settings) as limiter:
        await until_listened(client, 1)
        with client.pubsub() as listening:
            listening.subscribe(CHANNEL)
            assert listening.get_message(timeout=5)["type"] == "subscribe"
            async with transaction() as db:
                await (await db.connection()).exec_driver_sql('UPDATE rate_limit SET "limit" = 7')
                rules_changed(db)
                await db.rollback()
            assert listening.get_message(timeout=0.1) is None
        assert limit_of(limiter) == 5


async def test_a_change_that_cannot_be_announced_is_in_force_here_and_is_said(
    sql: asyncpg.Connection, settings: Settings, told_only: None
) -> None:
    away = settings.model_copy(update={"REDIS_RATE_LIMIT_PORT": free_port()})
    async with open_rate_limiter(away) as limiter:
        await sql.execute('UPDATE rate_limit SET "limit" = 7')
        with capture_logs() as lines:
            async with transaction() as db:
                await db.connection()
                rules_changed(db)
        assert limit_of(limiter) == 7
        said = [line for line in lines if "not announced" in line["event"]]
        assert [line["log_level"] for line in said] == ["warning"]


async def test_announcements_that_were_missed_are_made_up_for_when_it_listens_again(
    sql: asyncpg.Connection, settings: Settings, client: Client, told_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "PAUSE", 0.05)
    async with open_rate_limiter(settings) as limiter:
        await until_listened(client, 1)
        await asyncio.sleep(0.1)
        await sql.execute('UPDATE rate_limit SET "limit" = 7')
        client.client_kill_filter(_type="pubsub")
        await until(lambda: limit_of(limiter) == 7)


async def test_many_changes_end_with_the_last_one(
    sql: asyncpg.Connection, settings: Settings, client: Client, told_only: None
) -> None:
    async with open_rate_limiter(settings) as limiter, another_process(settings) as other:
        await until_listened(client, 2)

        async def change() -> None:
            async with transaction() as db:
                await (await db.connection()).exec_driver_sql('UPDATE rate_limit SET "limit" = "limit" + 1')
                rules_changed(db)

        await asyncio.gather(*(change() for _ in range(20)))
        assert limit_of(limiter) == 25
        await until(lambda: limit_of(other) == 25, seconds=LOOK + BUSY)


# ---- A database that is not there ----


async def test_without_the_table_the_rules_stay_and_it_is_said_once(
    sql: asyncpg.Connection, settings: Settings, brisk: None
) -> None:
    async with open_rate_limiter(settings) as limiter:
        before = metric("rules_failed_total")
        with capture_logs() as lines:
            await sql.execute("ALTER TABLE rate_limit RENAME TO elsewhere")
            await until(lambda: metric("rules_failed_total") >= before + 3)
            assert limit_of(limiter) == 5
            await sql.execute("ALTER TABLE elsewhere RENAME TO rate_limit")
            await sql.execute('UPDATE rate_limit SET "limit" = 7')
            await until(lambda: limit_of(limiter) == 7)
        said = [line for line in lines if line["event"] == "rate limits cannot be read"]
        assert len(said) == 1
        assert "rate_limit" in said[0]["why"]


async def test_without_the_table_from_the_start_the_default_applies_until_there_is_one(
    sql: asyncpg.Connection, settings: Settings, brisk: None
) -> None:
    await sql.execute("ALTER TABLE rate_limit RENAME TO elsewhere")
    async with open_rate_limiter(settings) as limiter:
        assert limit_of(limiter) == settings.DEFAULT_RATE_LIMIT_LIMIT
        await sql.execute("ALTER TABLE elsewhere RENAME TO rate_limit")
        await until(lambda: limit_of(limiter) == 5)


async def test_while_the_database_is_down_the_rules_stay_and_it_is_said_once_per_outage(
    sql: asyncpg.Connection, settings: Settings, brisk: None
) -> None:
    outside = await connect("tester")
    name = settings.POSTGRES_DB
    try:
        async with open_rate_limiter(settings) as limiter:
            with capture_logs() as lines:
                for outage in (1, 2):
                    before = metric("rules_failed_total")
                    await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                    await outside.execute(END_CONNECTIONS, name)
                    await until(lambda before=before: metric("rules_failed_total") >= before + 3)  # type: ignore[misc]
                    assert limit_of(limiter) == 4 + outage
                    await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                    await sql.execute('UPDATE rate_limit SET "limit" = "limit" + 1')
                    await until(lambda outage=outage: limit_of(limiter) == 5 + outage)  # type: ignore[misc]
            assert [line["event"] for line in lines].count("rate limits cannot be read") == 2
    finally:
        await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await outside.close()


async def test_a_database_that_was_never_there_does_not_stop_the_start(settings: Settings, brisk: None) -> None:
    away = settings.model_copy(update={"POSTGRES_PORT": free_port()})
    engine = open_database(away)
    try:
        async with open_rate_limiter(away) as limiter:
            assert limit_of(limiter) == settings.DEFAULT_RATE_LIMIT_LIMIT
    finally:
        await close_database(engine)


async def test_without_a_database_there_is_the_default_and_nothing_to_listen_for(client: Client, brisk: None) -> None:
    before = metric("rules_failed_total")
    async with open_rate_limiter(CountsOnly()) as limiter:
        assert limit_of(limiter) == 1_000_000
        await asyncio.sleep(0.2)
        assert client.pubsub_numsub(CHANNEL)[0][1] == 0
        assert client.zcard(PROCESSES_KEY) == 1
    assert metric("rules_failed_total") == before


# ---- Processes ----


async def test_processes_hear_of_each_other_and_of_those_who_leave(client: Client, brisk: None) -> None:
    settings = CountsOnly()
    async with open_rate_limiter(settings) as first:
        assert first.in_process.processes == 1
        async with open_rate_limiter(settings) as second:
            assert second.in_process.processes == 2
            await until(lambda: first.in_process.processes == 2)
            assert metric("processes") == 2
        await until(lambda: first.in_process.processes == 1)
    assert not client.exists(PROCESSES_KEY)


async def test_a_process_that_vanishes_is_not_counted_for_long(
    client: Client, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "GONE", 500_000)
    async with open_rate_limiter(CountsOnly()) as limiter:
        seconds, microseconds = client.time()
        client.zadd(PROCESSES_KEY, {"one that was killed": seconds * 1_000_000 + microseconds})
        await until(lambda: limiter.in_process.processes == 2)
        await until(lambda: limiter.in_process.processes == 1)
        assert 0 < client.pttl(PROCESSES_KEY) <= 500
    await asyncio.sleep(0.6)
    assert client.dbsize() == 0


async def test_a_process_is_heard_again_before_it_would_be_taken_for_gone() -> None:
    assert keeper.GONE >= 3 * keeper.LOOK * 1.2 * 1_000_000


# ---- Valkey that is not there ----


async def test_valkey_away_at_the_start_and_back_later(
    sql: asyncpg.Connection, settings: Settings, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.03)
    monkeypatch.setattr(redis_link, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(subscription, "PAUSE", 0.05)
    port = free_port()
    away = settings.model_copy(update={"REDIS_RATE_LIMIT_PORT": port})
    rule = Rule("two", "/two", (Window(2, 60),))
    with capture_logs() as lines:
        async with open_rate_limiter(away) as limiter:
            assert limit_of(limiter) == 5
            waits = [(await limiter.decide("user:1", rule)).wait for _ in range(3)]
            assert waits[:2] == [0, 0]
            assert 0 < waits[2] <= 60
            await until(lambda: metric("in_process") == 1)
            await asyncio.sleep(0.3)
            with scratch_folder() as folder, Valkey(folder / "valkey", port=port, durable=False):
                await until(lambda: limiter.link.up)
                assert [(await limiter.decide("user:1", rule)).wait for _ in range(2)] == [0, 0]
                with Redis(host="127.0.0.1", port=port) as client:
                    await until_listened(client, 1)
                    await until(lambda: client.zcard(PROCESSES_KEY) == 1)
                    assert client.exists(rule.keys("user:1")[1])
                await until(lambda: metric("in_process") == 0)
    assert [line["event"] for line in lines].count("rate limits are counted in process") == 1
    counted = {"path": "/two", "counted_in": "process"}
    assert metric("requests_total", result="allowed", **counted) == 2
    assert metric("requests_total", result="refused", **counted) == 1


async def test_what_was_counted_in_process_is_kept_for_a_while_and_then_forgotten(
    client: Client, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage that comes and goes is one outage."""
    monkeypatch.setattr(keeper, "KEPT", 0.5)
    rule = Rule("two", "/two", (Window(2, 60),))
    async with open_rate_limiter(CountsOnly()) as limiter:
        limiter.in_process.decide("user:1", (rule,), 1)
        await asyncio.sleep(0.2)
        assert limiter.in_process.decide("user:1", (rule,), 0)[1] == 1
        await until(lambda: not limiter.in_process._buckets)


# ---- The end ----


async def test_close_is_prompt_and_leaves_nothing(sql: asyncpg.Connection, settings: Settings, client: Client) -> None:
    before = keepers_tasks()
    for _ in range(3):
        async with open_rate_limiter(settings):
            await until_listened(client, 1)
            begin = time.monotonic()
        assert time.monotonic() - begin < 0.5 + BUSY
        assert keepers_tasks() <= before
        assert rate_limit._keepers == []
    await until_listened(client, 0)
    assert not client.exists(PROCESSES_KEY)


async def test_a_close_right_after_the_open_leaves_nothing(
    sql: asyncpg.Connection, settings: Settings, client: Client
) -> None:
    before = keepers_tasks()
    async with AsyncExitStack() as all_of_them:
        for _ in range(5):
            await all_of_them.enter_async_context(open_rate_limiter(settings))
    assert keepers_tasks() <= before
    assert not client.exists(PROCESSES_KEY)


async def test_close_is_prompt_while_both_servers_are_away(settings: Settings) -> None:
    before = keepers_tasks()
    away = settings.model_copy(update={"POSTGRES_PORT": free_port(), "REDIS_RATE_LIMIT_PORT": free_port()})
    engine = open_database(away)
    async with open_rate_limiter(away):
        await asyncio.sleep(0.1)
        begin = time.monotonic()
    assert time.monotonic() - begin < 0.5 + BUSY
    await close_database(engine)
    assert keepers_tasks() <= before


async def test_after_a_close_amid_a_look_that_hangs_nothing_goes_on(
    sql: asyncpg.Connection, settings: Settings, client: Client, brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is locked: the look waits for longer than the close does."""
    monkeypatch.setattr(keeper, "CLOSE_SECONDS", 0.2)
    link = link_to(settings.redis_rate_limit_url, "the app's")
    await link.open()
    failed = metric("rules_failed_total")
    async with AsyncExitStack() as limiter:
        await limiter.enter_async_context(open_rate_limiter(settings, link))
        before = keepers_tasks()
        async with sql.transaction():
            await sql.execute("LOCK TABLE rate_limit")
            while not await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await limiter.aclose()
            left = {task for task in keepers_tasks() & before if "Keeper" in repr(task)}
    await asyncio.sleep(0.1)
    still_here = client.exists(PROCESSES_KEY)
    await link.close()
    assert (left, still_here, metric("rules_failed_total")) == (set(), 0, failed)
