"""Requests per second, as ratios to a bare FastAPI route in the same run: `make bench`.

One server process on one core as in production, the load generator (`wrk`), PostgreSQL and Valkey on another; a
warm-up, then all cases in turn, several rounds, medians. What a machine does in a second drifts; ratios do not.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_urlsafe
from statistics import median
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from scripts.embedded import Postgres, Valkey, free_port, scratch_folder  # noqa: E402 -- src is not installed

BIN = Path(sys.executable).parent
CASES = {
    "ping": ("GET", "health"),
    "cached GET, hit": ("GET", "tier/free"),
    "cached list, hit": ("GET", "tiers"),
    "enqueue a job": ("POST", "tasks/task?message=hello"),
}
CONNECTIONS = 32
CORES = range(os.cpu_count() or 1)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=10, help="of each case in each round")
    given = arguments.parse_args()
    if not (wrk := shutil.which("wrk")):
        raise SystemExit("The load generator wrk is not installed: `apt-get install wrk`.")
    with ExitStack() as stack:
        stack.enter_context(services())
        bare = stack.enter_context(server("bench.bare:app"))
        app = stack.enter_context(server("src.app.main:app"))
        asked = {"bare FastAPI": ("GET", f"{bare}/bare")}
        asked |= {case: (method, f"{app}/api/v1/{path}") for case, (method, path) in CASES.items()}
        rates: dict[str, list[float]] = {case: [] for case in asked}
        for number in range(given.rounds + 1):
            for case, (method, address) in asked.items():
                rate = load(wrk, method, address, given.seconds)
                if number:  # The first round warms up.
                    rates[case].append(rate)
    base = median(rates["bare FastAPI"])
    for case, found in rates.items():
        print(f"{case:20} {median(found):8.0f} requests/s   {median(found) / base:5.2f}")


@contextmanager
def services() -> Iterator[None]:
    """PostgreSQL and Valkey of this run, migrated, on the last core; the environment names them."""
    pin(max)
    postgres_port, valkey_port = str(free_port()), str(free_port())
    os.environ.update(
        ENV_FILE=os.devnull,
        ENVIRONMENT="production",
        SECRET_KEY=token_urlsafe(48),
        ADMIN_PASSWORD=token_urlsafe(24),
        POSTGRES_USER="bench",
        POSTGRES_PASSWORD=token_urlsafe(24),
        POSTGRES_SERVER="127.0.0.1",
        POSTGRES_PORT=postgres_port,
        POSTGRES_DB="bench",
        DEFAULT_RATE_LIMIT_LIMIT="2000000000",  # All is counted, and nobody is refused.
    )
    for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
        os.environ.update({f"REDIS_{use}_HOST": "127.0.0.1", f"REDIS_{use}_PORT": valkey_port})
    password = os.environ["POSTGRES_PASSWORD"]
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
def server(app: str) -> Iterator[str]:
    """One uvicorn on the first core, once it answers. Yields its address."""
    port = free_port()
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [BIN / "uvicorn", app, *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: pin(min),
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def pin(choose: Callable[[Iterable[int]], int]) -> None:
    """Keeps this process, and those it starts, on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {choose(CORES)})


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Returns once it takes connections."""
    host, port = address.removeprefix("http://").split(":")
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"The server ended with {process.returncode}.")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"No answer from {address}.")


def load(wrk: str, method: str, address: str, seconds: int) -> float:
    """Requests per second; everything has to be answered with 2xx."""
    urlopen(Request(address, method=method)).close()  # noqa: S310 -- our own
    script = ["-s", str(ROOT / "bench" / "post.lua")] if method == "POST" else []
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", *script, address]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    if "Non-2xx" in shown or found is None:
        raise SystemExit(f"{address}: {shown}")
    return float(found[1])


if __name__ == "__main__":
    main()
