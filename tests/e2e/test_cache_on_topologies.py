"""The cache of two servers in a cluster, or at a primary whom sentinels replace: never an answer of the past."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import httpx2
import pytest

from app.core.utils.cache.store import NOTES
from app.core.utils.redis_link.link import ASK_SENTINELS
from tests.cache_app_values import TABLES
from tests.conftest import connect
from tests.core.utils.test_redis_cluster import Move
from tests.e2e.test_cache_faults import QUIET, SERVERS, UNNOTICED, Load, clients_of_servers
from tests.e2e.test_cache_on_many_servers import COUNTERS, races_of_counters, run_races
from tests.redis_topologies import Node, RedisCluster, Watched, patiently, redis_cluster, watched_by_sentinels

pytestmark = pytest.mark.anyio

SIMULTANEOUS = 40
OF_ADA = range(101, 121)  # counters of one owner
ROUNDS = 150
SOON = 5.0  # seconds

Clients = list[httpx2.AsyncClient]
HolderOf = Callable[[str], tuple[Node, Node]]  # of a key: the primary, and its replica


async def test_in_a_cluster(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test for all of it: servers take seconds to start."""
    with redis_cluster() as nodes:
        monkeypatch.setenv("REDIS_CACHE_URL", nodes.url())

        def holder_of(key: str) -> tuple[Node, Node]:
            primary = nodes.holder_of(key)
            return primary, nodes.replica_of(primary)

        async with counters(database) as db, clients_of_servers() as clients:
            await what_one_has_stored_the_other_has_until_either_changes_it(clients)
            await many_wait_for_one_computation(clients, db)
            assert len({nodes.holder_of(f"ada_counters:{number}") for number in OF_ADA}) == len(nodes.primaries)
            await a_pattern_drops_all_that_it_matches(clients)
            await slots_move_meanwhile(clients, nodes)
            for key in (NOTES, f"counter:{QUIET[0]}"):
                await a_primary_is_lost_with_its_last_writes(clients, key, holder_of)
                await asyncio.to_thread(nodes.mend)
            await all_is_well(clients, nodes)


async def test_by_way_of_sentinels(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_by_sentinels() as watched:
        monkeypatch.setenv("REDIS_CACHE_URL", watched.url())
        async with counters(database) as db, clients_of_servers() as clients:
            await what_one_has_stored_the_other_has_until_either_changes_it(clients)
            await many_wait_for_one_computation(clients, db)
            await a_pattern_drops_all_that_it_matches(clients)
            await a_primary_is_lost_with_its_last_writes(
                clients, f"counter:{QUIET[0]}", lambda _: (watched.primary, watched.replica)
            )
            await asyncio.to_thread(watched.mend)
            await a_failover_is_asked_for(clients, watched)
            await all_is_well(clients, watched)


@asynccontextmanager
async def counters(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database)
    try:
        await connection.execute(TABLES)
        rows = [(number, f"owner{number}") for number in {*range(1, COUNTERS + 1), *QUIET}]
        rows += [(number, "ada") for number in OF_ADA]
        await connection.executemany("INSERT INTO counter VALUES ($1, $2)", rows)
        yield connection
    finally:
        await connection.close()


async def asked(client: httpx2.AsyncClient, path: str) -> tuple[int, str]:
    """The value of a counter, and where it is from."""
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()["value"], answer.headers["X-Cache"]


# ---- While all is well ----


async def what_one_has_stored_the_other_has_until_either_changes_it(clients: Clients) -> None:
    for number in range(1, COUNTERS + 1):
        one, other = clients if number % 2 else clients[::-1]
        path = f"counter/{number}"
        assert await asked(one, path) == (0, "MISS")
        assert await asked(other, path) == (0, "HIT")
        assert (await one.patch(path)).json()["value"] == 1
        assert await asked(other, path) == (1, "MISS")
        async with asyncio.timeout(SOON):  # What is as old as the change, as far as the clocks tell, is not stored.
            while await asked(other, path) != (1, "HIT"):
                pass
        assert await asked(one, path) == (1, "HIT")


async def many_wait_for_one_computation(clients: Clients, db: asyncpg.Connection) -> None:
    for number in range(1, 5):
        await db.execute("TRUNCATE computation")
        path, headers = f"slow/{number}", {"Wait-after-read": "0.3"}
        asking = (client.get(path, headers=headers) for client in clients for _ in range(SIMULTANEOUS // SERVERS))
        assert len({answer.content for answer in await asyncio.gather(*asking)}) == 1
        assert await db.fetchval("SELECT count(*) FROM computation") == 1


async def a_pattern_drops_all_that_it_matches(clients: Clients) -> None:
    one, other = clients
    paths = [f"owner/ada/counter/{number}" for number in OF_ADA]
    assert [await asked(one, path) for path in paths] == [(0, "MISS")] * len(paths)
    assert [await asked(other, path) for path in paths] == [(0, "HIT")] * len(paths)
    assert (await one.patch("owner/ada")).json()["value"] == 1
    assert [await asked(other, path) for path in paths] == [(1, "MISS")] * len(paths)


# ---- While it is not ----


async def slots_move_meanwhile(clients: Clients, nodes: RedisCluster) -> None:
    """Keys, and the notes of what was dropped, go from one primary to another, and on."""
    over = asyncio.Event()
    moves = 0

    async def keep_moving() -> None:
        nonlocal moves
        while not over.is_set():
            for key in (NOTES, *(f"counter:{number}" for number in range(1, COUNTERS + 1))):
                await asyncio.to_thread(Move(nodes, key).all_at_once)
                await asyncio.to_thread(patiently, nodes.is_whole)
                moves += 1

    async with asyncio.TaskGroup() as group:
        moving = group.create_task(keep_moving())
        try:
            await run_races(races_of_counters(clients, "counter/{}", "loaded/{}"), rounds=ROUNDS)
        finally:
            over.set()
            await asyncio.wait([moving])
    assert moves > COUNTERS
    await Load(clients).until_hits_are_back()


async def a_primary_is_lost_with_its_last_writes(clients: Clients, key: str, holder_of: HolderOf) -> None:
    """Its replica, which takes over, has what the primary was told to drop, and has dropped."""
    victim, replica = holder_of(key)
    theirs = [number for number in QUIET if holder_of(f"counter:{number}")[0] is victim]
    load = Load(clients)
    async with load.running():
        await asyncio.sleep(0.3)
        for _ in range(2):
            await load.read_quiet()
        await asyncio.to_thread(patiently, lambda: keys_of(theirs) <= set(replica.client.keys()))
        with replica.stopped():
            victim.client.client_kill_filter(_type="slave")
            for number in QUIET:
                await load.write(clients[number % SERVERS], number)
            assert keys_of(theirs).isdisjoint(victim.client.keys())
            victim.stop()
        assert keys_of(theirs) <= set(replica.client.keys())
        await asyncio.to_thread(patiently, lambda: holder_is_another(holder_of, key, victim))
        await load.until_hits_are_back()
        await load.read_quiet()
        await asyncio.sleep(0.5)
    assert load.wrong == []


def holder_is_another(holder_of: HolderOf, key: str, victim: Node) -> bool:
    try:
        return holder_of(key)[0] is not victim
    except StopIteration:  # The new one has no replica.
        return True


def keys_of(numbers: list[int]) -> set[str]:
    return {f"counter:{number}" for number in numbers}


async def a_failover_is_asked_for(clients: Clients, watched: Watched) -> None:
    """Both are there, and for a moment both believe that they are the primary: docs/cache.md promises no more."""
    new = watched.replica
    load = Load(clients)
    async with load.running():
        await load.read_quiet()
        load.phase = UNNOTICED
        await asyncio.to_thread(watched.hand_over)
        await load.until_hits_are_back()
        await asyncio.sleep(ASK_SENTINELS)
        load.phase = "handed over"
        await load.read_quiet()
        await asyncio.sleep(1)
    assert load.wrong == []
    assert new.client.keys("counter:*")


async def all_is_well(clients: Clients, servers: RedisCluster | Watched) -> None:
    await Load(clients).until_hits_are_back()
    for client in clients:
        assert (await client.get("ready")).json()["dependencies"]["redis_cache"] == "up"
    for node in servers.primaries if isinstance(servers, RedisCluster) else [servers.primary]:
        assert all(node.client.pttl(key) != -1 for key in node.client.scan_iter())
