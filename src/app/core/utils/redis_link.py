"""One connection to Redis/Valkey that all requests of a process share (docs/decisions/0009-one-shared-connection.md).

The commands of all requests of one turn of the event loop are one write, and their replies are read in order: a
command costs some 3 microseconds here, against 48 through a pool of connections.
"""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import hiredis
import structlog
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

CONNECT_TIMEOUT: Final = 2.0  # seconds, handshake included
FIRST_TRY: Final = 0.5  # seconds that a start waits for it
ANSWER_TIMEOUT: Final = 0.025  # seconds until a server that does not answer is taken to hang
SECOND_LOOK: Final = 0.005  # seconds more, in which what has arrived meanwhile is read
HOPELESS: Final = 2.0  # seconds until a connection that hangs is given up for a new one
PAUSE: Final = 0.25  # seconds before a link that came back is used again, or tried again
LONGEST_PAUSE: Final = 2.0

log = structlog.stdlib.get_logger("slipway.redis")

Word = str | bytes | int | float


class LinkError(Exception):
    """What was asked was not done, as far as one can tell."""


class LinkDown(LinkError):  # noqa: N818 -- a state
    """The server is away or hangs."""


class Refused(LinkError):  # noqa: N818 -- an answer
    """The server answered with an error: out of memory, read-only, loading, ..."""


class Script:
    """A Lua script, sent once and then named by its hash."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Link(asyncio.Protocol):
    """The shared connection. Nobody ever waits for it to be made: while it is down, a command fails at once.

    A task of its own connects and, after an outage, connects again.
    """

    def __init__(self, url: str, name: str, *, answer_timeout: float = ANSWER_TIMEOUT) -> None:
        """
        Args:
            url: where the server is, password included.
            name: what the log calls this link.
            answer_timeout: seconds after which a server that has not answered is taken to hang.
        """
        self.name = name
        self.up = False
        self._pool = ConnectionPool.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT)
        self._answer_timeout = answer_timeout
        self._listeners: list[Callable[[bool], None]] = []
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()  # who waits for a reply, and since when
        self._out: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self._suspect: asyncio.Future[Any] | None = None
        self._hanging = False
        self._lost = asyncio.Event()
        self._first_try = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None

    # ---- Life ----

    async def open(self) -> None:
        """Begins to connect. Returns when the first try is over, whatever came of it, or has taken too long."""
        self._loop = asyncio.get_running_loop()
        self._keeper = self._loop.create_task(self._keep_connected())
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TRY):
                await self._first_try.wait()

    async def close(self) -> None:
        """Closes the connection. What is asked later fails."""
        if self._keeper is not None:
            self._closed = True
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=CONNECT_TIMEOUT)
        self._abort("closed", expected=True)

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Has this called with True whenever the link comes up, and with False whenever it goes down."""
        self._listeners.append(listener)

    # ---- Commands ----

    def send(self, *words: Word) -> asyncio.Future[Any]:
        """Sends a command; what is returned has its reply, in bytes.

        Raises: LinkDown at once when the server is away; the future raises LinkDown or Refused.
        """
        if not self.up:
            raise LinkDown(self.name)
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._out:
            self._loop.call_soon(self._flush)
        # Its stub allows one word only.
        self._out.append(hiredis.pack_command(words))  # type: ignore[arg-type]
        now = self._loop.time()
        self._pending.append((future, now))
        if self._watch is None:
            self._watch = self._loop.call_at(now + self._answer_timeout, self._look)
        return future

    def call(self, script: Script, key: Word, *arguments: Word) -> Awaitable[Any]:
        """Sends a script for one key, at once; await what is returned for its reply. Raises: LinkDown, Refused."""
        sent = self.send("EVALSHA", script.sha, 1, key, *arguments)
        return self._answer(sent, script, key, *arguments)

    async def _answer(self, sent: Awaitable[Any], script: Script, key: Word, *arguments: Word) -> Any:
        try:
            return await sent
        except Refused as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
        return await self.send("EVAL", script.source, 1, key, *arguments)

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # ---- Replies ----

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except (hiredis.HiredisError, IndexError):  # No RESP, or a reply to nobody: nothing after it can be trusted.
            self._abort("spoke something else than RESP")
            return
        if self._hanging and not self._pending:
            self._hanging = False
            self._loop.call_later(PAUSE, self._come_up)

    def _take(self, reply: Any) -> None:
        future, _ = self._pending.popleft()
        if future.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(Refused(str(reply)))
        else:
            future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._down(_in_short(exc) if exc else "closed the connection")
        self._lost.set()

    # ---- Outages ----

    def _look(self) -> None:
        """Has the oldest command waited too long?

        Asks twice before it says so: when the event loop itself was held up, the reply may be there, unread.
        """
        self._watch = None
        if not self._pending:
            self._suspect = None
            return
        oldest, since = self._pending[0]
        waited = self._loop.time() - since
        if self._hanging:
            if waited > HOPELESS:
                self._abort("hung for too long")
                return
            self._watch = self._loop.call_later(PAUSE, self._look)
        elif waited < self._answer_timeout:
            self._suspect = None
            self._watch = self._loop.call_at(since + self._answer_timeout, self._look)
        elif self._suspect is not oldest:
            self._suspect = oldest
            self._watch = self._loop.call_later(SECOND_LOOK, self._look)
        else:
            self._hanging = True
            self._watch = self._loop.call_later(PAUSE, self._look)
            self._down("does not answer")

    def _down(self, why: str, *, expected: bool = False) -> None:
        """Whoever waits for a reply is told that there is none. It may still come; it is then thrown away."""
        was_up, self.up = self.up, False
        for future, _ in self._pending:
            if not future.done():
                future.set_exception(LinkDown(self.name))
        if self._transport is None:
            self._pending.clear()
            self._out.clear()
            self._hanging = False
        if was_up:
            if not expected:
                log.warning("redis is away", link=self.name, why=why)
            for listener in self._listeners:
                listener(False)

    def _come_up(self) -> None:
        if self._transport is not None and not self._hanging and not self.up:
            self.up = True
            log.info("redis is there", link=self.name)
            for listener in self._listeners:
                listener(True)

    def _abort(self, why: str, *, expected: bool = False) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._down(why, expected=expected)

    async def _keep_connected(self) -> None:
        pause = PAUSE
        failed = False
        while not self._closed:
            try:
                await self._connect()
            except (OSError, RedisError, TimeoutError) as error:
                if not failed:
                    log.warning("redis cannot be reached", link=self.name, why=_in_short(error))
                failed = True
                self._first_try.set()
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 -- no secret
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause, failed = PAUSE, False
            self._come_up()
            self._first_try.set()
            await self._lost.wait()

    async def _connect(self) -> None:
        """redis-py makes the connection: TLS, password, database. From then on it is ours."""
        self._lost.clear()
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._reader = hiredis.Reader()
        self._writer = connection._writer  # Kept, since it closes the transport when it is collected.
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        connection._reader = connection._writer = None


def _in_short(error: BaseException) -> str:
    return str(error) or type(error).__name__
