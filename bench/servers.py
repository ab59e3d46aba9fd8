"""What is measured, started as real processes: PostgreSQL and Valkey on the last core, servers on the first."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Final

from bench.machine import ROOT, pin, unpin

sys.path.insert(0, str(ROOT / "src"))

from scripts.embedded import Postgres, Valkey, free_port, scratch_folder

BIN: Final = Path(sys.executable).parent
START_SECONDS: Final = 30
STOP_SECONDS: Final = 20
UVICORN: Final = ("uvicorn", "{app}", "--port", "{port}", "--no-access-log", "--log-level", "warning")
# As docs/deploy.md has it, but for `src/gunicorn.conf.py`: the bare app has no settings for it to read.
GUNICORN: Final = (
    *("gunicorn", "{app}", "-w", "{workers}", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"),
    *("--log-level", "error", "--no-control-socket"),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        address: `http://host:port`.
        pid: of its process, if it is one.
    """

    address: str
    pid: int | None


@contextmanager
def services() -> Iterator[None]:
    """PostgreSQL and Valkey of this run, migrated, on the last core; the environment names them."""
    pin(max)
    postgres_port, valkey_port = str(free_port()), str(free_port())
    password = token_urlsafe(24)
    os.environ.update(
        ENV_FILE=os.devnull,
        ENVIRONMENT="production",
        SECRET_KEY=token_urlsafe(48),
        ADMIN_PASSWORD=token_urlsafe(24),
        ACCESS_TOKEN_EXPIRE_MINUTES="1440",  # noqa: S106 -- no password
        POSTGRES_USER="bench",
        POSTGRES_PASSWORD=password,
        POSTGRES_SERVER="127.0.0.1",
        POSTGRES_PORT=postgres_port,
        POSTGRES_DB="bench",
        DEFAULT_RATE_LIMIT_LIMIT="2000000000",  # All is counted, and nobody is refused.
    )
    for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
        os.environ.update({f"REDIS_{use}_HOST": "127.0.0.1", f"REDIS_{use}_PORT": valkey_port})
    with (
        scratch_folder() as folder,
        Postgres(
            folder / "postgres",
            port=int(postgres_port),
            user="bench",
            password=password,
            database="bench",
            durable=False,
        ),
        Valkey(folder / "valkey", port=int(valkey_port), durable=False),
    ):
        subprocess.run([BIN / "alembic", "upgrade", "head"], cwd=ROOT / "src", check=True, capture_output=True)
        subprocess.run(
            [sys.executable, "-m", "src.scripts.create_first_tier"], cwd=ROOT, check=True, capture_output=True
        )
        yield


@contextmanager
def running(app: str, *, environment: Mapping[str, str] | None = None, workers: int | None = None) -> Iterator[Server]:
    """A server, once it answers; stopped at the end.

    Args:
        app: `package.module:name`.
        environment: what it gets besides ours.
        workers: None: one uvicorn on the first core. Else gunicorn with so many processes, on all cores.

    Raises: SystemExit when it does not start.
    """
    port = free_port()
    words = UVICORN if workers is None else GUNICORN
    process = subprocess.Popen(
        [BIN / words[0], *(word.format(app=app, port=port, workers=workers) for word in words[1:])],
        cwd=ROOT,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.DEVNULL,
        preexec_fn=(lambda: pin(min)) if workers is None else unpin,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process)
        yield Server(address, process.pid if workers is None else None)
    finally:
        stop(process)


@contextmanager
def server(app: str) -> Iterator[str]:
    """One uvicorn on the first core, once it answers. Yields its address."""
    with running(app) as started:
        yield started.address


def stop(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Ends a process that was started here, and waits for it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Returns once it answers, whatever it says. Raises: SystemExit when it ends, or does not in time."""
    place = address.removeprefix("http://")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"The server ended with {process.returncode}.")
        try:
            # That it takes connections is not enough: gunicorn does, while its workers have not begun.
            connection = http.client.HTTPConnection(place, timeout=START_SECONDS)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"No answer from {address}.")
