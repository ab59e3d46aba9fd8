"""Rate limits of two servers that are kept in a cluster, or by a primary whom sentinels replace."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import cycle

import httpx2
import pytest

from app.core.config import Settings
from app.core.utils.rate_limit import user_subject
from app.models.user import User
from tests.conftest import opened_session
from tests.core.utils.test_redis_link import until
from tests.e2e.test_sign_in_on_many_servers import Clients, clients_of
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in
from tests.processes import running_api
from tests.redis_topologies import Node, RedisCluster, Watched, patiently, redis_cluster, watched_by_sentinels

pytestmark = pytest.mark.anyio

SERVERS = 2
LIMIT = 12
USERS = 8
IN_FORCE = 2.0  # seconds until a changed rule is gone by on every server
SOON = 20.0  # seconds until, after a failover, all is as before; some two of them are the servers' pauses


async def test_in_a_cluster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test for all of it: servers take seconds to start."""
    with redis_cluster(cluster_require_full_coverage="yes") as nodes:  # As it comes: one is lost, all pause.
        async with two_servers(nodes.url(), monkeypatch) as clients:
            await all_of_it(clients, settings, nodes, lambda user: nodes.holder_of(key_of(user)))


async def test_by_way_of_sentinels(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_by_sentinels() as watched:
        async with two_servers(watched.url(), monkeypatch) as clients:
            await all_of_it(clients, settings, watched, lambda user: watched.primary)


@asynccontextmanager
async def two_servers(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clients]:
    monkeypatch.setenv("REDIS_RATE_LIMIT_URL", url)
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", str(LIMIT))
    with ExitStack() as stack:
        servers = [stack.enter_context(running_api()) for _ in range(SERVERS)]
        async with clients_of(servers) as clients:
            yield clients


async def all_of_it(
    clients: Clients, settings: Settings, servers: RedisCluster | Watched, holder_of: Callable[[User], Node]
) -> None:
    await until_the_limit_is_exact(clients, settings)
    await a_changed_rule_is_in_force_on_the_other(clients, settings)
    no_key_stays_for_ever(servers)

    users = await some_users(settings)
    victim = holder_of(users[0])
    async with load(clients, settings, users) as seen:
        await until(lambda: seen.total() > 50, SOON)
        victim.stop()
        before = seen.total()
        await asyncio.to_thread(patiently, lambda: holder_of(users[0]) is not victim)
        await until(lambda: seen.total() > before + 50, SOON)
    assert set(seen) <= {200, 429}, seen

    await until_the_limit_is_exact(clients, settings)
    await a_changed_rule_is_in_force_on_the_other(clients, settings, tier_name="plus")
    servers.mend()
    await until_the_limit_is_exact(clients, settings)
    no_key_stays_for_ever(servers)
    for client in clients:
        assert (await client.get("ready")).json()["dependencies"]["redis_rate_limit"] == "up"


def key_of(user: User) -> str:
    return f"rate:{{{user_subject(user.id)}}}:any"


async def some_users(settings: Settings) -> list[User]:
    async with opened_session(settings) as db:
        return [await create_user(db) for _ in range(USERS)]


async def until_the_limit_is_exact(clients: Clients, settings: Settings) -> None:
    """Of twice as many requests of somebody new, over all servers, as many as the limit pass.

    When others take all the time of the machine, a server can be taken to hang, and a round is not exact.
    """
    passed: list[int] = []
    async with asyncio.timeout(SOON):
        while passed != [LIMIT] * USERS:
            asked = (statuses_of(clients, settings, user, 2 * LIMIT) for user in await some_users(settings))
            found = [Counter(statuses) for statuses in await asyncio.gather(*asked)]
            assert all(set(statuses) <= {200, 429} for statuses in found)
            passed = [statuses[200] for statuses in found]


async def statuses_of(clients: Clients, settings: Settings, user: User, times: int) -> Sequence[int]:
    turns, headers = cycle(clients), signed_in(user, settings)
    found: list[int] = []
    for _ in range(times // SERVERS):
        both = await asyncio.gather(*(next(turns).get("user/me/", headers=headers) for _ in range(SERVERS)))
        found += [answer.status_code for answer in both]
    return found


async def a_changed_rule_is_in_force_on_the_other(clients: Clients, settings: Settings, tier_name: str = "pro") -> None:
    one, other = clients
    async with opened_session(settings) as db:
        admin = signed_in(await create_superuser(db), settings)
        tier = await create_tier(db, tier_name)
        rule = await create_rate_limit(db, tier, limit=1000)
        user = signed_in(await create_user(db, tier_id=tier.id), settings)
    for limit in (2000, 3000):
        changed = await one.patch(f"tier/{tier_name}/rate_limit/{rule.id}", json={"limit": limit}, headers=admin)
        assert changed.status_code == 200
        for client in (one, other):
            await until_the_policy_is(f'"{rule.name}";q={limit};w={rule.period}', client, user)


async def until_the_policy_is(policy: str, client: httpx2.AsyncClient, user: dict[str, str]) -> None:
    async with asyncio.timeout(IN_FORCE):
        while await policy_of(client, user) != policy:  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)


async def policy_of(client: httpx2.AsyncClient, user: dict[str, str]) -> str:
    return str((await client.get("user/me/", headers=user)).headers["RateLimit-Policy"])


@asynccontextmanager
async def load(clients: Clients, settings: Settings, users: list[User]) -> AsyncIterator[Counter[int]]:
    """Meanwhile everybody keeps asking both servers. Yields how often they got which status."""
    seen: Counter[int] = Counter()
    over = asyncio.Event()

    async def keep_asking(user: User, client: httpx2.AsyncClient) -> None:
        headers = signed_in(user, settings)
        while not over.is_set():
            seen[(await client.get("user/me/", headers=headers)).status_code] += 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for user in users:
            for client in clients:
                group.create_task(keep_asking(user, client))
        yield seen
        over.set()


def no_key_stays_for_ever(servers: RedisCluster | Watched) -> None:
    found = 0
    for node in servers.primaries if isinstance(servers, RedisCluster) else [servers.primary]:
        for key in node.client.scan_iter():
            found += 1
            assert node.client.pttl(key) != -1, key
    assert found >= USERS
