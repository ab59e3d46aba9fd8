"""Who handles the signals while an app runs; tests/e2e/test_draining.py shows what real servers do with them."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.core.draining import draining

pytestmark = pytest.mark.anyio

STOPS = [signal.SIGTERM, signal.SIGINT]


@contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    """A server that handles both signals."""
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in STOPS]


class Server:
    """One that is not uvicorn: notes which signals it got."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def handle(self, number: int, _: Any) -> None:
        self.heard.append(number)


async def told(number: signal.Signals, is_heard: Callable[[], object]) -> None:
    """Sends the signal, and returns once somebody has heard it."""
    os.kill(os.getpid(), number)
    async with asyncio.timeout(10):
        while not is_heard():  # noqa: ASYNC110 -- a signal sets no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("number", STOPS)
async def test_a_server_we_do_not_know_stops_as_usual_after_the_last_calls(number: signal.Signals) -> None:
    server = Server()
    with handled_by(server.handle), draining(60, linger=True) as drain:
        drain.last_calls.append(lambda: server.heard.append(0))
        before = drain.begun
        await told(number, lambda: len(server.heard) == 2)
        assert (before, drain.begun) == (False, True)
    assert server.heard == [0, number]


async def test_afterwards_everything_is_as_it_was() -> None:
    server = Server()
    usual = server.handle
    with handled_by(usual):
        with draining(0, linger=False):
            assert usual not in handlers()
        assert handlers() == [usual, usual]


async def test_a_handler_that_came_later_stays() -> None:
    server, later = Server(), Server()
    newer = later.handle
    with handled_by(server.handle):
        with draining(0, linger=False):
            signal.signal(signal.SIGTERM, newer)
        assert signal.getsignal(signal.SIGTERM) == newer


@pytest.mark.parametrize("usual", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_without_a_server_nothing_is_changed(usual: Any) -> None:
    with handled_by(usual), draining(0, linger=False):
        assert handlers() == [usual, usual]


async def test_in_another_thread_nothing_is_changed() -> None:
    entered = []

    async def an_app() -> None:
        with draining(0, linger=False):
            entered.append(handlers())

    server = Server()
    usual = server.handle
    with handled_by(usual):
        thread = threading.Thread(target=lambda: asyncio.run(an_app()))
        thread.start()
        thread.join(10)
    assert entered == [[usual, usual]]
