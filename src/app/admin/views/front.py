"""The front page: whether the system is well, at a glance."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette_admin.routing import route

from app.admin.figures import duration, figure
from app.admin.plots import Plot, Series, in_percent
from app.admin.views.away import unless_away
from app.admin.views.base import ConsolePage, app_of, session_of
from app.admin.views.job_plots import plots_of
from app.admin.wellness import MINUTES, Facts, faults_in, name_of
from app.core.config import RedisQueueSettings
from app.core.db.models import utc_now
from app.core.metrics.readiness import LOOK_SECONDS
from app.core.metrics.recent import Hour
from app.core.readiness import Dependency, State, states_of
from app.core.utils.queue import WorkerSeen, living_workers
from app.core.utils.queue.sending import current_transport
from app.crud.crud_job_statistics import JobCounts, JobMinute, count_by_status, last_hour


class Tile(NamedTuple):
    """A number with what it is, and what it is about."""

    name: str
    value: str
    hint: str


class Seen(NamedTuple):
    """What the page is made of. None: not known now, or the app has no such thing."""

    states: dict[str, State]
    hour: Hour | None
    workers: list[WorkerSeen] | None
    counts: JobCounts | None
    jobs: list[JobMinute] | None


class FrontPage(ConsolePage):
    """The state of everything: of all processes where Redis/Valkey tells it, else of this one."""

    menu_label = "Overview"
    icon = "fa-solid fa-gauge-high"
    path = "/"
    route_name = "index"

    @route("")
    async def index(self, request: Request) -> Response:
        """How it is now."""
        seen = await _look(request)
        facts = _facts(request, seen)
        values = {
            "faults": faults_in(facts),
            "tiles": _tiles(seen, facts),
            "plots": [*(_plots(seen.hour) if seen.hour else ()), *(plots_of(seen.jobs)[:1] if seen.jobs else ())],
            "states": {name_of(name): state for name, state in seen.states.items()},
            "is_known": seen.hour is not None,
            "now": utc_now(),
        }
        return self.page(request, "front.html", values)


async def _look(request: Request) -> Seen:
    """Asks everybody at once: two round trips and three statements."""
    state = app_of(request).state
    has_queue = isinstance(state.settings, RedisQueueSettings)
    states, hour, workers, jobs = await asyncio.gather(
        states_of([_quick(one) for one in state.dependencies], LOOK_SECONDS),
        unless_away(state.recent.last_hour()) if state.recent is not None else _nothing(),
        unless_away(living_workers(current_transport().link)) if has_queue else _nothing(),
        _jobs(request) if has_queue else _nothing(),
    )
    return Seen(states, hour, workers, *(jobs or (None, None)))


async def _jobs(request: Request) -> tuple[JobCounts, list[JobMinute]]:
    db = session_of(request)
    return await count_by_status(db), await last_hour(db)


def _quick(dependency: Dependency) -> Dependency:
    """The job queue's own connections wait for a server that hangs; the link to it finds out at once."""
    return replace(dependency, check=_ping_queue) if dependency.name == "redis_queue" else dependency


async def _ping_queue() -> None:
    await current_transport().link.send("PING")


async def _nothing() -> None:
    return None


def _facts(request: Request, seen: Seen) -> Facts:
    state = app_of(request).state
    cache, limiter = getattr(state, "cache", None), getattr(state, "rate_limiter", None)
    return Facts(
        states=seen.states,
        totals=seen.hour.last(MINUTES) if seen.hour else None,
        queue_age=max(seen.counts.oldest_due.values(), default=0.0) if seen.counts else None,
        dead=sum(minute.dead for minute in seen.jobs) if seen.jobs else None,
        workers=seen.workers,
        cache_usable=cache.usable if cache is not None else None,
        limits_shared=limiter.link.up if limiter is not None else None,
    )


def _tiles(seen: Seen, facts: Facts) -> list[Tile]:
    tiles, recently = [], f"last {MINUTES} minutes"
    if (totals := facts.totals) is not None and seen.hour is not None:
        over = min(1.0, max(0.0, (utc_now() - seen.hour.minutes[-1].start).total_seconds() / 60))
        tiles += [
            Tile("Requests per minute", figure(totals.requests / (MINUTES - 1 + over)), recently),
            Tile("Failed requests", _percent(totals.error_share), recently),
            Tile("Latency p50 / p95", f"{_ms(totals.p50)} / {_ms(totals.p95)} ms", recently),
            Tile("Cache hit ratio", _percent(totals.hit_ratio), recently),
            Tile("Refused calls", figure(totals.refused), recently),
        ]
    if facts.queue_age is not None:
        tiles.append(
            Tile("Oldest due job", duration(facts.queue_age) if facts.queue_age else "none", "waits for a worker")
        )
    if facts.workers is not None:
        late = len(facts.workers) - len(facts.living)
        tiles.append(
            Tile("Workers alive", figure(len(facts.living)), f"{late} not heard of" if late else "by their heartbeats")
        )
    return tiles


def _plots(hour: Hour) -> list[Plot]:
    minutes = [minute.start for minute in hour.minutes]
    answered = [minute.requests - minute.errors for minute in hour.minutes]
    errors = [minute.errors for minute in hour.minutes]
    would_refuse = [minute.limit.would_refuse for minute in hour.minutes]
    refused = [Series("refused", [minute.refused for minute in hour.minutes], "red")]
    if any(would_refuse):
        refused.append(Series("would be refused", would_refuse, "orange"))
    return [
        Plot(
            "Requests",
            "per minute",
            [Series("answered", answered, "blue"), Series("failed", errors, "red")],
            minutes,
            True,
        ),
        Plot(
            "Latency",
            "ms",
            [
                Series("p50", _thousandfold([minute.p50 for minute in hour.minutes]), "blue"),
                Series("p95", _thousandfold([minute.p95 for minute in hour.minutes]), "orange"),
            ],
            minutes,
        ),
        Plot(
            "Cache hit ratio",
            "%",
            [Series("hits", [in_percent(minute.hit_ratio) for minute in hour.minutes], "green")],
            minutes,
        ),
        Plot("Refused calls", "per minute", refused, minutes, True),
    ]


def _thousandfold(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 1000 * value for value in values]


def _percent(share: float | None) -> str:
    return "no data" if share is None else f"{figure(100 * share)} %"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else figure(1000 * seconds)
