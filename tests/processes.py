"""Starts this repository's commands as real processes and stops them by their process ids."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from redis import Redis

from scripts.embedded import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
START_SECONDS = 30
IN_FULL = os.environ.get("CI") == "true"  # CI does what takes minutes as often as it is promised; else a part will do


@contextmanager
def process(
    *command: str, cwd: Path = ROOT, group: bool = True, stop: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """A process (group) that is stopped at the end. The test's environment names its database and Valkey."""
    started = subprocess.Popen([str(BIN / command[0]), *command[1:]], cwd=cwd, start_new_session=group)
    try:
        yield started
    finally:
        _stop(started, stop)


def _stop(started: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if started.poll() is None:
        os.killpg(started.pid, how)
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@contextmanager
def running_api(*command: str, cwd: Path = ROOT) -> Iterator[str]:
    """The app behind a real server, once it answers; by default one uvicorn. Yields its address.

    Args:
        command: another server's command; `{port}` in it becomes a free port.
        cwd: where the command runs.
    """
    port = free_port()
    words = command or ("uvicorn", "src.app.main:app", "--port", "{port}", "--log-level", "warning")
    with process(*(word.format(port=port) for word in words), cwd=cwd) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for_answer(f"{url}/api/v1/health", server)
        yield url


@contextmanager
def running_worker(
    valkey_port: int, worker_settings: str = "tests.jobs_app.WorkerSettings"
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, once it takes jobs. It is stopped with SIGTERM, unless it has ended by then."""
    with process("arq", worker_settings) as worker:
        wait_for_worker(worker, valkey_port)
        yield worker


def wait_for_worker(worker: subprocess.Popen[bytes], valkey_port: int, seconds: float = START_SECONDS) -> None:
    """Returns when the worker has said that it lives. Raises: AssertionError when it does not in time, or ends."""
    deadline = time.monotonic() + seconds
    with Redis(port=valkey_port) as redis:
        while time.monotonic() < deadline:
            assert worker.poll() is None, f"the worker ended with {worker.returncode}"
            if redis.keys(f"*:health-check:*:{worker.pid}:*"):
                return
            time.sleep(0.02)
    raise AssertionError(f"the worker did not begin within {seconds} s")


def wait_for_answer(url: str, server: subprocess.Popen[bytes], seconds: float = START_SECONDS) -> None:
    """Returns when the address answers 200. Raises: AssertionError when it does not in time, or the server ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no answer from {url} within {seconds} s")
