"""The usual measurement: every case, what it asks of PostgreSQL and Valkey, memory, logins and jobs."""

import asyncio
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.cases import BARE, CASES, Case, requests
from bench.cases import bare as asked_bare
from bench.counts import count
from bench.load import CONNECTIONS, Asked
from bench.logins import health_while_logging_in
from bench.machine import facts, memory_of
from bench.people import fill, sign_up
from bench.ratios import rounds
from bench.report import case_figures, rounded
from bench.servers import BIN, running, services
from bench.start import seconds_to_first_answer


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        rounds: after one that warms up.
        seconds: of each case in each round, and that `/health` is looked at.
        users: rows of the table.
        jobs, backlog, starts, watched: as `bench.jobs.measure` has them.
    """

    rounds: int = 5
    seconds: float = 5
    users: int = 1_000
    jobs: int = 2_000
    backlog: int = 100_000
    starts: int = 200
    watched: int = 8


QUICK = Extent(rounds=1, seconds=1, users=1_000, jobs=100, backlog=1_000, starts=10, watched=1)


def measure(
    extent: Extent, cases: tuple[Case, ...] = CASES, others: Mapping[str, Asked] | None = None
) -> dict[str, Any]:
    """All figures. `others` are requests to somebody else's server: then nothing but requests is measured.

    Raises: SystemExit when wrk is missing, a server does not start, or a request fails.
    """
    figures = facts()
    figures["method"] = {
        "rounds": extent.rounds,
        "seconds_per_case": extent.seconds,
        "connections": CONNECTIONS,
        "server": "one uvicorn process on the first core",
        "others": "wrk, PostgreSQL and Valkey on the last core",
    }
    with services(), ExitStack() as stack:
        bare = stack.enter_context(running("bench.bare:app"))
        app = stack.enter_context(running("src.app.main:app"))
        uncached = stack.enter_context(running("bench.uncached:app")) if _needs_uncached(cases) else app
        memory = {"bare, after start": memory_of(bare.pid), "app, after start": memory_of(app.pid)}
        people = sign_up(app.address)
        fill(extent.users)
        asked = {BARE: asked_bare(bare), **requests(cases, app, uncached, people)} | dict(others or {})
        found = rounds(asked, BARE, count=extent.rounds, seconds=extent.seconds)
        if others:
            return figures | {"cases": case_figures(found, {})}
        memory |= {"bare, after the load": memory_of(bare.pid), "app, after the load": memory_of(app.pid)}
        login = Case("login", "login", "POST", signs_in=True).asked(app, people)
        health = health_while_logging_in(app.address, login, 2 * extent.seconds)
        stack.close()
        figures["cases"] = case_figures(found, count(people, cases))
        figures["health_while_logging_in"] = rounded(health)
        figures["memory_mb"] = rounded(memory)
    figures["jobs"] = rounded(_jobs(extent))
    figures["make_run"] = rounded(seconds_to_first_answer())
    return figures


def _needs_uncached(cases: tuple[Case, ...]) -> bool:
    return not all(case.cached for case in cases)


def _jobs(extent: Extent) -> dict[str, float | None]:
    """On services of their own: no job that was enqueued before is among them."""
    with services():
        from bench import jobs  # reads its settings from the environment that is there by now

        return asyncio.run(
            jobs.measure(extent.jobs, extent.backlog, starts=extent.starts, memory_seconds=extent.watched)
        )


def console() -> int:
    """What the console's pages take, printed by `bench.console`. Returns its exit status."""
    return subprocess.run([BIN / "python", "-m", "bench.console"], check=False).returncode
