"""The machine that is measured on: its cores, what runs on which, and what a figure has to be read with."""

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CORES: Final = range(os.cpu_count() or 1)
PACKAGES: Final = (
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "gunicorn",
    "sqlalchemy",
    "sqlmodel",
    "asyncpg",
    "redis",
    "hiredis",
    "arq",
)


def pin(choose: Callable[[Iterable[int]], int]) -> None:
    """Keeps this process, and those it starts, on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {choose(CORES)})


def unpin() -> None:
    """Lets this process, and those it starts, run anywhere."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES)


def memory_of(pid: int | None) -> float | None:
    """The memory that a process has resident, in megabytes; None without one, and where there is no `/proc`."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor_seconds_of(pid: int) -> float | None:
    """How long a process has computed so far, in seconds, its calls to the system included; None without `/proc`."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, object]:
    """Date, commit, machine and versions. Nothing that names the machine or its owner."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "processor": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.processor() or "unknown",
            "cores": len(CORES),
            "memory_gb": _memory_gb(),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "load_before": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _commit() -> str:
    """The commit that is checked out, with `+` when there is more in the folder than in it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 -- whichever git there is
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "src/app", "bench", "requirements.txt", ":!bench/results"],  # noqa: S607 -- the same
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def _memory_gb() -> float | None:
    found = _first(r"MemTotal:\s*(\d+)", "/proc/meminfo")
    return round(int(found) / 1024**2, 1) if found else None


def _first(pattern: str, file: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None
