"""The store in a real cluster: what was dropped is not stored, wherever it is, and whoever takes over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import pytest
from pydantic import SecretStr

from app.core.config import Settings
from app.core.utils.cache.server_clock import CLOCK_SLACK
from app.core.utils.cache.store import NOTES, Lease, Store
from app.core.utils.redis_link import ClusterLink, LinkDown, LinkError
from tests.conftest import client_of, whole_app
from tests.core.utils.test_redis_cluster import Move
from tests.core.utils.test_redis_link import nothing_unseen, until
from tests.redis_topologies import RedisCluster, patiently

pytestmark = pytest.mark.anyio

KEYS = [f"thing:{number}" for number in range(30)]
VARIANT = b"variant"
SOON = 15.0  # seconds; a failover takes about two


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@asynccontextmanager
async def opened(nodes: RedisCluster) -> AsyncIterator[Store]:
    """A store whose notes are older than any request of the test."""
    link = ClusterLink(nodes.url(), "test")
    store = Store(link)
    await link.open()
    try:
        await until_it_knows_the_time(store)
        yield store
    finally:
        await link.close()


async def until_it_knows_the_time(store: Store) -> None:
    async with asyncio.timeout(SOON):
        while True:
            try:
                await store.probe()
                break
            except LinkError:
                await asyncio.sleep(0.05)
    await asyncio.sleep(2 * CLOCK_SLACK)


async def take(store: Store, key: str) -> Lease:
    """A lease that is free to take."""
    taken = await store.take(key, VARIANT, 5)
    assert isinstance(taken, Lease), taken
    return taken


async def filled(store: Store, keys: list[str]) -> None:
    for key in keys:
        assert await store.store(await take(store, key), b"answer", 60)


async def stored(store: Store) -> list[bytes | None]:
    return [await store.get(key, VARIANT) for key in KEYS]


# ---- While all is well ----


async def test_all_primaries_hold_some_and_all_of_it_can_be_dropped_at_once(nodes: RedisCluster) -> None:
    async with opened(nodes) as store:
        await filled(store, KEYS)
        assert all(node.client.dbsize() > 3 for node in nodes.primaries)
        assert await stored(store) == [b"answer"] * len(KEYS)
        await store.void(KEYS)
        assert await stored(store) == [None] * len(KEYS)


async def test_a_pattern_drops_what_is_at_any_primary_and_nothing_else(nodes: RedisCluster) -> None:
    async with opened(nodes) as store:
        await filled(store, [*KEYS, "another:1"])
        await store.void((), ["thing:*"])
        assert await stored(store) == [None] * len(KEYS)
        assert await store.get("another:1", VARIANT) == b"answer"


async def test_what_was_begun_before_a_drop_is_not_stored_wherever_it_is(nodes: RedisCluster) -> None:
    async with opened(nodes) as store, opened(nodes) as other:
        for key in KEYS:
            lease = await take(store, key)
            await other.void([key])
            assert not await store.store(lease, b"of the past", 60)
            started = perf_counter()
            await other.void([key])
            assert not store.covers(await take(store, key), started), "it can have read before that"


async def test_what_is_new_after_a_drop_is_stored(nodes: RedisCluster) -> None:
    async with opened(nodes) as store, opened(nodes) as other:
        await other.void(KEYS)
        await asyncio.sleep(0.05)
        for key in KEYS:
            started = perf_counter()
            assert store.covers(await take(store, key), started)


async def test_a_pattern_finds_what_moves_meanwhile(nodes: RedisCluster) -> None:
    async with opened(nodes) as store:
        for key in KEYS[:6]:
            await filled(store, KEYS)
            move = Move(nodes, key)
            move.begin()
            dropping = asyncio.create_task(store.void((), ["thing:*"]))
            await asyncio.sleep(0)
            if keys := move.keys():
                move.take(*keys)
            move.end()
            await dropping
            assert await stored(store) == [None] * len(KEYS)
            await asyncio.to_thread(patiently, nodes.is_whole)


# ---- Others take over ----


async def test_when_the_notes_move_requests_that_are_older_do_not_store(nodes: RedisCluster) -> None:
    """Another clock tells the time from then on."""
    key, another = [key for key in KEYS if nodes.holder_of(key) is not nodes.holder_of(NOTES)][:2]
    async with opened(nodes) as store:
        started = perf_counter()
        lease = await take(store, key)
        assert store.covers(lease, started)
        Move(nodes, NOTES).all_at_once()
        await store.probe()
        assert not store.covers(lease, started)
        await until_it_knows_the_time(store)
        started = perf_counter()
        assert store.covers(await take(store, another), started)
    await asyncio.to_thread(patiently, nodes.is_whole)


async def test_what_another_primary_answers_for_the_first_time_is_not_taken(nodes: RedisCluster) -> None:
    """It can have been dropped, by one who is gone."""
    key = KEYS[0]
    old = nodes.holder_of(key)
    new = nodes.replica_of(old)
    async with opened(nodes) as store:
        await filled(store, [key])
        await asyncio.to_thread(patiently, lambda: new.client.keys(key))
        started = perf_counter()
        new.cluster("FAILOVER")
        await asyncio.to_thread(patiently, lambda: new.role == "master" and old.role == "slave")
        with pytest.raises(LinkDown):
            await store.get(key, VARIANT)
        assert await store.get(key, VARIANT) == b"answer"
        await until_it_knows_the_time(store)
        lease = await take(store, KEYS[1])
        assert not store.covers(lease, started)
        assert store.covers(lease, perf_counter())
    await asyncio.to_thread(patiently, nodes.is_whole)


async def test_a_lease_that_was_not_noted_is_given_back(nodes: RedisCluster) -> None:
    """The notes are away: whoever waits does not have to wait for a lease that nobody has."""
    holder = nodes.holder_of(NOTES)
    key = next(key for key in KEYS if nodes.holder_of(key) is not holder)
    async with opened(nodes) as store:
        await take(store, "warm")
        with holder.stopped(), pytest.raises(LinkDown):
            await store.take(key, VARIANT, 60)
        other = nodes.holder_of(key).client
        await until(lambda: not other.exists(key))


async def test_a_probe_misses_any_primary(nodes: RedisCluster) -> None:
    async with opened(nodes) as store:
        for node in nodes.primaries:
            await until_it_knows_the_time(store)
            with node.stopped(), pytest.raises(LinkDown):
                await store.probe()


async def test_the_limits_share_its_connections_where_the_address_is_the_same(
    nodes: RedisCluster, settings: Settings
) -> None:
    app = whole_app()
    url = {name: SecretStr(nodes.url()) for name in ("REDIS_CACHE_URL", "REDIS_RATE_LIMIT_URL")}
    app.state.settings = settings.model_copy(update=url)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert app.state.rate_limiter.link is app.state.cache.store.link
        answer = await client.get("tiers")
        assert answer.status_code == 200
        assert "RateLimit" in answer.headers
        dependencies = (await client.get("ready")).json()["dependencies"]
        assert (dependencies["redis_cache"], dependencies["redis_rate_limit"]) == ("up", "up")
    assert any(node.client.keys("rate:*") for node in nodes.primaries)
