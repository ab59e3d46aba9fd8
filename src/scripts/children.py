"""Child processes in groups of their own, with one log, none of which outlives this process."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from . import reaper
from .reaper import signal_group
from .unprivileged import ServiceError

GRACE_SECONDS = 10.0
_COLOURS = {"api": 36, "worker": 35, "db": 33}
_WIDTH = max(map(len, _COLOURS))


class Children:
    """Starts children, merges their output, and stops them all at the end.

    If this process is killed, its reaper does the stopping. The reaper inherits `keep`, open files whose locks
    last until that is done.
    """

    def __init__(self, folder: Path, keep: Sequence[int] = ()) -> None:
        """`folder` is where the children work."""
        self._folder = folder
        self._keep = keep
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lines: queue.Queue[tuple[str, str]] = queue.Queue(maxsize=10_000)
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self._reaper = subprocess.Popen(
            [sys.executable, "-S", "-E", reaper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=self._keep,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        except BaseException:  # The second Ctrl-C.
            for child in self._running.values():
                signal_group(child.pid, signal.SIGKILL)
            raise
        finally:
            self._done.set()
            self._reaper.communicate()  # The end of its input: it stops what might be left, and ends.

    def start(self, name: str, *command: str) -> None:
        """Start a child in a new group; the first thing it does is to tell the reaper."""
        pipe = _pipe(self._reaper.stdin).fileno()

        def register() -> None:
            os.write(pipe, f"{os.getpid()}\n".encode())

        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            process_group=0,
            preexec_fn=register,
        )
        self._running[name] = child
        threading.Thread(target=self._read, args=(name, _pipe(child.stdout)), daemon=True).start()

    def follow(self, name: str, file: Path) -> None:
        """Merge the lines that are written to this file from now on."""
        stream = file.open("rb")
        stream.seek(0, os.SEEK_END)
        threading.Thread(target=self._tail, args=(name, stream), daemon=True).start()

    def print_lines(self, seconds: float) -> None:
        """Print what the children say for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                name, line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            _print(f"{_prefix(name)}{line}")

    def check(self) -> None:
        """Raises: ServiceError when a child has ended by itself."""
        for name, child in self._running.items():
            code = child.poll()
            if code is not None:
                self.print_lines(0.2)  # Its last words.
                how = f"with code {code}" if code >= 0 else f"by signal {-code}"
                raise ServiceError(f"The {name} process has ended by itself {how}.")

    def _stop(self) -> None:
        for child in self._running.values():
            signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        # The group and not only its leader: the leader's own children may be slower.
        while any(child.poll() is None or signal_group(child.pid, 0) for child in self._running.values()):
            if time.monotonic() > deadline:
                for child in self._running.values():
                    signal_group(child.pid, signal.SIGKILL)
                    child.wait()
                break
            self.print_lines(0.05)
        self.print_lines(0.05)

    def _read(self, name: str, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.put((name, line.decode(errors="replace").rstrip()))

    def _tail(self, name: str, stream: IO[bytes]) -> None:
        rest = b""
        with stream:
            while not self._done.wait(0.2):
                *lines, rest = (rest + stream.read()).split(b"\n")
                for line in lines:
                    self._lines.put((name, line.decode(errors="replace").rstrip()))


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("The process was started without this pipe.")
    return stream


def _print(text: str) -> None:
    """Print, or when nobody reads any more, as in `make run | head`, go on into the void and say so."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ServiceError("Nobody reads the log any more.") from error


def _prefix(name: str) -> str:
    text = f"{name:<{_WIDTH}} | "
    return f"\033[{_COLOURS.get(name, 0)}m{text}\033[0m" if sys.stdout.isatty() else text
