"""A TCP proxy between a client and a server that can be told, while it runs, to behave as a broken network does.

It listens on 127.0.0.1 and leads to another port there, in the event loop that started it.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, Self

HOST: Final = "127.0.0.1"
CHUNK: Final = 65_536  # bytes
IN_FLIGHT: Final = 64  # chunks of one direction that may be on their way
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: the connection is closed with a RST


class Fault(StrEnum):
    """What the proxy does with connections.

    NONE: what comes is passed on. DOWN: new connections are refused, open ones are closed. LATENCY: what comes is
    passed on some time later, each way. RESET: new and open connections end with a RST. HANG: new connections are
    accepted, and nothing is passed on, not even that one side has closed; what came meanwhile is passed on afterwards.
    """

    NONE = "none"
    DOWN = "down"
    LATENCY = "latency"
    RESET = "reset"
    HANG = "hang"


class FaultProxy:
    """Passes on all that comes, until `switch` says otherwise.

    Attributes:
        port: where it listens.
        target: the port that it leads to.
        latency: seconds that LATENCY adds each way.
        fault: what it does now.
    """

    def __init__(self, port: int, target: int, latency: float = 0.1) -> None:
        self.port = port
        self.target = target
        self.latency = latency
        self.fault = Fault.NONE
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._passing = asyncio.Event()
        self._passing.set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._refuse()
        tasks = list(self._clients.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    async def switch(self, fault: Fault) -> None:
        """Behaves so from now on. Raises: OSError when it was DOWN and somebody else has taken its port."""
        self.fault = fault
        if fault is Fault.HANG:
            self._passing.clear()
        else:
            self._passing.set()
        if fault in {Fault.DOWN, Fault.RESET}:
            for client, task in list(self._clients.items()):
                _end(client, with_reset=fault is Fault.RESET)
                task.cancel()
        if fault is Fault.DOWN:
            self._refuse()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is Fault.RESET:
            _end(writer, with_reset=True)
            return
        if self.fault is Fault.DOWN:  # It had come before the port was closed.
            _end(writer, with_reset=False)
            return
        task = asyncio.create_task(self._connect(reader, writer))
        self._clients[writer] = task
        task.add_done_callback(lambda _: self._clients.pop(writer))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Leads one client to the server, until one of them closes."""
        with _closing(writer):
            await self._passing.wait()
            try:
                there = await asyncio.open_connection(HOST, self.target)
            except OSError:  # The server itself is away. It is too late to refuse.
                _end(writer, with_reset=True)
                return
            with _closing(there[1]):
                ways = {asyncio.create_task(self._pass(*way)) for way in ((reader, there[1]), (there[0], writer))}
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes on one direction, in order, until its end. A side that was reset has ended."""
        clock = asyncio.get_running_loop().time
        coming: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        taking = asyncio.create_task(self._take(reader, coming))
        try:
            while True:
                due, data = await coming.get()
                if (left := due - clock()) > 0:
                    await asyncio.sleep(left)
                await self._passing.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            taking.cancel()

    async def _take(self, reader: asyncio.StreamReader, coming: asyncio.Queue[tuple[float, bytes]]) -> None:
        """What comes, and when it is due; nothing, when no more comes."""
        clock = asyncio.get_running_loop().time
        data = b"."
        while data:
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = b""
            await coming.put((clock() + (self.latency if self.fault is Fault.LATENCY else 0), data))


@contextmanager
def _closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.close()


def _end(writer: asyncio.StreamWriter, *, with_reset: bool) -> None:
    """Closes a connection at once, and throws away what was not sent yet."""
    if with_reset and not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
