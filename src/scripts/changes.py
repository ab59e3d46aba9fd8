"""Notices which source files change."""

import queue
import threading
from pathlib import Path
from typing import Self

from .merged_log import say


class Changes:
    """The Python files that change below a folder, for as long as this is entered."""

    def __init__(self, folder: Path) -> None:
        """Nothing is watched yet."""
        self._folder = folder
        self._changed: queue.SimpleQueue[set[str]] = queue.SimpleQueue()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()  # Python must not end under code that is not Python.

    def take(self) -> list[str]:
        """The files that have changed since this was last asked."""
        changed: set[str] = set()
        while not self._changed.empty():
            changed |= self._changed.get()
        return sorted(changed)

    def _watch(self) -> None:
        # Imported here: it takes a while, in which the rest starts.
        from watchfiles import PythonFilter, watch

        try:
            for changes in watch(self._folder, watch_filter=PythonFilter(), stop_event=self._done):
                self._changed.put({path for _, path in changes})
        except OSError as error:
            say(f"Changes in {self._folder} are not noticed: {error}.")
