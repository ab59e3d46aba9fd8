"""The embedded services, shared by every process that needs them and stopped after the last of them.

Every user holds a shared lock on `services.lock`. One detached process, the guardian, holds `guardian.lock`,
runs both servers, and stops them once it can take the users' lock exclusively. The system drops a lock when
its holder dies, however it dies, so nothing here goes stale, and nobody joins while the guardian is stopping.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from .embedded import Postgres, ServiceError, Valkey
from .server import locked

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".data"
READY_SECONDS = 90.0
STOP_SECONDS = 60.0
_STARTS = 3
_LARGEST_LOG_BYTES = 5_000_000
_KILLED = "The process that guards PostgreSQL and Valkey was killed: start again."


@dataclass(frozen=True)
class Config:
    """Where the services keep their data, and the addresses and names under which they are found."""

    folder: str
    postgres_port: int
    postgres_user: str
    postgres_password: str
    postgres_db: str
    valkey_port: int

    @property
    def log(self) -> Path:
        """The file that both servers write their log to."""
        return self.path("services.log")

    def path(self, name: str) -> Path:
        """A file or folder of the services."""
        return Path(self.folder, name)

    def fingerprint(self) -> str:
        """Equal for equal configurations."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def servers(self) -> tuple[Valkey, Postgres]:
        """Both servers, not started; the slower one is last."""
        postgres = Postgres(
            self.path("postgres"),
            port=self.postgres_port,
            user=self.postgres_user,
            password=self.postgres_password,
            database=self.postgres_db,
            log=self.log,
        )
        return Valkey(self.path("valkey"), port=self.valkey_port, log=self.log), postgres


class Services:
    """Running services, for as long as `attach` lasts."""

    def __init__(self, config: Config, lock: int) -> None:
        """`lock` is the open file that keeps them running; a process that inherits it keeps them too."""
        self.config = config
        self.lock = lock

    def problem(self) -> str | None:
        """One line that says why the services no longer run, or None while they do."""
        with _open(self.config.path("guardian.lock")) as lock:
            if not locked(lock.fileno(), 0):
                return None
        return str(_state(self.config).get("reason", _KILLED))


@contextlib.contextmanager
def attach(config: Config) -> Iterator[Services]:
    """Start the services or join those that run; stop them at the end if nobody else uses them.

    Raises: ServiceError when they can't run.
    """
    users = open_in(Path(config.folder), "services.lock")
    try:
        with users:
            if not locked(users.fileno(), STOP_SECONDS, fcntl.LOCK_SH):
                raise ServiceError(f"PostgreSQL and Valkey are not done with stopping: see {config.log}.")
            try:
                _wait_until_ready(config)
            except OSError as error:
                raise _unusable(error.filename or config.folder, error) from error
            yield Services(config, users.fileno())
    finally:
        _wait_unless_used(config)


def open_in(folder: Path, name: str) -> IO[bytes]:
    """Open a file to lock in this folder, both of which are made if need be. Raises: ServiceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("a+b")
    except OSError as error:
        raise _unusable(error.filename, error) from error


def _unusable(path: str, error: OSError) -> ServiceError:
    if isinstance(error, PermissionError):
        return ServiceError(f"{path} is closed to this user: run as its owner.")
    if isinstance(error, FileExistsError):
        return ServiceError(f"{path} must be a folder: move the file away.")
    return ServiceError(f"{path} can't be used: {error.strerror}.")


def _wait_until_ready(config: Config) -> None:
    """Wait for the guardian, and be the one who starts it when there is none."""
    deadline = time.monotonic() + READY_SECONDS
    earlier, starts = _state(config), 0
    while time.monotonic() < deadline:
        with _open(config.path("guardian.lock")) as lock:
            if locked(lock.fileno(), 0):
                state = _state(config)
                if "reason" in state and state != earlier:
                    raise ServiceError(state["reason"])
                if starts == _STARTS:
                    raise ServiceError(f"PostgreSQL and Valkey can't be kept running: see {config.log}.")
                _spawn_guardian(config, lock.fileno())
                starts += 1
        state = _state(config)
        if state.get("ready"):
            if state["fingerprint"] != config.fingerprint():
                raise ServiceError("PostgreSQL and Valkey already run here with other settings: stop them first.")
            return
        time.sleep(0.02)
    raise ServiceError(f"PostgreSQL and Valkey are not ready after {READY_SECONDS:.0f} s: see {config.log}.")


def _spawn_guardian(config: Config, lock: int) -> None:
    """The guardian is born with its lock held, so there is no moment at which a second one could start."""
    _state_file(config).unlink(missing_ok=True)
    too_large = config.log.exists() and config.log.stat().st_size > _LARGEST_LOG_BYTES
    with config.log.open("wb" if too_large else "ab") as log:
        guardian = subprocess.Popen(
            [sys.executable, "-m", "src.scripts.services", str(lock)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            pass_fds=(lock,),
            start_new_session=True,
        )
    _children.append(guardian)
    with contextlib.suppress(BrokenPipeError), cast(IO[bytes], guardian.stdin) as stdin:
        # Not among the arguments, where everybody could read the password.
        stdin.write(json.dumps(asdict(config)).encode())


# Held so that they are reaped when they end: nobody waits for a guardian, it may outlive its starter.
_children: list[subprocess.Popen[bytes]] = []


def _wait_unless_used(config: Config) -> None:
    """Return when the servers are down, or when somebody else uses them."""
    deadline = time.monotonic() + STOP_SECONDS
    sightings = 0  # One may be another leaver that is just looking, as this one does.
    while time.monotonic() < deadline and sightings < 3:
        with _open(config.path("services.lock")) as users, _open(config.path("guardian.lock")) as guardian:
            if locked(guardian.fileno(), 0):
                if locked(users.fileno(), 0):
                    _stop_leftovers(config)
                break
            if locked(users.fileno(), 0, fcntl.LOCK_SH) and not locked(users.fileno(), 0):
                sightings += 1
        time.sleep(0.03)
    _children[:] = [child for child in _children if child.poll() is None]


def _stop_leftovers(config: Config) -> None:
    """A killed guardian leaves its servers behind, for a moment on Linux and for good elsewhere."""
    with contextlib.suppress(ServiceError):
        for server in config.servers():
            server.stop_leftover()


def main(lock: int) -> int:
    """Be the guardian. `lock` is the open file of `guardian.lock`, inherited; the configuration is on stdin."""
    os.set_inheritable(lock, False)
    config = Config(**json.load(sys.stdin))
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    servers = config.servers()
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait()
        _write_state(config, ready=True, fingerprint=config.fingerprint())
        _guard(config, servers, asked)
        _state_file(config).unlink()
    except ServiceError as error:
        for server in servers:  # Before anybody may read that it has failed, and start again.
            server.stop()
        _write_state(config, reason=str(error))
        return 1
    return 0


def _guard(config: Config, servers: tuple[Valkey, Postgres], asked: list[int]) -> None:
    """Return when the servers are stopped because nobody uses them. Raises: ServiceError when one ends."""
    with _open(config.path("services.lock")) as users:
        while not locked(users.fileno(), 0):
            for server in servers:
                if server.process is None or server.process.poll() is not None:
                    raise ServiceError(f"{server.name} has ended unexpectedly: see {config.log}.")
            if asked:
                raise ServiceError("PostgreSQL and Valkey were told to stop by a signal to their guardian.")
            time.sleep(0.1)
        for server in servers:
            server.stop()


def _open(path: Path) -> IO[bytes]:
    return path.open("ab")


def _state_file(config: Config) -> Path:
    return config.path("guardian.json")


def _state(config: Config) -> dict[str, Any]:
    """What the guardian has to say; "ready" only if the one who wrote it still lives, and so locks the file."""
    try:
        with _state_file(config).open("rb") as file:
            state = dict[str, Any](json.load(file))
            if locked(file.fileno(), 0, fcntl.LOCK_SH):
                state.pop("ready", None)
    except (FileNotFoundError, ValueError):  # None, or one that was written while the power failed.
        return {}
    return state


def _write_state(config: Config, **state: Any) -> None:
    """Replace the state as a whole, and hold a lock on it until this process ends."""
    scratch = config.path("guardian.json.new")
    file = scratch.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    json.dump({"pid": os.getpid(), "time": time.time_ns(), **state}, file)
    file.flush()
    os.fsync(file.fileno())
    scratch.chmod(0o600)
    scratch.replace(_state_file(config))
    _held.append(file)


_held: list[IO[str]] = []


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
