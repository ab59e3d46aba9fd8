"""What a full Redis/Valkey server evicts, by what it is used for."""

import pytest

from app.core.doctor import Outcome
from tests.doctor_kit import FAILED, OK, SECRET, WARNING, Settle, lines
from tests.redis_topologies import Node

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("policy", "maxmemory", "cache", "limits", "queue", "is_certain"),
    [
        ("noeviction", 0, OK, OK, OK, False),
        ("noeviction", 10**8, WARNING, OK, OK, False),
        ("allkeys-lru", 0, OK, WARNING, WARNING, False),
        ("allkeys-lru", 10**8, OK, FAILED, FAILED, True),
        ("volatile-ttl", 10**8, OK, FAILED, FAILED, False),
    ],
)
async def test_what_a_full_server_does(
    settle: Settle,
    server: Node,
    policy: str,
    maxmemory: int,
    cache: Outcome,
    limits: Outcome,
    queue: Outcome,
    is_certain: bool,
) -> None:
    server.client.config_set("maxmemory-policy", policy)
    server.client.config_set("maxmemory", maxmemory)
    found = await lines(settle(**dict.fromkeys(PORTS, server.port)))
    of = {use: found[f"valkey {use}: eviction"] for use in ("cache", "limits", "queue")}
    assert [of[use].outcome for use in of] == [cache, limits, queue]
    assert [of[use].is_certain for use in of] == [False, is_certain, is_certain]
    for use in ("limits", "queue"):
        if of[use].outcome is not OK:
            assert "CONFIG SET maxmemory-policy noeviction" in of[use].remedy
    if cache is WARNING:
        assert "have REDIS_CACHE_URL name a server of its own" in of["cache"].remedy


PORTS = ("REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT")


async def test_a_cache_of_its_own_is_to_evict(settle: Settle, server: Node) -> None:
    server.client.config_set("maxmemory", 10**8)
    found = (await lines(settle(REDIS_CACHE_PORT=server.port)))["valkey cache: eviction"]
    assert found.outcome is WARNING
    assert "CONFIG SET maxmemory-policy allkeys-lru" in found.remedy


async def test_what_would_mend_the_cache_does_not_break_the_queue(settle: Settle, server: Node) -> None:
    server.client.config_set("maxmemory", 10**8)
    server.client.execute_command("ACL", "SETUSER", "cache", "on", f">{SECRET}", "allkeys", "+@all")
    cache, queue = f"redis://cache:{SECRET}@127.0.0.1:{server.port}/1", f"redis://cache:wrong@localhost:{server.port}/0"
    found = await lines(settle(REDIS_CACHE_URL=cache, REDIS_QUEUE_URL=queue))
    assert found["valkey cache: eviction"].outcome is WARNING
    assert "have REDIS_CACHE_URL name a server of its own" in found["valkey cache: eviction"].remedy
    assert (found["valkey (cache)"].outcome, found["valkey (queue)"].outcome) == (OK, FAILED)
