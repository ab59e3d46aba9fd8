"""What an operator sees of the cache, and drops from it, where it is a cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response

from app.core.utils.cache import Cache, KnownPrefix, entries_of, purge
from app.core.utils.cache.entry import Entry
from app.core.utils.cache.invalidation import Invalidator
from app.core.utils.cache.store import NOTES, Lease
from app.core.utils.redis_link import LinkError
from tests.core.utils.cache.test_store_in_cluster import opened
from tests.core.utils.test_redis_link import nothing_unseen
from tests.redis_topologies import RedisCluster

pytestmark = pytest.mark.anyio

KNOWN = [KnownPrefix("thing", (), (), ()), KnownPrefix("{name}_posts", ("name",), (), ())]
THINGS, POSTS = [f"thing:{number}" for number in range(30)], [f"{name}_posts:1" for name in "abcdefghij"]
OTHERS = ["slipway:x_posts", "rate:x_posts", "other:1", "thing:1:more"]


@asynccontextmanager
async def filled(nodes: RedisCluster) -> AsyncIterator[Cache]:
    """A cache with an answer for each key, and what is not the cache's."""
    async with nothing_unseen(), opened(nodes) as store:
        invalidator = Invalidator(store, durable=False)
        await invalidator.open()
        answer = Entry.of(Response(b"answer"), [], created=0, fresh=1, stale=1).dump()
        for key in (*THINGS, *POSTS):
            lease = await store.take(key, b"a variant's hash", 5)
            assert isinstance(lease, Lease)
            assert await store.store(lease, answer, 60)
        for key in OTHERS:
            nodes.holder_of(key).client.hset(key, "a", 1)
        try:
            yield Cache(store, invalidator)
        finally:
            await invalidator.close()


def keys_in(nodes: RedisCluster) -> set[str]:
    return {key for node in nodes.primaries for key in node.client.keys("*")} - {NOTES}


async def test_what_is_named_is_dropped_wherever_it_is(nodes: RedisCluster) -> None:
    async with filled(nodes) as cache:
        assert all(node.client.dbsize() > 3 for node in nodes.primaries)
        assert await purge(cache, "thing", 7, known=KNOWN) == 1
        assert keys_in(nodes) == {*THINGS, *POSTS, *OTHERS} - {"thing:7"}
        assert await purge(cache, "thing", known=KNOWN) == len(THINGS) - 1
        assert keys_in(nodes) == {*POSTS, *OTHERS}
        assert await purge(cache, "{name}_posts", 2, known=KNOWN) == 0
        assert await purge(cache, "{name}_posts", 1, known=KNOWN) == len(POSTS)
        assert keys_in(nodes) == set(OTHERS)


async def test_entries_are_found_wherever_they_are(nodes: RedisCluster) -> None:
    async with filled(nodes) as cache:
        for number in range(len(THINGS)):
            (variant,) = await entries_of(cache, "thing", number)
            assert (variant.status, variant.body_bytes) == (200, len(b"answer")), variant


async def test_without_a_part_of_it_not_all_is_dropped_and_that_is_said(nodes: RedisCluster) -> None:
    async with filled(nodes) as cache:
        with nodes.holder_of("thing:1").stopped(), pytest.raises(LinkError):
            await purge(cache, "thing", known=KNOWN)
