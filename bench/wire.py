"""Counts what the app asks PostgreSQL and Valkey, on the wire between them, whoever in the app asks it.

Two small proxies in a thread of this process: each passes bytes on, and reads along what goes to the server.
"""

import asyncio
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import hiredis

_STARTUP: Final = 8  # bytes of length and code, of the messages that have no type
_NO_TLS_YET: Final = frozenset({80877103, 80877104})  # codes of requests that come before the startup message
_CONTROL: Final = (b"BEGIN", b"COMMIT", b"ROLLBACK")


@dataclass(slots=True)
class Counts:
    """Of what was sent meanwhile.

    Attributes:
        statements: SQL, without those that begin and end transactions.
        transactions: those that begin and end them.
        sql_trips: times that PostgreSQL was waited for.
        commands: to Valkey; a script is one.
        valkey_trips: times that Valkey was sent something: what is sent at once is one.
    """

    statements: int = 0
    transactions: int = 0
    sql_trips: int = 0
    commands: int = 0
    valkey_trips: int = 0

    def as_tuple(self) -> tuple[int, int, int, int, int]:
        """All of it, to compare."""
        return self.statements, self.transactions, self.sql_trips, self.commands, self.valkey_trips

    def clear(self) -> None:
        """Begins anew."""
        self.statements = self.transactions = self.sql_trips = self.commands = self.valkey_trips = 0


class Reader(Protocol):
    """Reads what a client sends."""

    def feed(self, data: bytes) -> None:
        """The next bytes."""


class PostgresReader:
    """PostgreSQL's protocol 3: a type, a length, a message. Only the first ones of a connection have no type."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._buffer = b""
        self._started = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while (message := self._next()) is not None:
            self._count(*message)

    def _next(self) -> tuple[bytes, bytes] | None:
        head = 1 if self._started else 0
        if len(self._buffer) < head + 4:
            return None
        end = head + struct.unpack_from("!I", self._buffer, head)[0]
        if len(self._buffer) < end:
            return None
        message, self._buffer = self._buffer[:end], self._buffer[end:]
        if self._started:
            return message[:1], message[5:]
        if len(message) >= _STARTUP and struct.unpack_from("!I", message, 4)[0] not in _NO_TLS_YET:
            self._started = True
        return b"", message

    def _count(self, kind: bytes, content: bytes) -> None:
        if kind == b"Q" and content.upper().startswith(_CONTROL):
            self._counts.transactions += 1
        elif kind in {b"Q", b"E"}:  # a query, or the execution of a prepared one
            self._counts.statements += 1
        if kind in {b"Q", b"S", b"H"}:  # what makes the server answer: query, sync, flush
            self._counts.sql_trips += 1


class ValkeyReader:
    """RESP: a command is a list of strings."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._reader = hiredis.Reader()

    def feed(self, data: bytes) -> None:
        self._counts.valkey_trips += 1
        self._reader.feed(data)
        while self._reader.gets() is not False:
            self._counts.commands += 1


@contextmanager
def counting(postgres_port: int, valkey_port: int) -> Iterator[tuple[Counts, int, int]]:
    """Proxies to two servers of this machine. Yields what they count, and the ports they are at."""
    counts = Counts()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="counting proxies", daemon=True)
    thread.start()

    def run(server: int, make: type[PostgresReader] | type[ValkeyReader]) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(_listen(server, counts, make), loop).result()

    try:
        proxies = run(postgres_port, PostgresReader), run(valkey_port, ValkeyReader)
        yield counts, *(proxy.sockets[0].getsockname()[1] for proxy in proxies)
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _listen(server: int, counts: Counts, make: type[PostgresReader] | type[ValkeyReader]) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            from_server, to_server = await asyncio.open_connection("127.0.0.1", server)
            await asyncio.gather(_pass(reader, to_server, make(counts)), _pass(from_server, writer, None))

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: Reader | None) -> None:
    try:
        while data := await reader.read(65_536):
            if counted is not None:
                counted.feed(data)
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # One side has gone, and so will the other.
    finally:
        writer.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
