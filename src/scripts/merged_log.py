"""One log of several processes: each line behind the name of the process that said it."""

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import IO, Self

from .unprivileged import ServiceError

_COLOURS = {"api": 36, "worker": 35, "db": 33}
_WIDTH = max(map(len, _COLOURS))


class MergedLog:
    """Collects lines from pipes and files, in threads of their own, and prints them when told to."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._lines: queue.Queue[tuple[str, str]] = queue.Queue(maxsize=10_000)
        self._done = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def read(self, name: str, stream: IO[bytes]) -> None:
        """Collect the lines of this pipe until it ends."""
        threading.Thread(target=self._read, args=(name, stream), daemon=True).start()

    def follow(self, name: str, file: Path) -> None:
        """Collect the lines that are written to this file from now on."""
        stream = file.open("rb")
        stream.seek(0, os.SEEK_END)
        threading.Thread(target=self._tail, args=(name, stream), daemon=True).start()

    def print_lines(self, seconds: float) -> None:
        """Print what is said within so many seconds, less when nothing is."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                name, line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            say(f"{_prefix(name)}{line}")

    def _read(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._put(name, line)

    def _tail(self, name: str, stream: IO[bytes]) -> None:
        rest = b""
        with stream:
            while not self._done.wait(0.2):
                *lines, rest = (rest + stream.read()).split(b"\n")
                for line in lines:
                    self._put(name, line)

    def _put(self, name: str, line: bytes) -> None:
        self._lines.put((name, line.decode(errors="replace").rstrip()))


def say(text: str) -> None:
    """Print, or when nobody reads any more, as in `make run | head`, go on into the void and say so."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ServiceError("Nobody reads the log any more.") from error


def _prefix(name: str) -> str:
    text = f"{name:<{_WIDTH}} | "
    return f"\033[{_COLOURS.get(name, 0)}m{text}\033[0m" if sys.stdout.isatty() else text
