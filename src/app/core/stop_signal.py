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


@contextmanager
def on_stop_signal(action: Callable[[], None]) -> Iterator[None]:
    """Has this called when SIGTERM or SIGINT arrives, and then what the server does about it.

    Where the process has no server that handles them, as in a test, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(action)
        servers = usual[signal.Signals(number)]
        if callable(servers):
            servers(number, frame)

    handled = {
        number: before for number, before in usual.items() if callable(before) and before != signal.default_int_handler
    }
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, before in handled.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, before)
