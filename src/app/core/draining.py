"""What a server does between SIGTERM and its end, so that nobody's request is lost.

It says at once that it is not ready, and goes on serving for as long as whoever sends it requests may need to notice:
Kubernetes, a load balancer. Then it takes no more connections, which a proxy that has another server to ask notices by
itself, and answers on those that there are until they are closed: a proxy can have sent a request on any of them that
has not arrived yet. Only then the server's own shutdown begins, which finishes what it has begun to answer.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from uvicorn import Server

LINGER: Final = 3.0  # seconds for connections to be closed; proxies have to close those they do not use before that
LOOK: Final = 0.05  # seconds between two looks
COUNT: Final = 1.0  # seconds between two looks at how many requests there were

Handler = Callable[[int, Any], Any]  # of a signal: its number, and where the program was

log = structlog.stdlib.get_logger("slipway.server")


class Drain:
    """Whether the server was told to stop, and what it does about it.

    Attributes:
        begun: whether it was.
        last_calls: called when no more connections are taken: what streams an answer would hold one for long.
    """

    def __init__(self, delay: float, *, linger: bool) -> None:
        """
        Args:
            delay: seconds for which it goes on serving.
            linger: whether it waits for its connections to be closed then.
        """
        self.begun = False
        self.last_calls: list[Callable[[], None]] = []
        self._delay = delay
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []

    def instead_of(self, usual: Handler) -> Handler:
        """The handler of a signal: the server's own is called once it is time."""
        server = _server_of(usual)
        if server is not None and server.limit_max_requests:
            limit = server.limit_max_requests
            server.__dict__["limit_max_requests"] = None  # It is ours to look after: uvicorn would end at once.
            self._tasks.append(self._loop.create_task(self._end_after(limit, server)))

        def handle(number: int, frame: Any) -> None:
            self._loop.call_soon_threadsafe(self._told, number, usual)

        return handle

    def _told(self, number: int, usual: Handler) -> None:
        server = _server_of(usual)
        again, self.begun = self.begun, True
        if number == signal.SIGINT or server is None or not server.started:  # Somebody sits there and waits for it.
            self._stop(number, usual)
        elif not again:  # A group of processes hears it twice: by itself, and from the first of them.
            self._tasks.append(self._loop.create_task(self._drain(server)))

    def _stop(self, number: int, usual: Handler) -> None:
        self._make_last_calls()
        usual(number, None)

    async def _drain(self, server: Server) -> None:
        log.info("told to stop", serving_for=self._delay)
        try:
            await asyncio.sleep(self._delay)
            await self._use_up_connections(server)
        finally:
            # Not by uvicorn's handler, which has the process killed by the same signal in the end.
            server.should_exit = True

    async def _end_after(self, requests: int, server: Server) -> None:
        """Another process takes its place, and beside it others are ready: nobody has to notice."""
        while server.server_state.total_requests < requests:  # noqa: ASYNC110 -- uvicorn has no event
            await asyncio.sleep(COUNT)
        if not self.begun:
            log.info("as many requests as it was to serve", requests=requests)
            await self._use_up_connections(server)
            server.should_exit = True

    async def _use_up_connections(self, server: Server) -> None:
        self._make_last_calls()
        if not self._linger:
            return
        for listening in server.servers:
            listening.close()
        # What tells a client, in an answer, that no other will come on this connection.
        last = (b"connection", b"close")
        server.config.encoded_headers.append(last)
        state = server.server_state
        state.default_headers = [*state.default_headers, last]
        deadline = self._loop.time() + LINGER
        while state.connections and self._loop.time() < deadline:  # noqa: ASYNC110 -- uvicorn has no event
            await asyncio.sleep(LOOK)

    def _make_last_calls(self) -> None:
        for call in self.last_calls:
            call()

    def close(self) -> None:
        """Nothing more is waited for."""
        for task in self._tasks:
            task.cancel()


def _server_of(handler: Handler) -> Server | None:
    server = getattr(handler, "__self__", None)
    return server if isinstance(server, Server) else None


@contextmanager
def draining(delay: float, *, linger: bool) -> Iterator[Drain]:
    """Has the process stop that way when it is told to, meanwhile.

    Where it has no server that handles SIGTERM and SIGINT, as in a test, nothing is changed.
    """
    drain = Drain(delay, linger=linger)
    changed = _handle_signals(drain) if threading.current_thread() is threading.main_thread() else {}
    try:
        yield drain
    finally:
        for number, (usual, ours) in changed.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, usual)
        drain.close()


def _handle_signals(drain: Drain) -> dict[signal.Signals, tuple[Handler, Handler]]:
    """Which handlers were, and are now."""
    changed = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        usual = signal.getsignal(number)
        if callable(usual) and usual != signal.default_int_handler:
            ours = drain.instead_of(usual)
            signal.signal(number, ours)
            changed[number] = (usual, ours)
    return changed
