"""The load generator: Debian's `wrk`, one thread, and what it has measured."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bench.machine import ROOT, processor_seconds_of

CONNECTIONS: Final = 32
MISSING: Final = "The load generator wrk is not installed: `apt-get install wrk` (Debian, Ubuntu), `brew install wrk`."

_MILLISECONDS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, to be repeated.

    Attributes:
        url: all of it.
        body: of a form, or nothing.
        pid: the process that answers, where that is known.
        connections: how many ask at once.
    """

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    pid: int | None = None
    connections: int = CONNECTIONS


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load has found.

    Attributes:
        rate: requests per second.
        p50, p99: milliseconds that half and 99 of 100 requests were answered within.
        cpu: microseconds that the server has computed for a request, where its process is known.
    """

    rate: float
    p50: float
    p99: float
    cpu: float | None = None


def find_wrk() -> str:
    """Where wrk is. Raises: SystemExit that says how to get it."""
    if not (found := shutil.which("wrk")):
        raise SystemExit(MISSING)
    return found


def command(asked: Asked, seconds: float) -> list[str]:
    """wrk's command line."""
    words = [
        find_wrk(),
        "-t1",
        f"-c{asked.connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "--timeout",
        "10s",
    ]
    words += [word for name, value in asked.headers.items() for word in ("-H", f"{name}: {value}")]
    if asked.method == "GET" and asked.body is None:
        return [*words, asked.url]
    form = [] if asked.body is None else [asked.body, "application/x-www-form-urlencoded"]
    return [*words, "-s", str(ROOT / "bench" / "post.lua"), asked.url, "--", asked.method, *form]


def load(asked: Asked, seconds: float) -> Measured:
    """Repeats a request for so many seconds. Raises: SystemExit when anything is not answered with 2xx or 3xx."""
    before = _computed(asked)
    done = subprocess.run(command(asked, seconds), check=False, capture_output=True, text=True)
    after = _computed(asked)
    if done.returncode:
        raise SystemExit(f"{asked.url}: {done.stdout}{done.stderr}")
    return parse(done.stdout, asked.url, None if before is None or after is None else after - before)


def _computed(asked: Asked) -> float | None:
    return None if asked.pid is None else processor_seconds_of(asked.pid)


def parse(shown: str, url: str, computed: float | None = None) -> Measured:
    """What wrk has printed. `computed`: seconds, by the server. Raises: SystemExit when requests failed."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    latency = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m|h)) *$", shown, re.M))
    requests = int(next(iter(re.findall(r"^\s+(\d+) requests in", shown, re.M)), 0))
    if failed := re.findall(r"^\s+((?:Non-2xx|Socket errors).*)$", shown, re.M):
        raise SystemExit(f"{url}: not all was answered as it should be. Of {requests} answers: {'; '.join(failed)}.")
    if rate is None or len(latency) != 2 or not requests:
        raise SystemExit(f"{url}: no answer within the time that each case has.")
    cpu = None if computed is None or not requests else computed / requests * 1e6
    return Measured(float(rate[1]), _milliseconds(latency["50"]), _milliseconds(latency["99"]), cpu)


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]  # `parse` has looked
    return float(number) * _MILLISECONDS[unit]
