"""The shared connection: every reply goes to its caller, and nobody waits for a server that is away or hangs."""

import asyncio
import gc
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis
from structlog.testing import capture_logs

from app.core.utils.redis_link import Link, LinkDown, Refused, Script
from app.core.utils.redis_link import link as redis_link
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.event_loops import anyio_backend  # noqa: F401 -- a fixture

pytestmark = pytest.mark.anyio

PATIENT = 5.0  # seconds, for a test that is not about a server that hangs
AT_ONCE = 0.2  # seconds; a busy machine takes part of it
SECRET = "hunter2-long-and-secret"
Client = Any  # redis-py's types leave open whether one has to await.
TWICE = Script("return ARGV[1] .. ARGV[1]")


@asynccontextmanager
async def nothing_unseen() -> AsyncIterator[None]:
    """Fails for an error that only the event loop saw: in a callback, or in a task or future that nobody asked."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    seen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: seen.append(context))
    yield
    gc.collect(1)
    await asyncio.sleep(0)
    loop.set_exception_handler(before)
    assert not seen


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a link try again soon."""
    monkeypatch.setattr(redis_link, "PAUSE", 0.03)
    monkeypatch.setattr(redis_link, "LONGEST_PAUSE", 0.1)


@asynccontextmanager
async def opened(url: str, answer_timeout: float = PATIENT) -> AsyncIterator[Link]:
    """A link, while it is open."""
    link = Link(url, "test", answer_timeout=answer_timeout)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Returns once it is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- of all kinds of things
            await asyncio.sleep(0.002)


@contextmanager
def takes(at_least: float = 0, *, at_most: float = AT_ONCE) -> Iterator[None]:
    """Fails when it takes another time, in seconds."""
    started = time.perf_counter()
    yield
    assert at_least <= time.perf_counter() - started < at_most


def hold_up(seconds: float = 0.2) -> None:
    """What an event loop is held up by."""
    time.sleep(seconds)


@contextmanager
def stopped(client: Client) -> Iterator[None]:
    """A server that hangs."""
    pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def url_of(valkey: Valkey, database: int = 0, password: str = "") -> str:
    return f"redis://{f':{password}@' if password else ''}127.0.0.1:{valkey.port}/{database}"


@pytest.fixture
def client(valkey: Valkey) -> Iterator[Client]:
    """Another connection to an empty server."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        client.flushall()
        yield client


# ---- A server whose every word is up to the test ----


def bulk(word: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word)


class FakeServer:
    """Answers with the last word of each command, unless told otherwise. What it reads is in `reads`."""

    def __init__(self, port: int | None = None, socket: Path | None = None) -> None:
        self.port = port or free_port()
        self.socket = socket
        self.url = f"unix://{socket}" if socket else f"redis://127.0.0.1:{self.port}/0"
        self.answer: Callable[[list[bytes]], bytes] = lambda words: bulk(words[-1])
        self.shakes_hands = True
        self.muted = False
        self.delay = 0.0
        self.reads: list[list[list[bytes]]] = []
        self.connections: list[FakeConnection] = []
        self.connected = 0

    async def __aenter__(self) -> "FakeServer":
        loop = asyncio.get_running_loop()
        if self.socket:
            self._server = await loop.create_unix_server(lambda: FakeConnection(self), self.socket)
        else:
            self._server = await loop.create_server(lambda: FakeConnection(self), "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reset()
        await asyncio.sleep(0.001)

    def reset(self) -> None:
        """Ends all connections, and not politely."""
        for connection in self.connections:
            connection.transport.abort()
        self.connections.clear()

    def release(self, most: int = 1_000_000) -> None:
        """Sends so many of the answers it has kept to itself."""
        for connection in self.connections:
            for _ in range(min(most, len(connection.kept))):
                connection.transport.write(connection.kept.pop(0))


class FakeConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.reader = hiredis.Reader()
        self.kept: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.connections.append(self)
        self.server.connected += 1

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        commands: list[list[bytes]] = []
        while (words := self.reader.gets()) is not False:
            if words[0] != b"CLIENT":
                commands.append(words)
            elif self.server.shakes_hands:
                self.transport.write(b"+OK\r\n")
        if not commands:
            return
        self.server.reads.append(commands)
        answers = [self.server.answer(words) for words in commands]
        if self.server.muted:
            self.kept += answers
        elif self.server.delay:
            asyncio.get_running_loop().call_later(self.server.delay, self.transport.write, b"".join(answers))
        else:
            self.transport.write(b"".join(answers))


# ---- Commands and replies ----


async def test_the_commands_of_one_turn_are_one_write() -> None:
    async with FakeServer() as server, opened(server.url) as link:
        asked = [link.send("ECHO", number) for number in range(100)]
        assert await asyncio.gather(*asked) == [b"%d" % number for number in range(100)]
        assert [len(commands) for commands in server.reads] == [100]
        await link.send("ECHO", "of another turn")
        assert len(server.reads) == 2


async def test_of_a_thousand_callers_each_gets_their_own_replies(valkey: Valkey) -> None:
    async def ask(link: Link, caller: int) -> None:
        for turn in range(5):
            for _ in range(random.randrange(3)):  # noqa: S311 -- no secret
                await asyncio.sleep(0)
            word = f"{caller} {turn} " + "x" * random.choice([0, 10, 3000])  # noqa: S311
            assert await link.send("ECHO", word) == word.encode()

    async with opened(url_of(valkey)) as link:
        await asyncio.gather(*(ask(link, caller) for caller in range(1000)))


async def test_a_reply_can_be_anything(valkey: Valkey, client: Client) -> None:
    large = os.urandom(3_000_000)
    async with opened(url_of(valkey)) as link:
        assert await link.send("SET", "large", large) == b"OK"
        client.hset("hash", mapping={"a": "1"})
        asked = [link.send(*words) for words in (["GET", "large"], ["GET", "none"], ["HGETALL", "hash"], ["DBSIZE"])]
        assert await asyncio.gather(*asked) == [large, None, [b"a", b"1"], 2]
        assert await link.send("ECHO", b"\xff\0\r\n") == b"\xff\0\r\n"
        assert await link.send("INCRBYFLOAT", "number", 1.5) == b"1.5"


async def test_a_script_is_sent_once_and_then_named(valkey: Valkey, client: Client) -> None:
    def calls(command: str) -> int:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    client.script_flush()
    client.config_resetstat()
    async with opened(url_of(valkey)) as link:
        for word in ("a", "b", "c"):
            assert await link.call(TWICE, "key", word) == word.encode() * 2
        assert (calls("eval"), calls("evalsha")) == (1, 3)
        client.script_flush()
        assert await link.call(TWICE, "key", "d") == b"dd"
        assert (calls("eval"), calls("evalsha")) == (2, 4)


async def test_an_error_is_for_who_caused_it(valkey: Valkey) -> None:
    async with opened(url_of(valkey)) as link:
        await link.send("SET", "text", "1")
        asked = [link.send(*words) for words in (["ECHO", "a"], ["HGET", "text", "f"], ["ECHO", "b"], ["NO"])]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes[0::2] == [b"a", b"b"]
        assert all(isinstance(outcome, Refused) for outcome in outcomes[1::2])
        assert str(outcomes[1]).startswith("WRONGTYPE")
        with pytest.raises(Refused, match="compiling"):
            await link.call(Script("this is no Lua"), "key")
        assert link.up


async def test_who_has_gone_takes_no_reply_with_them(valkey: Valkey) -> None:
    async with opened(url_of(valkey)) as link:
        for _ in range(5):
            asking = [asyncio.ensure_future(link.send("ECHO", number)) for number in range(300)]
            if random.random() < 0.5:  # noqa: S311 -- before or after they are sent
                await asyncio.sleep(0)
            for future in asking[::3]:
                future.cancel()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                assert isinstance(outcome, asyncio.CancelledError) if number % 3 == 0 else outcome == b"%d" % number


@pytest.mark.parametrize("turns", range(4))
async def test_an_error_for_somebody_who_has_gone_is_nobodys(turns: int) -> None:
    """However early they went: a task may be cancelled before its first step."""

    async def ask_for_two(link: Link) -> None:
        await asyncio.gather(link.call(TWICE, "key", "a"), link.call(TWICE, "key", "b"))

    async with FakeServer() as server, opened(server.url) as link:
        server.answer = lambda words: b"-ERR it is full\r\n"
        asking = asyncio.create_task(ask_for_two(link))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with suppress(asyncio.CancelledError, Refused):
            await asking
        del asking
        server.answer = lambda words: bulk(words[-1])
        assert await link.send("ECHO", "well") == b"well"


# ---- Where the server is ----


async def test_the_database_of_the_url_is_used(valkey: Valkey, client: Client) -> None:
    async with opened(url_of(valkey, database=5)) as link:
        await link.send("SET", "where", "here")
    with Redis(host="127.0.0.1", port=valkey.port, db=5) as fifth:
        assert fifth.get("where") == b"here"
    assert client.get("where") is None


async def test_a_socket_will_do() -> None:
    with scratch_folder() as folder:
        async with FakeServer(socket=folder / "socket") as server, opened(server.url) as link:
            assert await link.send("ECHO", "well") == b"well"


async def test_a_wrong_password_is_an_outage_until_it_is_the_right_one(
    valkey: Valkey, client: Client, brisk: None
) -> None:
    client.config_set("requirepass", "another password")
    try:
        with capture_logs() as lines:
            async with opened(url_of(valkey, password=SECRET)) as link:
                assert not link.up
                with pytest.raises(LinkDown):
                    link.send("PING")
                client.config_set("requirepass", SECRET)
                await until(lambda: link.up)
                assert await link.send("PING") == b"PONG"
        assert [line["event"] for line in lines] == ["redis cannot be reached", "redis is there"]
        assert "WRONGPASS" in lines[0]["why"] or "invalid" in lines[0]["why"]
        assert SECRET not in repr(lines)
    finally:
        client.config_set("requirepass", "")


@pytest.mark.parametrize("path", ["99", "0?username=nobody&password=nothing"])
async def test_what_the_server_does_not_accept_is_an_outage(valkey: Valkey, path: str, brisk: None) -> None:
    with capture_logs() as lines:
        async with opened(f"redis://127.0.0.1:{valkey.port}/{path}") as link:
            await asyncio.sleep(0.2)
            assert not link.up
    assert [line["event"] for line in lines] == ["redis cannot be reached"]  # Once, and not with every try.


# ---- A server that is away ----


async def test_a_server_that_is_away_holds_up_neither_a_start_nor_a_caller(brisk: None) -> None:
    port = free_port()
    with takes(at_most=0.5):
        link = Link(f"redis://127.0.0.1:{port}/0", "test")
        await link.open()
    try:
        assert not link.up
        with takes(at_most=0.05), pytest.raises(LinkDown):
            link.send("ECHO", "a")
        with takes(at_most=0.05), pytest.raises(LinkDown):
            await link.call(TWICE, "key", "a")
        await asyncio.sleep(0.3)
        async with FakeServer(port):
            await until(lambda: link.up)
            assert await link.send("ECHO", "well") == b"well"
    finally:
        await link.close()


async def test_a_server_that_hangs_at_the_start_is_not_waited_for() -> None:
    async with FakeServer() as server:
        server.shakes_hands = False
        link = Link(server.url, "test")
        with takes(0.9 * redis_link.FIRST_TRY, at_most=redis_link.FIRST_TRY + 0.4):
            await link.open()
        assert not link.up
        with takes():
            await link.close()
    assert not link.up


async def test_a_handshake_that_takes_too_long_is_begun_anew(monkeypatch: pytest.MonkeyPatch, brisk: None) -> None:
    monkeypatch.setattr(redis_link, "CONNECT_TIMEOUT", 0.1)
    async with FakeServer() as server:
        server.shakes_hands = False
        async with opened(server.url) as link:
            await asyncio.sleep(0.3)
            server.shakes_hands = True
            await until(lambda: link.up)
            assert server.connected > 1


async def test_a_server_that_restarts_is_used_again(brisk: None) -> None:
    with scratch_folder() as folder, Valkey(folder / "valkey", port=free_port(), durable=False) as valkey:
        async with opened(url_of(valkey)) as link:
            for _ in range(2):
                assert await link.call(TWICE, "key", "a") == b"aa"
                valkey.stop()
                await until(lambda: not link.up)
                with pytest.raises(LinkDown):
                    link.send("PING")
                await asyncio.sleep(0.1)
                valkey.start()
                await until(lambda: link.up)


async def test_a_connection_that_breaks_amid_replies_fails_only_those_that_had_none(brisk: None) -> None:
    async with FakeServer() as server, opened(server.url) as link:
        a, b, c = (link.send("ECHO", word) for word in ("a", "b", "c"))
        server.answer = lambda words: {b"a": bulk(b"a"), b"b": b"$5\r\nhel"}.get(words[-1], b"")
        assert await a == b"a"
        server.reset()
        with takes():
            outcomes = await asyncio.gather(b, c, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LinkDown, LinkDown]
        server.answer = lambda words: bulk(words[-1])
        await until(lambda: link.up)
        assert await link.send("ECHO", "d") == b"d"  # And not what followed the half of a reply.


async def test_what_is_no_resp_ends_the_connection(brisk: None) -> None:
    async with FakeServer() as server, opened(server.url) as link:
        server.answer = lambda words: bulk(b"a") if words[-1] == b"a" else b"HTTP/1.1 400 Bad Request\r\n\r\n"
        asked = [link.send("ECHO", word) for word in ("a", "b", "c")]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes[0] == b"a"
        assert [type(outcome) for outcome in outcomes[1:]] == [LinkDown, LinkDown]
        server.answer = lambda words: bulk(words[-1])
        await until(lambda: link.up)
        assert server.connected == 2
        assert await link.send("ECHO", "d") == b"d"


async def test_a_reply_to_nobody_ends_the_connection(brisk: None) -> None:
    """It could be the first of two to one command, and then all later ones would be another's."""
    async with FakeServer() as server, opened(server.url) as link:
        server.connections[0].transport.write(b"+OK\r\n")
        await until(lambda: server.connected == 2 and link.up)
        assert await link.send("ECHO", "a") == b"a"


async def test_a_server_that_closes_every_connection_is_not_stormed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shakes hands, and that is all it does: as behind a proxy, or while it fails over."""
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    async with FakeServer() as server, opened(server.url) as link:
        closing = True

        async def close_all() -> None:
            while closing:
                for connection in server.connections:
                    connection.transport.close()
                server.connections.clear()
                await asyncio.sleep(0.001)

        task = asyncio.create_task(close_all())
        await asyncio.sleep(0.5)
        tries, closing = server.connected, False
        await task
        await until(lambda: link.up)
        assert await link.send("ECHO", "a") == b"a"
        assert tries <= 25


# ---- A server that hangs ----


async def test_a_server_that_hangs_is_noticed_soon_and_used_again_when_it_does_not(
    valkey: Valkey, client: Client
) -> None:
    with capture_logs() as lines:
        async with opened(url_of(valkey), redis_link.ANSWER_TIMEOUT) as link:
            await link.send("SET", "word", "late")
            with stopped(client):
                asked = [link.send("GET", "word") for _ in range(100)]
                with takes(0.02):
                    outcomes = await asyncio.gather(*asked, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {LinkDown}
                for _ in range(100):
                    with takes(at_most=0.05), pytest.raises(LinkDown):
                        link.send("GET", "word")
                await asyncio.sleep(0.2)
                assert not link.up
            await until(lambda: link.up)
            for number in range(10):
                assert await link.send("ECHO", number) == b"%d" % number  # None of the late replies.
            assert int(await link.send("CLIENT", "ID")) > 0
    events = [(line["event"], line.get("why")) for line in lines]
    assert ("redis is away", "does not answer") in events
    assert events[-1] == ("redis is there", None)


async def test_late_replies_go_to_nobody(brisk: None) -> None:
    changes: list[bool] = []
    async with FakeServer() as server, opened(server.url, 0.02) as link:
        server.muted = True
        asked = [link.send("ECHO", word) for word in ("a", "b", "c")]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {LinkDown}
        link.on_change(changes.append)
        server.release(2)
        await asyncio.sleep(0.15)
        assert changes == []  # One has not come.
        server.muted = False
        server.release()
        await until(lambda: link.up)
        assert await link.send("ECHO", "d") == b"d"
        assert server.connected == 1


async def test_who_asks_later_waits_no_longer_than_who_asked_first() -> None:
    async with FakeServer() as server, opened(server.url, 0.1) as link:
        server.muted = True
        with takes(0.09, at_most=0.25):
            first = asyncio.create_task(_outcome(link, "a"))
            await asyncio.sleep(0.05)
            later = asyncio.create_task(_outcome(link, "b"))
            assert [await first, await later] == [LinkDown, LinkDown]


async def _outcome(link: Link, word: str) -> object:
    try:
        return await link.send("ECHO", word)
    except LinkDown as error:
        return type(error)


async def test_a_connection_that_hangs_for_too_long_is_made_anew(monkeypatch: pytest.MonkeyPatch, brisk: None) -> None:
    monkeypatch.setattr(redis_link, "HOPELESS", 0.2)
    async with FakeServer() as server, opened(server.url, 0.02) as link:
        server.muted = True
        assert await _outcome(link, "a") is LinkDown
        await asyncio.sleep(0.1)
        assert server.connected == 1
        await until(lambda: server.connected == 2)
        server.muted = False
        await until(lambda: link.up)
        assert await link.send("ECHO", "b") == b"b"


async def test_a_second_hang_is_noticed_as_soon_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the new connection, after the first one hung and broke."""
    monkeypatch.setattr(redis_link, "PAUSE", 1.0)
    async with FakeServer() as server, opened(server.url, 0.02) as link:
        server.muted = True
        assert await _outcome(link, "a") is LinkDown
        monkeypatch.setattr(redis_link, "PAUSE", 0.02)
        server.reset()
        await until(lambda: link.up)
        with takes():
            assert await _outcome(link, "b") is LinkDown


async def test_an_event_loop_that_is_held_up_is_no_outage(valkey: Valkey) -> None:
    """The reply is there, unread; the timer is due as well."""
    changes: list[bool] = []
    async with opened(url_of(valkey), redis_link.ANSWER_TIMEOUT) as link:
        link.on_change(changes.append)
        for times in (1, 2):
            asked = link.send("ECHO", times)
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # It is sent by now.
            for _ in range(times):
                asyncio.get_running_loop().call_soon(hold_up)
            assert await asked == b"%d" % times
            assert link.up
    assert changes == [False]  # That is the close.


@pytest.mark.parametrize("when", ["before it asks", "before it is sent"])
async def test_a_server_far_away_has_its_time_even_when_the_event_loop_was_held_up(when: str) -> None:
    async with FakeServer() as server, opened(server.url, 0.15) as link:
        server.delay = 0.05
        for word in ("a", "b"):
            if when == "before it asks":
                hold_up()
            asked = link.send("ECHO", word)
            if when == "before it is sent":
                hold_up()
            assert await asked == word.encode()


# ---- The end ----


async def test_a_close_ends_what_is_pending() -> None:
    async with FakeServer() as server:
        link = Link(server.url, "test", answer_timeout=PATIENT)
        await link.open()
        server.muted = True
        asked = [link.send("ECHO", word) for word in ("a", "b")]
        called = asyncio.ensure_future(link.call(TWICE, "key", "c"))
        await asyncio.sleep(0.01)
        asked.append(link.send("ECHO", "not even sent"))
        with capture_logs() as lines, takes():
            await link.close()
            outcomes = await asyncio.gather(*asked, called, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {LinkDown}
        assert lines == []  # It is no outage.
        with pytest.raises(LinkDown):
            link.send("ECHO", "d")
        await link.close()
        await asyncio.sleep(0.05)
        assert server.connected == 1


@pytest.mark.parametrize("well_again", [False, True])
async def test_a_link_that_is_closed_while_it_hangs_stays_closed(brisk: None, well_again: bool) -> None:
    async with FakeServer() as server:
        link = Link(server.url, "test", answer_timeout=0.02)
        await link.open()
        server.muted = True
        assert await _outcome(link, "a") is LinkDown
        if well_again:
            server.release()
            await asyncio.sleep(0.005)
            assert not link.up  # But would be in a moment.
        await link.close()
        await asyncio.sleep(0.15)
        assert not link.up
        assert server.connected == 1


@pytest.mark.parametrize("turns", range(5))
async def test_a_close_that_is_cut_off_leaves_no_connection(turns: int) -> None:
    async with FakeServer() as server:
        link = Link(server.url, "test")
        await link.open()
        closing = asyncio.create_task(link.close())
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await until(lambda: server.connections[0].transport.is_closing())
        assert not link.up
        assert server.connected == 1


async def test_a_close_just_after_connecting_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to do then is to say goodbye to the sentinels."""
    goodbyes: list[object] = []

    async def say_goodbye(pool: object) -> None:
        goodbyes.append(pool)
        if len(goodbyes) == 1:
            await asyncio.sleep(PATIENT)

    monkeypatch.setattr(redis_link, "forget_sentinels", say_goodbye)
    async with FakeServer() as server:
        link = Link(server.url, "test")
        opening = asyncio.create_task(link.open())
        await until(lambda: goodbyes)
        await link.close()
        await opening
        await until(lambda: server.connections[0].transport.is_closing())


async def test_a_link_that_was_never_opened_can_be_closed() -> None:
    link = Link(f"redis://127.0.0.1:{free_port()}/0", "test")
    with pytest.raises(LinkDown):
        link.send("PING")
    await link.close()


async def test_listeners_are_told_of_every_change_and_of_nothing_else(brisk: None) -> None:
    changes: list[bool] = []
    async with FakeServer() as server:
        link = Link(server.url, "test", answer_timeout=0.03)
        link.on_change(changes.append)
        link.on_change(lambda up: changes.append(link.up))  # It is so by the time they are told.
        await link.open()
        assert changes == [True, True]
        server.muted = True
        assert await _outcome(link, "a") is LinkDown
        assert changes == [True, True, False, False]
        server.muted = False
        server.release()
        await until(lambda: link.up)
        server.reset()
        await until(lambda: len(changes) == 10)
        await link.close()
    assert changes == [up for up in (True, False, True, False, True, False) for _ in range(2)]


# ---- A server that is slow, and does not hang ----


async def test_a_large_reply_that_comes_slowly_is_no_outage() -> None:
    changes: list[bool] = []
    large, pieces = os.urandom(2_000_000), 15
    async with FakeServer() as server, opened(server.url, 0.05) as link:
        link.on_change(changes.append)
        server.muted = True
        asked = [link.send("ECHO", large), *(link.send("ECHO", number) for number in range(10))]
        await until(lambda: len(server.connections[0].kept) == 11)
        reply = server.connections[0].kept.pop(0)
        size = len(reply) // pieces + 1
        with takes(0.14, at_most=1):
            for first in range(0, len(reply), size):
                server.connections[0].transport.write(reply[first : first + size])
                await asyncio.sleep(0.01)
        server.release()
        assert await asyncio.gather(*asked) == [large, *(b"%d" % number for number in range(10))]
        assert changes == []
        assert server.connected == 1


async def test_a_large_reply_that_stops_in_the_middle_is_one() -> None:
    async with FakeServer() as server, opened(server.url, 0.05) as link:
        server.muted = True
        asked = [link.send("ECHO", "x" * 100_000), link.send("ECHO", "behind it")]
        await until(lambda: len(server.connections[0].kept) == 2)
        server.connections[0].transport.write(server.connections[0].kept[0][:50_000])
        with takes(0.04, at_most=0.3):
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LinkDown, LinkDown]
        assert not link.up
