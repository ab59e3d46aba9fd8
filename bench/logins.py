"""How long `GET /health` takes while thirty people sign in at once: hashing must not hold up the event loop."""

import http.client
import subprocess
import time
from dataclasses import replace
from statistics import quantiles
from typing import Final
from urllib.parse import urlsplit

from bench.load import Asked, command, parse
from bench.servers import stop

LOGINS: Final = 30
PAUSE: Final = 0.005  # seconds between two looks


def health_while_logging_in(address: str, login: Asked, seconds: float) -> dict[str, float]:
    """Milliseconds that `GET /health` took, asked over and over on one connection, while 30 logins always run.

    Raises: SystemExit when a login or a look fails.
    """
    with subprocess.Popen(
        command(replace(login, connections=LOGINS), seconds + 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as wrk:
        try:
            time.sleep(1)  # until they are under way
            taken = _looks(address, seconds)
            shown = wrk.communicate(timeout=seconds + 30)[0]
        finally:
            if wrk.poll() is None:
                stop(wrk)
    percentiles = quantiles(taken, n=100)
    return {
        "logins_at_once": LOGINS,
        "logins_per_second": parse(shown, login.url).rate,
        "looks": len(taken),
        "p50_ms": percentiles[49],
        "p99_ms": percentiles[98],
        "longest_ms": max(taken),
    }


def _looks(address: str, seconds: float) -> list[float]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    taken = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.request("GET", "/api/v1/health")
        answer = connection.getresponse()
        answer.read()
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"{answer.status} of /health")
        time.sleep(PAUSE)
    connection.close()
    return taken
