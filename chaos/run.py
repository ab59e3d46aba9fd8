"""One fault after the other under a steady load, and what is to be said of each."""

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.deployment import Deployment, deployed
from chaos.faults import Injection, inject
from chaos.journal import Journal, Span
from chaos.load import Load
from chaos.orders import NEVER, Order, all_orders, of_faults, until_done
from chaos.outages import is_allowed, joined, outages, over_limit, overlap
from chaos.recovery import Looking, looking
from chaos.report import FaultReport
from chaos.world import LIMIT, PERIOD, create_world

PAUSE: Final = 2.0  # seconds between a recovery and the next fault
EXAMPLES: Final = 12


@dataclass(frozen=True)
class Episode:
    """A fault that is over, on `time.monotonic()`; `well` is None when it did not become so."""

    injection: Injection
    began: float
    ended: float
    well: float | None
    writes_lost: int


async def run(injections: Sequence[Injection], seconds: float, logs: Path | None = None) -> list[FaultReport]:
    """Deploys, injects and looks.

    Args:
        injections: one after the other.
        seconds: that each lasts at least.
        logs: where the logs of all processes are copied to at the end, if anywhere.

    Returns: a report for each fault, in order. Raises: AssertionError, ServiceError.
    """
    journal = Journal()
    async with deployed() as deployment:
        world = await create_world(deployment.nginx.url, deployment.admin)
        load = Load(world, journal)
        async with looking(deployment, load) as looks:
            async with load.running():
                _say("all runs")
                if await looks.until_well() is None:
                    raise AssertionError("It was not well before the first fault.")
                episodes = [await _episode(one, deployment, looks, seconds) for one in injections]
            over = time.monotonic()
            await until_done(deployment)
            orders = await all_orders(deployment, journal.orders)
            if logs is not None:
                _copy_logs(deployment, logs)
            without = joined(span for server in deployment.servers for span in outages(server.log))
    begins = [episode.began for episode in episodes]
    seen = Seen(journal, without, over_limit(journal, without, LIMIT, PERIOD))
    met = of_faults(orders, begins)
    return [_report(*one, seen) for one in zip(episodes, [*begins[1:], over], met, strict=True)]


async def _episode(injection: Injection, deployment: Deployment, looks: Looking, seconds: float) -> Episode:
    """One fault, and the time in which everything is to be well again."""
    _say(injection.what)
    began, ended = await inject(injection, deployment, seconds)
    well = await looks.until_well()
    await asyncio.sleep(PAUSE)
    lost = await looks.lost_writes()
    return Episode(injection, began, ended, well, lost)


# ---- Reporting ----


@dataclass(frozen=True)
class Seen:
    """Of the whole run: when a server was without Valkey, and when a request was let through beyond the limit."""

    journal: Journal
    without: list[Span]
    beyond: list[float]


def _report(episode: Episode, end: float, orders: list[Order], seen: Seen) -> FaultReport:
    began, ended = episode.began, episode.ended
    journal, without = seen.journal, seen.without
    asked = journal.between(began, end)
    failed = journal.failures(began, end)
    last_failures = [one.came for one in failed if one.sent >= ended]
    well = None if episode.well is None else max([episode.well, *last_failures]) - ended
    stale = [one for one in journal.stale if began <= one.asked < end]
    lagging = [one for one in stale if is_allowed(one, without)]
    forgotten = sum(began <= when < end for when in journal.forgotten)
    examples = Counter(f"{one.kind}: {one.outcome} {one.words}" for one in failed)
    examples.update(f"{one.what}: {one.version} {one.age:.2f} s after {one.acknowledged} was said" for one in stale)
    return FaultReport(
        name=episode.injection.name,
        what=episode.injection.what,
        seconds=ended - began,
        asked=len(asked),
        failures=dict(Counter(one.outcome for one in failed)),
        longest=max((one.came - one.sent for one in asked), default=0.0),
        well_after=well,
        jobs=len(orders),
        slowest_job=max((order.done - order.since for order in orders if order.done < NEVER), default=0.0),
        jobs_lost=sum(not order.times for order in orders),
        jobs_twice=sum(order.times > 1 for order in orders),
        writes_lost=episode.writes_lost + forgotten,
        stale=len(stale) - len(lagging),
        lagging=len(lagging),
        over_limit=sum(began <= moment < end for moment in seen.beyond),
        without_valkey=overlap(without, began, end),
        examples=dict(examples.most_common(EXAMPLES)),
    )


def _copy_logs(deployment: Deployment, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for folder, prefix in ((deployment.folder, ""), (deployment.nginx.folder, "nginx-")):
        for log in folder.glob("*.log"):
            shutil.copy(log, to / f"{prefix}{log.name}")


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)
