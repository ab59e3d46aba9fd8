"""Hears that the process is told to stop when it is told.

A server first waits for the answers that are open, and ends the app's lifespan after that: an answer that streams has
to be told in between.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[[int, Any], Any]  # of a signal: its number, and where the program was


@contextmanager
def on_stop_signal(action: Callable[[], None]) -> Iterator[None]:
    """Has this called when SIGTERM or SIGINT arrives, and then what the server does about it.

    Where the process has no server that handles them, as in a test, nothing is changed.
    """

    def then_the_server(usual: Handler) -> Handler:
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(action)
            usual(number, frame)

        return handle

    with stop_signals_handled(then_the_server):
        yield


@contextmanager
def stop_signals_handled(instead_of: Callable[[Handler], Handler]) -> Iterator[None]:
    """Has SIGTERM and SIGINT handled otherwise, where a server handles them.

    Args:
        instead_of: from the server's handler makes the one that takes its place meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handled = {
        number: (before, instead_of(before))
        for number, before in usual.items()
        if callable(before) and before != signal.default_int_handler
    }
    for number, (_, handler) in handled.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, (before, handler) in handled.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before)
