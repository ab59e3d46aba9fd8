"""One connection to Redis/Valkey that all requests of a process share (docs/decisions/0009-one-shared-connection.md).

The commands of all requests of one turn of the event loop are one write, and their replies are read in order: a
command costs some 3 microseconds here, against 48 through a pool of connections.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from math import inf
from typing import Any, Final

import hiredis
import structlog
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import RedisError

from app.core.utils.redis_link.address import connections_to, forget_sentinels
from app.core.utils.redis_link.command import (
    Command,
    Keys,
    LinkDown,
    Refused,
    Script,
    Word,
    first_error,
    lacks_script,
    words_of,
)

CONNECT_TIMEOUT: Final = 2.0  # seconds, handshake included
FIRST_TRY: Final = 0.5  # seconds that a start waits for it
ANSWER_TIMEOUT: Final = 0.025  # seconds until a server that does not answer is taken to hang
SECOND_LOOK: Final = 0.015  # seconds more, in which what has arrived meanwhile is read
HOPELESS: Final = 2.0  # seconds until a connection that hangs is given up for a new one
PAUSE: Final = 0.25  # seconds before a link that came back is used again, or tried again
LONGEST_PAUSE: Final = 0.5  # seconds between two tries: all processes are to be back within that time of each other
ASK_SENTINELS: Final = 1.0  # seconds between two looks at who is the primary: the old one may not know for long

Listener = Callable[[bool], None]

log = structlog.stdlib.get_logger("slipway.redis")


class _Call:
    """A command that waits for its reply."""

    __slots__ = ("future", "packed", "sent")

    def __init__(self, future: asyncio.Future[Any], packed: bytes) -> None:
        self.future = future
        self.packed = packed
        self.sent = inf  # when, on the loop's clock


class Link(asyncio.Protocol):
    """The shared connection. Nobody ever waits for it to be made: while it is down, a command fails at once.

    A task of its own connects and, after an outage, connects again.
    """

    def __init__(self, server: str | ConnectionPool, name: str, *, answer_timeout: float = ANSWER_TIMEOUT) -> None:
        """
        Args:
            server: where it is, password included (`address.py` has the forms); or what makes connections to it.
            name: what the log calls this link.
            answer_timeout: seconds after which a server that has not answered is taken to hang.
        """
        self.name = name
        self.up = False
        self._pool = connections_to(server, CONNECT_TIMEOUT) if isinstance(server, str) else server
        self._sentinels = self._pool if isinstance(self._pool, SentinelConnectionPool) else None
        self._answer_timeout = answer_timeout
        self._listeners: list[Listener] = []
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._pending: deque[_Call] = deque()
        self._out: list[_Call] = []
        self._watch: asyncio.TimerHandle | None = None
        self._suspect: _Call | None = None
        self._heard = 0.0  # when the server last sent something, on the loop's clock
        self._hanging = False
        self._lost = asyncio.Event()
        self._first_try = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None

    # ---- Life ----

    async def open(self) -> None:
        """Begins to connect. Returns when the first try is over, whatever came of it, or has taken too long."""
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._keeper = self._loop.create_task(self._keep_connected())
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TRY):
                await self._first_try.wait()

    async def close(self) -> None:
        """Closes the connection. What is asked later fails."""
        if self._keeper is not None:
            self._closed = True
            self._first_try.set()
            self._keeper.cancel()
            try:
                await asyncio.wait([self._keeper], timeout=CONNECT_TIMEOUT)
                await forget_sentinels(self._pool)
            finally:  # Whoever closes it may be cancelled meanwhile.
                self._abort("closed", expected=True)

    def on_change(self, listener: Listener, key: Word | None = None) -> None:
        """Has this called with True whenever the link comes up, and with False whenever it goes down.

        Between the two, it can have become a link to another server. `key` is of no account here, where all keys are at
        one server (`ClusterLink.on_change`).
        """
        self._listeners.append(listener)

    async def parts(self, *, anew: bool = False) -> list["Link"]:
        """The servers that hold keys: this one (`ClusterLink.parts`)."""
        return [self]

    # ---- Commands ----

    def send(self, *words: Word) -> asyncio.Future[Any]:
        """Sends a command; what is returned has its reply, in bytes.

        Raises: LinkDown at once when the server is away; the future raises LinkDown or Refused.
        """
        if not self.up:
            raise LinkDown(self.name)
        if not self._out:
            self._loop.call_soon(self._flush)
        # Its stub allows one word only.
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]
        call = _Call(self._loop.create_future(), packed)
        self._out.append(call)
        self._pending.append(call)
        return call.future

    def ask(self, *words: Word) -> asyncio.Future[Any]:
        """`send`, for a command whose second word is a key (`ClusterLink.ask`)."""
        return self.send(*words)

    async def run(self, *commands: Command) -> list[Any]:
        """Sends these at once, to be done in this order; returns their replies.

        A server that has lost a script gets it, and what comes after it, once more.

        Raises: LinkDown, Refused, whatever the first that failed has failed with.
        """
        replies = await self.outcomes(*commands)
        if (error := first_error(replies)) is not None:
            raise error
        return replies

    async def outcomes(self, *commands: Command) -> list[Any]:
        """The same; of what has failed, the error takes the place of the reply. Raises: LinkDown."""
        replies = await asyncio.gather(*(self.send(*words_of(command)) for command in commands), return_exceptions=True)
        lost = next((number for number, reply in enumerate(replies) if lacks_script(reply)), None)
        if lost is not None:
            again = (self.send(*words_of(command, whole=True)) for command in commands[lost:])
            replies[lost:] = await asyncio.gather(*again, return_exceptions=True)
        return replies

    async def call(self, script: Script, keys: Keys, *arguments: Word) -> Any:
        """Runs a script on keys. Raises: LinkDown, Refused."""
        command = (script, keys, *arguments)
        try:
            return await self.send(*words_of(command))
        except Refused as refusal:
            if not lacks_script(refusal):
                raise
        return await self.send(*words_of(command, whole=True))

    def _flush(self) -> None:
        """Writes what this turn of the loop has asked for. Only now the server's time begins to count."""
        now = self._loop.time()
        for call in self._out:
            call.sent = now
        if self._transport is not None and self._out:
            self._transport.write(b"".join([call.packed for call in self._out]))
            if self._watch is None:
                self._watch = self._later(self._answer_timeout, self._look)
        self._out.clear()

    # ---- Replies ----

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()  # A large reply takes its time, and is no silence.
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except (hiredis.HiredisError, IndexError):  # No RESP, or a reply to nobody: nothing after it can be trusted.
            self._abort("spoke something else than RESP")
            return
        if self._hanging and not self._pending:
            self._hanging = False
            if self._sentinels:  # There can be another primary by now, which this one has not heard of.
                self._abort("has hung")
            else:
                self._later(PAUSE, self._come_up)

    def _take(self, reply: Any) -> None:
        future = self._pending.popleft().future
        if future.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(Refused(str(reply)))
            if self._sentinels and str(reply).startswith("READONLY"):  # They have made another one the primary.
                self._loop.call_soon(self._abort, "is a replica now", context=self._context)
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
        oldest = self._pending[0]
        waited = self._loop.time() - max(oldest.sent, self._heard)
        if self._hanging:
            if waited > HOPELESS:
                self._abort("hung for too long")
                return
            self._watch = self._later(PAUSE, self._look)
        elif waited < self._answer_timeout:
            self._suspect = None
            self._watch = self._later(self._answer_timeout - max(waited, 0), self._look)
        elif self._suspect is not oldest:
            self._suspect = oldest
            self._watch = self._later(SECOND_LOOK, self._look)
        else:
            self._hanging = True
            self._watch = self._later(PAUSE, self._look)
            self._down("does not answer")

    def _later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Has this done later, outside of the context of the request that is served now: its id is not for us."""
        return self._loop.call_later(seconds, action, context=self._context)

    def _down(self, why: str, *, expected: bool = False) -> None:
        """Whoever waits for a reply is told that there is none. It may still come; it is then thrown away."""
        was_up, self.up = self.up, False
        for call in self._pending:
            if not call.future.done():
                call.future.set_exception(LinkDown(self.name))
        if self._transport is None:
            self._pending.clear()
            self._out.clear()
            self._hanging = False
            self._suspect = None
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
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
            await self._until_lost()
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1))  # noqa: S311 -- some servers take a connection to close it

    async def _until_lost(self) -> None:
        """Returns when the connection is lost, or given up: the sentinels name another server."""
        while not self._lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(ASK_SENTINELS if self._sentinels else None):
                    await self._lost.wait()
            if self._sentinels and not self._lost.is_set() and await self._is_another_primary(self._sentinels):
                self._abort("is not the primary any more")
                return

    async def _is_another_primary(self, pool: SentinelConnectionPool) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return bool(await pool.sentinel_manager.discover_master(pool.service_name) != self._server)
        except (OSError, RedisError, TimeoutError):  # They do not know.
            await forget_sentinels(pool)
            return False

    async def _connect(self) -> None:
        """redis-py makes the connection: TLS, password, database. From then on it is ours."""
        self._lost.clear()
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await connection.connect()
            finally:
                await forget_sentinels(self._pool)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._server = getattr(connection, "host", None), getattr(connection, "port", None)
        self._reader = hiredis.Reader()
        self._writer = connection._writer  # Kept, since it closes the transport when it is collected.
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        connection._reader = connection._writer = None


def _in_short(error: BaseException) -> str:
    return str(error) or type(error).__name__
