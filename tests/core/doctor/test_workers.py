"""Workers, by the sign of life that they leave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.core.utils.queue.workers import WORKERS, beat
from app.core.utils.redis_link import Link
from tests.doctor_kit import FAILED, OK, SECRET, WARNING, Settle, lines
from tests.redis_topologies import Node

pytestmark = pytest.mark.anyio

CHECK, LONG_CHECK = "workers: arq:queue", "workers: arq:queue:long"


@pytest.fixture
def empty(server: Node) -> Node:
    """A server without any keys."""
    server.client.flushall()
    return server


@asynccontextmanager
async def link_to(server: Node) -> AsyncIterator[Link]:
    """A link, while it is open."""
    link = Link(f"redis://127.0.0.1:{server.port}/0", "test", answer_timeout=2)
    await link.open()
    yield link
    await link.close()


async def say(link: Link, name: str, queue: str = "arq:queue", *, running: int = 0, interval: float = 30) -> None:
    """A worker's heartbeat."""
    told = {"running": running, "queue": queue, "started_at": "", "max_jobs": 1, "functions": []}
    await beat(link, name, f"{queue}:health-check", interval, told)


async def kill(link: Link, name: str, queue: str = "arq:queue") -> None:
    """A worker that was killed a while ago."""
    await say(link, name, queue)
    seconds, _ = await link.send("TIME")
    await link.send("ZADD", WORKERS, (int(seconds) - 1) * 1000, name)
    await link.send("DEL", f"{queue}:health-check")


async def test_without_workers_jobs_wait(settle: Settle, empty: Node) -> None:
    found = await lines(settle(REDIS_QUEUE_PORT=empty.port))
    assert (found[CHECK].outcome, found[LONG_CHECK].outcome) == (FAILED, WARNING)


async def test_arqs_own_worker_says_it_in_words(settle: Settle, empty: Node) -> None:
    empty.client.set("arq:queue:health-check", "Nov-25 12:00:00 j_complete=0", px=31_000)
    found = (await lines(settle(REDIS_QUEUE_PORT=empty.port)))[CHECK]
    assert found.outcome is OK
    assert found.text.startswith("1 seen, ")


async def test_a_worker_of_an_older_release_counts(settle: Settle, empty: Node) -> None:
    empty.client.set("arq:queue:health-check", '{"running": 3, "queue": "arq:queue", "worker": "old"}', px=21_000)
    found = (await lines(settle(REDIS_QUEUE_PORT=empty.port)))[CHECK]
    assert found.outcome is OK
    assert found.text.endswith("with 3 jobs")


async def test_each_worker_counts_in_its_queue_and_who_is_late_is_told_of(settle: Settle, empty: Node) -> None:
    async with link_to(empty) as link:
        await kill(link, "killed")
        await say(link, "one", running=2)
        await say(link, "two", running=3)
        await say(link, "other", "another queue")
    found = await lines(settle(REDIS_QUEUE_PORT=empty.port))
    assert found[CHECK].outcome is OK
    assert found[CHECK].text.startswith("2 seen, ")
    assert found[CHECK].text.endswith("with 5 jobs; 1 not heard of any more")
    assert found[LONG_CHECK].outcome is WARNING


async def test_a_worker_that_is_late_does_not_count(settle: Settle, empty: Node) -> None:
    async with link_to(empty) as link:
        await kill(link, "killed", "arq:queue:long")
    assert (await lines(settle(REDIS_QUEUE_PORT=empty.port)))[LONG_CHECK].outcome is WARNING


async def test_it_does_not_go_through_the_keys(settle: Settle, empty: Node) -> None:
    async with link_to(empty) as link:
        await say(link, "one")
    before = empty.client.info("commandstats")
    assert (await lines(settle(REDIS_QUEUE_PORT=empty.port)))[CHECK].outcome is OK
    after = empty.client.info("commandstats")
    for command in ("cmdstat_scan", "cmdstat_keys", "cmdstat_dbsize"):
        assert after.get(command) == before.get(command)


async def test_who_may_not_run_scripts_sees_the_shared_key(settle: Settle, empty: Node) -> None:
    empty.client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "allkeys", "+@all", "-eval")
    async with link_to(empty) as link:
        await say(link, "one", running=4)
    found = await lines(settle(REDIS_QUEUE_URL=f"redis://app:{SECRET}@127.0.0.1:{empty.port}/0"))
    assert found[CHECK].outcome is OK
    assert found[CHECK].text.endswith("with 4 jobs")
