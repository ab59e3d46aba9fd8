"""Child processes in groups of their own, started again when they end, none of which outlives this process."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from . import reaper
from .merged_log import MergedLog, say
from .reaper import GRACE_SECONDS, signal_group
from .unprivileged import ServiceError

STEADY_SECONDS = 5.0  # A child that ends sooner than this would only end again.


class Children:
    """Starts children, watches them, and stops them all at the end.

    If this process is killed, its reaper does the stopping. The reaper inherits `keep`, open files whose locks
    last until that is done.
    """

    def __init__(self, folder: Path, log: MergedLog, keep: Sequence[int] = ()) -> None:
        """`folder` is where the children work; what they say goes to `log`."""
        self._folder = folder
        self._log = log
        self._keep = keep
        self._running: dict[str, _Child] = {}
        self._waiting: dict[str, tuple[str, ...]] = {}

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
        self._register = _pipe(self._reaper.stdin).fileno()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        except BaseException:  # The second Ctrl-C.
            for child in self._running.values():
                child.signal(signal.SIGKILL)
            raise
        finally:
            self._reaper.communicate()  # The end of its input: it stops what might be left, and ends.

    def start(self, name: str, *command: str) -> None:
        """Start a child in a new group."""
        child = _Child(command, self._folder, self._register)
        self._running[name] = child
        self._log.read(name, _pipe(child.process.stdout))

    def restart(self) -> None:
        """Tell each child to end, upon which `check` starts it again; those that wait for this start at once."""
        for child in self._running.values():
            child.end()
        while self._waiting:
            name, command = self._waiting.popitem()
            self.start(name, *command)

    def check(self, *, is_up: bool) -> None:
        """Start again what has ended. Raises: ServiceError when a child ends by itself before all `is_up`."""
        if self._reaper.poll() is not None:
            raise ServiceError("The process that stops the others after a kill -9 was itself killed: start again.")
        for name, child in list(self._running.items()):
            if child.was_told_to_end and child.is_gone():
                self._forget(name)
                self.start(name, *child.command)
            elif not child.was_told_to_end and child.process.poll() is not None:
                self._forget(name)
                self._take_up(name, child, is_up)

    def _take_up(self, name: str, child: "_Child", is_up: bool) -> None:
        """Say that the child has ended by itself, and start it again now or leave that to the next `restart`."""
        self._log.print_lines(0.2)  # Its last words.
        code = child.process.returncode
        line = f"The {name} process has ended by itself {f'with code {code}' if code >= 0 else f'by signal {-code}'}."
        if not is_up:
            raise ServiceError(line)
        if time.monotonic() - child.started < STEADY_SECONDS:
            self._waiting[name] = child.command
            say(f"{line} It starts again after the next change.")
        else:
            say(f"{line} It starts again now.")
            self.start(name, *child.command)

    def _forget(self, name: str) -> None:
        """End what a child has left behind; its number may become somebody else's, so the reaper forgets it too."""
        child = self._running.pop(name)
        child.signal(signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):  # The next `check` will say so.
            os.write(self._register, f"-{child.process.pid}\n".encode())

    def _stop(self) -> None:
        for child in self._running.values():
            child.end()
        while not all(child.is_gone() for child in self._running.values()):
            self._log.print_lines(0.05)
        self._log.print_lines(0.05)


class _Child:
    """One process and all that it may start: its group."""

    def __init__(self, command: tuple[str, ...], folder: Path, register: int) -> None:
        """Start it; the first thing that it does is to write its number to `register`."""
        self.command = command
        self.started = time.monotonic()
        self._kill_at = math.inf
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", 'echo $$ >&0 && exec "$0" "$@" </dev/null', *command],
            stdin=register,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            process_group=0,
        )

    @property
    def was_told_to_end(self) -> bool:
        """Whether its end is our doing."""
        return self._kill_at < math.inf

    def end(self) -> None:
        """Tell it to end, once: some take a second signal for impatience."""
        if not self.was_told_to_end:
            self._kill_at = time.monotonic() + GRACE_SECONDS
            self.signal(signal.SIGTERM)

    def is_gone(self) -> bool:
        """Whether it and its group have ended, which may be slower than itself; after its grace it is made to."""
        if time.monotonic() > self._kill_at:
            self.signal(signal.SIGKILL)
            self.process.wait()
            return True
        return self.process.poll() is not None and not self.signal(0)

    def signal(self, number: int) -> bool:
        """Send a signal to the group, and say whether anybody was there."""
        return signal_group(self.process.pid, number)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("The process was started without this pipe.")
    return stream
