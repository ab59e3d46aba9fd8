"""What a server does between SIGTERM and its end, so that nobody's request is lost.

It says at once that it is not ready, and goes on serving for as long as whoever sends it requests may need to notice:
Kubernetes, a load balancer. Then it takes no more connections, which a proxy that has another server to ask notices by
itself, and answers on those that there are until they are closed: a proxy can have sent a request on any of them that
has not arrived yet. Only then the server's own shutdown begins, which finishes what it has begun to answer.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import structlog
from uvicorn import Server

from app.core.stop_signal import Handler, stop_signals_handled

LINGER: Final = 3.0  # seconds for connections to be closed; proxies have to close those they do not use before that
LOOK: Final = 0.05  # seconds between two looks
COUNT: Final = 1.0  # seconds between two looks at how many requests there were

log = structlog.stdlib.get_logger("slipway.server")


class Drain:
    """Whether the server was told to stop, and what it does about it.

    Attributes:
        begun: whether it was.
    """

    def __init__(self, delay: float) -> None:
        """`delay`: seconds for which it goes on serving. Without any, it stops as servers usually do."""
        self.begun = False
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    def instead_of(self, usual: Handler) -> Handler:
        """The handler of a signal: the server's own is called once it is time."""
        server = _server_of(usual)
        if server is not None and server.limit_max_requests and self._watch is None:
            limit = server.limit_max_requests
            server.__dict__["limit_max_requests"] = None  # It is ours to look after: uvicorn would end at once.
            self._watch = self._loop.create_task(self._end_after(limit, server))

        def handle(number: int, frame: Any) -> None:
            self._loop.call_soon_threadsafe(self._told, number, partial(_stop, usual, number))

        return handle

    def _told(self, number: int, stop: Any) -> None:
        again, self.begun = self.begun, True
        if again or not self._delay or number == signal.SIGINT:  # Somebody sits there and waits for it.
            stop()
        else:
            self._task = self._loop.create_task(self._go_on_serving(stop))

    async def _go_on_serving(self, stop: Any) -> None:
        log.info("told to stop", serving_for=self._delay)
        await asyncio.sleep(self._delay)
        server = _server_of(stop.args[0])
        if server is not None:
            await _use_up_connections(server)
        stop()

    async def _end_after(self, requests: int, server: Server) -> None:
        """Another process takes its place, and beside it others are ready: nobody has to notice."""
        while server.server_state.total_requests < requests:  # noqa: ASYNC110 -- uvicorn has no event
            await asyncio.sleep(COUNT)
        log.info("as many requests as it was to serve", requests=requests)
        await _use_up_connections(server)
        server.should_exit = True

    def close(self) -> None:
        """Nothing more is waited for."""
        for task in (self._task, self._watch):
            if task is not None:
                task.cancel()


@contextmanager
def draining(delay: float) -> Iterator[Drain]:
    """Stops the process that way when it is told to, meanwhile."""
    drain = Drain(delay)
    try:
        with stop_signals_handled(drain.instead_of):
            yield drain
    finally:
        drain.close()


def _server_of(handler: Handler) -> Server | None:
    server = getattr(handler, "__self__", None)
    return server if isinstance(server, Server) else None


def _stop(usual: Handler, number: int) -> None:
    """As the server would by itself; but it does not kill its process with the same signal afterwards, as uvicorn does.

    An orderly end is exit code 0.
    """
    server = _server_of(usual)
    if server is not None and number == signal.SIGTERM and not server.should_exit:
        server.should_exit = True
    else:
        usual(number, None)


async def _use_up_connections(server: Server) -> None:
    for listening in server.servers:
        listening.close()
    # What tells a client, in an answer, that no other will come on this connection.
    server.config.encoded_headers.append((b"connection", b"close"))
    state = server.server_state
    state.default_headers = [*state.default_headers, (b"connection", b"close")]
    deadline = asyncio.get_running_loop().time() + LINGER
    while state.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 -- uvicorn has no event
        await asyncio.sleep(LOOK)
