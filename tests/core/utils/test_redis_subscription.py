"""Listening to a channel: of one server, a cluster, or whichever server is the primary."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from app.core.utils.redis_link import subscription
from app.core.utils.redis_link.subscription import Subscription
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.core.utils.test_redis_link import SECRET, FakeServer, nothing_unseen, takes, until
from tests.event_loops import anyio_backend  # noqa: F401 -- a fixture
from tests.redis_topologies import Node, RedisCluster, Watched, redis_cluster, watched_by_sentinels

pytestmark = pytest.mark.anyio

CHANNEL = "rules"
PROMPT = 0.6  # seconds; a busy machine takes most of it
SOON = 15.0  # seconds; a failover takes about two

Client = Any  # redis-py's types leave open whether one has to await.


@pytest.fixture(scope="module")
def server() -> Iterator[Node]:
    with scratch_folder() as folder, Node(folder / "valkey") as server:
        yield server


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "CHECK", 0.4)
    monkeypatch.setattr(subscription, "PAUSE", 0.1)


class Heard:
    """How often it was called back, and by whom it is."""

    def __init__(self, url: str, channel: str = CHANNEL) -> None:
        self.times = 0
        self.subscription = Subscription(url, channel, self._notice)

    def _notice(self) -> None:
        self.times += 1

    async def next(self, seconds: float = SOON) -> None:
        """Returns once it is called back."""
        times = self.times
        await until(lambda: self.times > times, seconds)


@asynccontextmanager
async def listening(url: str, at_once: bool = True) -> AsyncIterator[Heard]:
    heard = Heard(url)
    await heard.subscription.open()
    try:
        if at_once:
            await until(lambda: heard.times, SOON)
        yield heard
    finally:
        await heard.subscription.close()


async def until_it_is_heard(client: Client, heard: Heard, seconds: float = SOON) -> None:
    """Returns once a message has got through."""
    times = heard.times
    async with asyncio.timeout(seconds):
        while heard.times == times:
            client.publish(CHANNEL, "word")
            await asyncio.sleep(0.05)


def url_of(server: Valkey) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


# ---- One server ----


async def test_it_is_called_back_for_each_message_and_when_it_begins(server: Node) -> None:
    async with listening(url_of(server)) as heard:
        assert heard.times == 1
        for number in range(2, 12):
            assert server.client.publish(CHANNEL, b"\xff") == 1
            await until(lambda number=number: heard.times == number)  # type: ignore[misc]
        server.client.publish("another channel", "word")
        for _ in range(100):
            server.client.publish(CHANNEL, "word")
        await until(lambda: heard.times == 111)
        await asyncio.sleep(0.05)
        assert heard.times == 111


async def test_silence_is_no_reason_to_begin_anew(server: Node) -> None:
    async with listening(url_of(server)) as heard:
        connected = int(server.client.info("stats")["total_connections_received"])
        await asyncio.sleep(3 * subscription.CHECK)
        assert heard.times == 1
        assert int(server.client.info("stats")["total_connections_received"]) == connected
        await until_it_is_heard(server.client, heard)


async def test_a_server_that_is_not_there_yet(server: Node) -> None:
    server.stop()
    with takes(at_most=PROMPT):
        heard = Heard(url_of(server))
        await heard.subscription.open()
    try:
        await asyncio.sleep(0.3)
        assert heard.times == 0
        server.start()
        await until(lambda: heard.times == 1, SOON)
        await until_it_is_heard(server.client, heard)
    finally:
        await heard.subscription.close()


async def test_a_server_that_restarts_is_listened_to_again(server: Node) -> None:
    async with listening(url_of(server)) as heard:
        for _ in range(2):
            times = heard.times
            server.stop()
            await asyncio.sleep(0.3)
            assert heard.times == times
            server.start()
            await heard.next()  # Something may have been missed.
            await until_it_is_heard(server.client, heard)


async def test_a_connection_that_is_cut_is_made_anew(server: Node) -> None:
    async with listening(url_of(server)) as heard:
        server.client.client_kill_filter(_type="pubsub")
        await heard.next()
        await until_it_is_heard(server.client, heard)


async def test_a_server_that_hangs_for_longer_than_a_check(server: Node) -> None:
    async with listening(url_of(server)) as heard:
        with server.stopped():
            await asyncio.sleep(3 * subscription.CHECK)
            assert heard.times == 1
        await heard.next()  # It has begun anew.
        await until_it_is_heard(server.client, heard)
        await asyncio.sleep(0.3)
        await until(lambda: len(server.client.client_list(_type="pubsub")) == 1)


@pytest.mark.parametrize("answers", ["nothing at all", "the greeting, and then nothing"])
async def test_a_server_that_hangs_while_it_is_connected_to_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """As one may that takes connections and no more: where its machine has gone, nobody will ever close them."""
    monkeypatch.setattr(subscription, "CONNECT_TIMEOUT", 0.3)
    async with FakeServer() as server:
        server.shakes_hands = answers != "nothing at all"
        server.muted = True
        async with listening(server.url, at_once=False) as heard:
            await until(lambda: server.connected >= 3)
            assert heard.times == 0


async def test_a_wrong_password_is_tried_until_it_is_the_right_one(server: Node) -> None:
    server.client.config_set("requirepass", "another password")
    try:
        async with listening(f"redis://:{SECRET}@127.0.0.1:{server.port}/0", at_once=False) as heard:
            await asyncio.sleep(0.3)
            assert heard.times == 0
            server.client.config_set("requirepass", SECRET)
            await until(lambda: heard.times == 1)
    finally:
        with Redis(port=server.port, password=SECRET) as client:
            client.config_set("requirepass", "")


# ---- A cluster, and sentinels ----


@pytest.fixture(scope="module")
def nodes() -> Iterator[RedisCluster]:
    with redis_cluster() as cluster:
        yield cluster


async def test_what_is_said_on_one_node_of_a_cluster_is_heard_through_every_other(nodes: RedisCluster) -> None:
    nodes.mend()
    for node in nodes.nodes:
        async with listening(nodes.url(nodes=[node])) as heard:
            for other in nodes.nodes:
                # More than once: nodes that have just lost touch, as on a busy machine, do not pass a message on.
                await until_it_is_heard(other.client, heard)


async def test_a_node_that_is_lost_or_hangs_is_left_for_another(nodes: RedisCluster) -> None:
    nodes.mend()
    async with listening(nodes.url()) as heard:
        for _ in range(2):
            listened = next(node for node in nodes.alive if node.client.client_list(_type="pubsub"))
            other = next(node for node in nodes.alive if node is not listened)
            listened.stop()
            await heard.next()
            await until_it_is_heard(other.client, heard)
        listened = next(node for node in nodes.alive if node.client.client_list(_type="pubsub"))
        other = next(node for node in nodes.alive if node is not listened)
        with listened.stopped():
            await heard.next()
            await until_it_is_heard(other.client, heard)


async def test_a_node_that_takes_connections_and_no_more_is_left_for_another(
    nodes: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.mend()
    monkeypatch.setattr(subscription, "CONNECT_TIMEOUT", 0.2)
    for _ in range(5):  # Whichever it happens to try first.
        async with FakeServer() as fake:
            fake.shakes_hands = False
            url = f"redis+cluster://127.0.0.1:{fake.port},{nodes.nodes[0].address}"
            async with listening(url) as heard:
                await until_it_is_heard(nodes.nodes[1].client, heard)


async def test_by_way_of_sentinels_the_primary_is_listened_to_and_the_next_one() -> None:
    with watched_by_sentinels(SECRET, f"of-sentinels-{SECRET}") as watched:
        async with listening(watched.url()) as heard:
            await until_it_is_heard(watched.primary.client, heard)
            await _the_primary_is_killed(watched, heard)


async def _the_primary_is_killed(watched: Watched, heard: Heard) -> None:
    old, new = watched.primary, watched.replica
    old.stop()
    await heard.next()
    assert new.role == "master"
    await until_it_is_heard(new.client, heard)


# ---- The end ----


async def test_a_close_ends_it_promptly(server: Node) -> None:
    tasks = asyncio.all_tasks()
    heard = Heard(url_of(server))
    await heard.subscription.open()
    await until(lambda: heard.times == 1)
    with takes(at_most=PROMPT):
        await heard.subscription.close()
    assert asyncio.all_tasks() == tasks
    await until(lambda: not server.client.client_list(_type="pubsub"))
    server.client.publish(CHANNEL, "word")
    await asyncio.sleep(0.05)
    assert heard.times == 1
    await heard.subscription.close()


@pytest.mark.parametrize("what", ["hangs", "is away", "hangs while it is connected to"])
async def test_a_close_does_not_wait_for_a_server_that(server: Node, what: str) -> None:
    heard = Heard(url_of(server))
    if what == "hangs":
        await heard.subscription.open()
        await until(lambda: heard.times == 1)
    with server.stopped():
        if what == "is away":
            heard = Heard(f"redis://127.0.0.1:{free_port()}/0")
        if what != "hangs":
            await heard.subscription.open()
        await asyncio.sleep(0.1)
        with takes(at_most=PROMPT):
            await heard.subscription.close()


async def test_what_was_never_opened_can_be_closed() -> None:
    await Heard(f"redis://127.0.0.1:{free_port()}/0").subscription.close()
