"""Redis/Valkey servers: which are one, what may be asked, and each node of a cluster or behind Sentinel."""

import time

import pytest

from app.core.config import get_settings
from app.core.doctor import Fleet, examine
from app.core.doctor.valkey import servers_of
from scripts.embedded import Valkey, free_port
from tests.doctor_kit import FAILED, OK, SECRET, WARNING, Settle, lines
from tests.redis_topologies import Node, redis_cluster, watched_by_sentinels

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("cache", "queue"),
    [
        ("redis://{host}/0", "redis://{host}/1"),
        ("redis://cache:one@{host}/0", "redis://queue:two@{host}/0"),
        ("redis://localhost:{port}/0", "redis://127.0.0.1:{port}"),
        ("redis+cluster://{host},other:7000", "redis://{host}/0"),
        ("redis+sentinel://one,two/name/1", "redis+sentinel://:two@two:26379/name/0"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock"),
    ],
)
def test_one_server_is_one_whatever_the_login_and_the_database(settle: Settle, cache: str, queue: str) -> None:
    where = {"host": "valkey.example:7000", "port": 7000}
    urls = {"REDIS_CACHE_URL": cache.format(**where), "REDIS_QUEUE_URL": queue.format(**where)}
    found = {used.url: used.is_shared for used in servers_of(settle(**urls))}
    assert found == {
        urls["REDIS_CACHE_URL"]: True,
        urls["REDIS_QUEUE_URL"]: True,
        get_settings().redis_rate_limit_url: False,
    }


@pytest.mark.parametrize(
    "queue", ["redis://valkey.example:7001/0", "redis://other.example:7000/0", "redis+sentinel://valkey.example:7000/a"]
)
def test_two_servers_are_two(settle: Settle, queue: str) -> None:
    used = servers_of(settle(REDIS_CACHE_URL="redis://valkey.example:7000/0", REDIS_QUEUE_URL=queue))
    assert [server.is_shared for server in used] == [False] * 3


async def test_who_may_not_ask_everything_is_told_so(settle: Settle, server: Node) -> None:
    server.client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "allkeys", "+@all", "-info", "-dbsize")
    found = await lines(settle(REDIS_QUEUE_URL=f"redis://app:{SECRET}@127.0.0.1:{server.port}/0"))
    assert found["valkey (queue)"].outcome is WARNING
    assert "cannot be seen" in found["valkey (queue)"].text
    assert "+info" in found["valkey (queue)"].remedy
    assert found["workers: arq:queue"].outcome is FAILED


async def test_a_replica_takes_no_changes(settle: Settle, server: Node, valkey: Valkey) -> None:
    server.client.execute_command("REPLICAOF", "127.0.0.1", valkey.port)
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["valkey (queue)"]
    assert found.outcome is FAILED
    assert "have REDIS_QUEUE_URL name the primary" in found.remedy


async def test_a_queue_that_forgets(settle: Settle, server: Node) -> None:
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["valkey queue: persistence"]
    assert found.outcome is WARNING
    assert "CONFIG SET appendonly yes" in found.remedy


async def test_every_primary_of_a_cluster_is_asked(settle: Settle) -> None:
    with redis_cluster() as cluster:
        cluster.primaries[2].client.config_set("maxmemory", 10**8)
        cluster.primaries[2].client.config_set("maxmemory-policy", "allkeys-lfu")
        gone = f"127.0.0.1:{free_port()}"
        url = cluster.url(nodes=cluster.primaries[:1]).replace("//", f"//{gone},")
        found = await examine(settle(REDIS_RATE_LIMIT_URL=url), Fleet())
        servers = [finding for finding in found if finding.check == "valkey (limits)"]
        assert [finding.outcome for finding in servers] == [OK] * 3
        evictions = [finding.outcome for finding in found if finding.check == "valkey limits: eviction"]
        assert sorted(evictions) == [FAILED, OK, OK]

        broken = cluster.primaries[2]
        replica = cluster.replica_of(broken)
        replica.stop()
        broken.stop()
        patience = time.monotonic() + 20
        while not any(FAILED is line.outcome for line in await examine(settle(), Fleet()) if "(limits)" in line.check):
            assert time.monotonic() < patience


async def test_the_primary_is_the_sentinels_word(settle: Settle) -> None:
    with watched_by_sentinels(SECRET, f"{SECRET}2") as watched:
        found = await lines(settle(REDIS_QUEUE_URL=watched.url(), REDIS_CACHE_URL=watched.url("unknown")))
        assert found["valkey (queue)"].text.endswith(watched.primary.address)
        assert found["valkey (queue): password"].text == "it asks for one"
        assert found["valkey (cache)"].outcome is FAILED
        assert SECRET not in repr(found)
