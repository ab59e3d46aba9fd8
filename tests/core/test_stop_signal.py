"""Who has to know hears of SIGTERM and SIGINT first, and the server still does what it does."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.core.stop_signal import on_stop_signal

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


class Server:
    """Notes which signals it got, and whether that was before or after somebody else."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def handle(self, number: int, _: Any) -> None:
        self.heard.append(number)


async def told(action: Callable[[], object], number: signal.Signals) -> None:
    """Sends the signal, and returns once the event loop has had its turn."""
    os.kill(os.getpid(), number)
    async with asyncio.timeout(10):
        while not action():  # noqa: ASYNC110 -- a signal sets no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("number", STOPS)
async def test_both_hear_of_it(number: signal.Signals) -> None:
    server, actions = Server(), []
    with handled_by(server.handle), on_stop_signal(lambda: actions.append(asyncio.get_running_loop())):
        await told(lambda: actions, number)
    assert actions == [asyncio.get_running_loop()]
    assert server.heard == [number]


@pytest.mark.parametrize("number", STOPS)
async def test_afterwards_everything_is_as_it_was(number: signal.Signals) -> None:
    server, actions = Server(), []
    usual = server.handle
    with handled_by(usual):
        with on_stop_signal(lambda: actions.append(1)):
            assert signal.getsignal(number) != usual
        assert signal.getsignal(number) == usual
        await told(lambda: server.heard, number)
    assert (server.heard, actions) == ([number], [])


async def test_it_is_restored_also_when_what_it_was_for_fails() -> None:
    server = Server()
    usual = server.handle
    with handled_by(usual):
        with pytest.raises(RuntimeError, match="failed"), on_stop_signal(lambda: None):
            raise RuntimeError("failed")
        assert [signal.getsignal(number) for number in STOPS] == [usual, usual]


async def test_several_can_hear_of_it() -> None:
    server, actions = Server(), []
    with (
        handled_by(server.handle),
        on_stop_signal(lambda: actions.append("outer")),
        on_stop_signal(lambda: actions.append("inner")),
    ):
        await told(lambda: len(actions) == 2, signal.SIGTERM)
    assert sorted(actions) == ["inner", "outer"]
    assert server.heard == [signal.SIGTERM]


async def test_who_has_set_another_handler_meanwhile_keeps_it() -> None:
    server, later = Server(), Server()
    newer = later.handle
    with handled_by(server.handle):
        with on_stop_signal(lambda: None):
            signal.signal(signal.SIGTERM, newer)
        assert signal.getsignal(signal.SIGTERM) == newer


@pytest.mark.parametrize("usual", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_without_a_server_nothing_is_changed(usual: Any) -> None:
    with handled_by(usual), on_stop_signal(lambda: None):
        assert [signal.getsignal(number) for number in STOPS] == [usual, usual]


async def test_in_another_thread_nothing_is_changed() -> None:
    entered = []

    def elsewhere() -> None:
        with on_stop_signal(lambda: None):
            entered.append([signal.getsignal(number) for number in STOPS])

    server = Server()
    usual = server.handle
    with handled_by(usual):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)
    assert entered == [[usual, usual]]
