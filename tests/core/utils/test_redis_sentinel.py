"""A link by way of real sentinels: it is at the primary, whichever that is by now."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.core.utils.redis_link import AnyLink, Link, LinkDown, LinkError, Refused, Script, link_to
from app.core.utils.redis_link import link as redis_link
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.core.utils.test_redis_link import PATIENT, SECRET, FakeServer, bulk, nothing_unseen, opened, takes, until
from tests.event_loops import anyio_backend  # noqa: F401 -- a fixture
from tests.redis_topologies import SERVICE, Node, Watched, patiently, watched_by_sentinels

pytestmark = pytest.mark.anyio

COUNT = Script("return redis.call('INCR', KEYS[1])")
PROMPT = 0.6  # seconds; a busy machine takes most of it
SOON = 15.0  # seconds; a failover takes about two


@pytest.fixture(scope="session")
def formed() -> Iterator[Watched]:
    with watched_by_sentinels() as watched:
        yield watched


@pytest.fixture
def watched(formed: Watched) -> Watched:
    """A primary and its replica, well and empty."""
    formed.mend()
    return formed


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


async def outcome(link: AnyLink) -> Any:
    """What counting returns, or how it fails."""
    try:
        return await link.call(COUNT, "key")
    except LinkError as error:
        return error


async def until_it_counts(link: AnyLink, seconds: float = SOON) -> None:
    async with asyncio.timeout(seconds):
        while isinstance(await outcome(link), LinkError):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)


def connections(node: Node) -> int:
    """From here, beside the one that asks."""
    return len(node.client.client_list(_type="normal")) - 1


# ---- The primary ----


async def test_the_link_is_at_the_primary(watched: Watched) -> None:
    async with opened(watched.url()) as link:
        assert [await link.call(COUNT, "key") for _ in range(3)] == [1, 2, 3]
        assert watched.primary.client.get("key") == "3"
        assert not [client for client in watched.replica.client.client_list() if client["cmd"].startswith("eval")]


async def test_each_has_a_password_of_its_own() -> None:
    with watched_by_sentinels(SECRET, f"of-sentinels-{SECRET}") as watched:
        with capture_logs() as lines:
            async with opened(watched.url()) as link:
                assert await link.call(COUNT, "key") == 1
            async with opened(watched.url().replace("of-sentinels", "not-of-sentinels")) as link:
                assert not link.up
            async with opened(watched.url().replace(f":{SECRET}@", f":no-{SECRET}@")) as link:
                assert not link.up
        assert SECRET not in repr(lines)
        assert [line["event"] for line in lines] == ["redis is there", *["redis cannot be reached"] * 2]


async def test_a_wrong_name_is_an_outage_that_is_said_once(watched: Watched) -> None:
    with capture_logs() as lines:
        async with opened(watched.url(service="nosuch").replace("//", f"//:{SECRET}@")) as link:
            await asyncio.sleep(0.6)
            assert not link.up
            with pytest.raises(LinkDown):
                await link.call(COUNT, "key")
    (line,) = lines
    assert (line["event"], line["log_level"], line["link"]) == ("redis cannot be reached", "warning", "test")
    assert "nosuch" in line["why"]
    assert SECRET not in repr(lines)


async def test_sentinels_that_are_away_or_hang_are_passed_over(watched: Watched) -> None:
    watched.sentinels[0].stop()
    with watched.sentinels[1].stopped():
        async with opened(watched.url(), redis_link.ANSWER_TIMEOUT) as link:
            await until_it_counts(link)
    for sentinel in watched.sentinels[1:]:
        sentinel.stop()
    with takes(at_most=redis_link.FIRST_TRY + PROMPT):
        link = Link(watched.url(), "test")
        await link.open()
    try:
        assert not link.up
        watched.mend()
        await until_it_counts(link)
    finally:
        await link.close()


async def test_without_sentinels_a_link_goes_on(watched: Watched) -> None:
    async with opened(watched.url()) as link:
        for sentinel in watched.sentinels:
            sentinel.stop()
        assert [await link.call(COUNT, "key") for _ in range(3)] == [1, 2, 3]


# ---- Another one ----


async def test_a_primary_that_is_killed_is_replaced(watched: Watched) -> None:
    old, new = watched.primary, watched.replica
    changes: list[bool] = []
    async with opened(watched.url()) as link:
        link.on_change(changes.append)
        await link.call(COUNT, "key")
        old.stop()
        await until(lambda: not link.up)
        for _ in range(20):
            with takes(at_most=PROMPT):
                assert isinstance(await outcome(link), LinkDown)
        await until_it_counts(link)
        assert new.role == "master"
        assert changes[:1] + changes[-1:] == [False, True]
        watched.mend()  # It comes back as a replica, and the link stays with the new one, or finds it again.
        await until_it_counts(link)
        assert watched.primary is new


async def test_a_primary_that_hangs_is_replaced_and_not_waited_for(watched: Watched) -> None:
    old, new = watched.primary, watched.replica
    async with opened(watched.url(), 0.1) as link:
        await link.call(COUNT, "key")
        with old.stopped():
            for _ in range(20):
                with takes(at_most=PROMPT):
                    assert isinstance(await outcome(link), LinkDown)
            await asyncio.to_thread(patiently, lambda: new.role == "master")
            await until_it_counts(link)
            counted = int(new.client.get("key"))
        for number in range(1, 40):  # It wakes up, and believes for a moment that it is the primary still.
            assert await link.call(COUNT, "key") == counted + number
            await asyncio.sleep(0.02)


async def test_a_failover_that_is_asked_for(watched: Watched) -> None:
    new = watched.replica
    async with opened(watched.url()) as link:
        await link.call(COUNT, "key")
        await asyncio.to_thread(watched.hand_over)
        await until_it_counts(link)
        before = int(new.client.get("key"))
        assert [await link.call(COUNT, "key") for _ in range(3)] == [before + 1, before + 2, before + 3]
        assert int(new.client.get("key")) == before + 3


def saying(primary: Valkey) -> Any:
    """What a sentinel answers that knows of this primary."""
    state = {"name": SERVICE, "ip": "127.0.0.1", "port": primary.port, "flags": "master", "num-other-sentinels": 0}
    words = [bulk(str(word).encode()) for pair in state.items() for word in pair]
    answer = b"*1\r\n*%d\r\n%b" % (len(words), b"".join(words))
    return lambda words: answer if words[0].upper() == b"SENTINEL" else b"+OK\r\n"


@asynccontextmanager
async def two_servers(answer_timeout: float = PATIENT) -> AsyncIterator[tuple[Node, Node, FakeServer, Link]]:
    """A sentinel that says what the test wants it to, the first one to begin with; and a link by way of it."""
    with scratch_folder() as folder, ExitStack() as stack:
        one, two = (stack.enter_context(Node(folder / name)) for name in ("one", "two"))
        async with FakeServer() as sentinel:
            sentinel.answer = saying(one)
            async with opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}", answer_timeout) as link:
                yield one, two, sentinel, link


@pytest.mark.parametrize("first_line", ["", "#!lua\n"])
async def test_a_primary_that_was_demoted_and_keeps_the_connection_is_left(first_line: str) -> None:
    """It refuses with READONLY whatever would write."""
    async with two_servers() as (one, two, sentinel, link):
        assert await link.call(COUNT, "key") == 1
        one.client.replicaof("127.0.0.1", two.port)
        sentinel.answer = saying(two)
        with capture_logs() as lines:
            with pytest.raises(Refused, match="READONLY"):
                await link.call(Script(first_line + COUNT.source), "key")
            await until(lambda: not link.up)
        await until_it_counts(link)
        assert int(two.client.get("key")) == 1
    assert ("redis is away", "is a replica now") in [(line["event"], line.get("why")) for line in lines]


async def test_a_primary_that_sentinels_are_late_to_replace_is_not_stormed() -> None:
    """They name the one that is a replica by now: it refuses, and is tried again, with pauses."""
    async with two_servers() as (one, two, sentinel, link):
        one.client.replicaof("127.0.0.1", two.port)
        before = sentinel.connected
        async with asyncio.timeout(3):
            for _ in range(60):
                assert isinstance(await outcome(link), LinkError)
                await asyncio.sleep(0.01)
        assert sentinel.connected - before <= 12
        sentinel.answer = saying(two)
        await until_it_counts(link)


async def test_a_single_server_that_is_read_only_is_not_left(valkey: Valkey) -> None:
    """Nobody has named it but its URL: there is nowhere else to go."""
    async with FakeServer() as server, opened(server.url) as link:
        server.answer = lambda words: b"-READONLY You can't write against a read only replica.\r\n"
        with pytest.raises(Refused, match="READONLY"):
            await link.call(COUNT, "key")
        await asyncio.sleep(0.05)
        assert link.up
        assert server.connected == 1


async def test_one_that_was_replaced_and_has_not_heard_of_it_is_left() -> None:
    """It goes on to answer, and takes what is written: until the sentinels, too, have told it, that is many seconds."""
    async with two_servers() as (_, two, sentinel, link):
        assert await link.call(COUNT, "key") == 1
        sentinel.answer = saying(two)
        with capture_logs() as lines:
            await until(lambda: not link.up)
        await until_it_counts(link)
        assert int(two.client.get("key")) == 1
    assert ("redis is away", "is not the primary any more") in [(line["event"], line.get("why")) for line in lines]


async def test_one_that_has_hung_is_not_gone_back_to_without_asking() -> None:
    async with two_servers(0.05) as (one, two, sentinel, link):
        with one.stopped():
            assert isinstance(await outcome(link), LinkDown)
            sentinel.answer = saying(two)
        await until_it_counts(link)
        assert int(two.client.get("key")) == 1


async def test_sentinels_that_do_not_know_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "ASK_SENTINELS", 0.05)
    async with two_servers() as (_, _, sentinel, link):
        asked = sentinel.connected
        sentinel.answer = lambda words: b"-ERR nothing is known\r\n"
        await until(lambda: sentinel.connected > asked + 3)
        assert [await link.call(COUNT, "key") for _ in range(3)] == [1, 2, 3]


# ---- Everything away, and the end ----


async def test_all_is_away_and_back(watched: Watched) -> None:
    async with opened(watched.url()) as link:
        await link.call(COUNT, "key")
        for node in (*watched.servers, *watched.sentinels):
            node.stop()
        await until(lambda: not link.up)
        with takes(at_most=PROMPT):
            assert isinstance(await outcome(link), LinkDown)
        watched.mend()
        await until_it_counts(link)


async def test_sentinels_are_not_kept_busy_and_a_close_leaves_nothing_behind(watched: Watched) -> None:
    nodes = (*watched.sentinels, watched.primary)
    before, tasks = [connections(node) for node in nodes], asyncio.all_tasks()
    link = link_to(watched.url(), "test")
    await link.open()
    assert link.up
    assert [connections(node) for node in nodes] == [*before[:-1], before[-1] + 1]
    with capture_logs() as lines, takes(at_most=PROMPT):
        await link.close()
    assert lines == []
    assert asyncio.all_tasks() == tasks
    await asyncio.to_thread(patiently, lambda: [connections(node) for node in nodes] == before)
    with pytest.raises(LinkDown):
        await link.call(COUNT, "key")


async def test_a_close_does_not_wait_for_sentinels_that_hang() -> None:
    async with FakeServer() as one, FakeServer() as two:
        one.shakes_hands = two.shakes_hands = False
        link = Link(f"redis+sentinel://127.0.0.1:{one.port},127.0.0.1:{two.port}/{SERVICE}", "test")
        with takes(at_most=redis_link.FIRST_TRY + PROMPT):
            await link.open()
        with takes(at_most=PROMPT):
            await link.close()


async def test_nobody_there_is_an_outage_said_once() -> None:
    hosts = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    with capture_logs() as lines:
        async with opened(f"redis+sentinel://:{SECRET}@{hosts}/{SERVICE}?sentinel_password={SECRET}") as link:
            await asyncio.sleep(0.6)
            assert not link.up
    assert [line["event"] for line in lines] == ["redis cannot be reached"]
    assert SECRET not in repr(lines)
