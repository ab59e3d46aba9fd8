"""Looking at processes by their ids."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether the process runs; a dead one for which nobody has waited yet does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or ") Z " not in stat.read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return once the condition holds. Raises: AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.1)


def commands() -> dict[int, str]:
    """The command line of every process, by its id."""
    if Path("/proc/self/cmdline").exists():
        return {int(entry.name): _command(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    listed = subprocess.run(["ps", "-Aww", "-o", "pid=,command="], check=True, capture_output=True, text=True)
    lines = (line.strip().partition(" ") for line in listed.stdout.splitlines())
    return {int(pid): command for pid, _, command in lines}


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # It has ended.
        return ""
