"""What starting, watching and stopping PostgreSQL and Valkey have in common."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

from .unprivileged import ServiceError, data_folder, die_with_parent, identity

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1."""
    return port_problem(port) is None


def port_problem(port: int) -> str | None:
    """Why no server can listen on this port of 127.0.0.1, as the end of a sentence; None when one can."""
    with socket.socket() as asker, socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taker.bind((HOST, port))
        except PermissionError:
            return "is closed to this user"
        except OSError:
            return _IN_USE
        taker.close()
        # macOS lets a second server bind 127.0.0.1 beside one on 0.0.0.0, so ask as well.
        return _IN_USE if asker.connect_ex((HOST, port)) == 0 else None


_IN_USE = "is in use by another program"


# Below those that systems pick for outgoing connections. Tests that run beside each other have a part of them each.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port that is free now, and was not returned before, as long as there are others."""
    for _ in PORTS:
        if not _untried:
            _untried.extend(random.SystemRandom().sample(PORTS, len(PORTS)))
        if is_port_free(port := _untried.pop()):
            return port
    raise ServiceError("No port is free.")


_untried: list[int] = []


class Server:
    """One server on one data folder, whose lock it inherits, so that the lock lasts as long as the server."""

    name: ClassVar[str]
    port_settings: ClassVar[str]
    shutdown_signals: ClassVar[tuple[signal.Signals, ...]]

    def __init__(self, data: Path, *, port: int, durable: bool = True, log: Path | None = None) -> None:
        """`durable=False` trades safety of the data for speed. `log` is appended to; default `<data>.log`."""
        self.data = data
        self.port = port
        self.durable = durable
        self.log = log or data.with_name(f"{data.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = data

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers. Raises: ServiceError."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Start without waiting. First stop a server that an earlier, killed run left on this folder."""
        self.folder = data_folder(self.data)
        with self._lock_file().open("a+") as lock:
            self._take(lock.fileno())
            self._prepare()
            if problem := port_problem(self.port):
                raise ServiceError(f"Port {self.port} {problem}: set {self.port_settings} in src/.env to a free one.")
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self.process = self._popen(lock.fileno(), log.fileno())
            os.write(lock.fileno(), str(self.process.pid).encode())

    def wait(self) -> None:
        """Wait until it answers. Raises: ServiceError with its last words when it ends instead."""
        try:
            self._until(self._answers, START_SECONDS)
            self._finish()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it, politely first, and wait until it is gone."""
        if self.process is None:
            return
        for number in (*self.shutdown_signals, signal.SIGKILL):
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def stop_leftover(self) -> None:
        """Stop a server that a killed run left on this folder, if there is one."""
        self.folder = data_folder(self.data)
        with self._lock_file().open("a+") as lock:
            self._take(lock.fileno())

    def _lock_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    def _take(self, lock: int) -> None:
        """Lock the folder. Whoever holds the lock is a leftover whose pid is in the file: it has to go."""
        for number in (*self.shutdown_signals, signal.SIGKILL):
            if locked(lock, 0):
                break
            pid = os.pread(lock, 20, 0)
            if pid.isdigit():
                _kill(int(pid), number)
            if locked(lock, STOP_SECONDS):
                break
        else:
            raise ServiceError(f"{self.name} already runs on {self.data} and can't be stopped.")
        os.ftruncate(lock, 0)

    def _popen(self, lock: int, log: int) -> subprocess.Popen[bytes]:
        parent, number = os.getpid(), self.shutdown_signals[0]

        def bind_to_parent() -> None:
            die_with_parent(number)
            if os.getppid() != parent:  # It died before the line above.
                os._exit(1)

        try:
            return subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
                umask=0o077,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in the terminal is not for it.
                preexec_fn=bind_to_parent,  # Runs after the change of user, which would undo it.
                **identity(),
            )
        except OSError as error:
            raise ServiceError(f"{self.name} can't be started: {error.strerror}.") from error

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process is None or self.process.poll() is not None:
                raise ServiceError(f"{self.name} could not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} does not answer after {seconds:.0f} seconds: see {self.log}.")
            time.sleep(0.02)

    def _last_words(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "FATAL" in line or "atal error" in line or "Failed" in line]
        return (telling or lines or [f"see {self.log}"])[-1]

    def _prepare(self) -> None: ...

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _finish(self) -> None: ...


def environment() -> dict[str, str]:
    """Nothing of the caller's PG* variables and locale; macOS needs some LC_ALL."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def locked(lock: int, seconds: float, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock on this open file could be taken within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def exists(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
