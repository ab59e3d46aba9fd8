"""Limits now: who uses up which rule, and what was refused in the last hour."""

import asyncio
from dataclasses import dataclass
from typing import Final

from sqlmodel import col, select
from starlette.requests import Request
from starlette.responses import Response
from starlette_admin.routing import route

from app.admin.plots import Plot, Series, tone_of
from app.admin.views.away import unless_away
from app.admin.views.base import ConsolePage, app_of, session_of
from app.core.config import RateLimitMode
from app.core.db.models import utc_now
from app.core.metrics.recent import Hour, LimitCounts, Recent, Subject
from app.core.schemas import MAX_ID
from app.core.utils.rate_limit import Limiter
from app.core.utils.rate_limit.limiter import Usage
from app.core.utils.rate_limit.rules import Rule
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User

MOST_RULES: Final = 100
MOST_SUBJECTS: Final = 5  # of a rule
MOST_PATHS: Final = 7  # in the plot; the others are one


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who has asked under a rule in the last one or two minutes.

    Attributes:
        name: a user's name, or an address.
        user_id: None for an address.
        usages: how they stand with each window.
    """

    name: str
    user_id: int | None
    calls: int
    refused: int
    usages: list[Usage]


@dataclass(frozen=True, slots=True)
class RuleNow:
    """A rule with who uses it most.

    Attributes:
        tier: None: the default rule.
        limits: each window in words.
    """

    tier: str | None
    rule: Rule
    callers: list[Caller]

    @property
    def limits(self) -> str:
        """Each window in words."""
        return ", ".join(f"{window.limit:,} per {window.period:,} s" for window in self.rule.windows)


class LimitsPage(ConsolePage):
    """The rules as they are in force, with their busiest callers."""

    menu_label = "Limits now"
    icon = "fa-solid fa-traffic-light"
    path = "/limits"
    route_name = "limits"

    @route("")
    async def index(self, request: Request) -> Response:
        """How it is now: two statements, and two round trips however many rules there are."""
        limiter: Limiter = app_of(request).state.rate_limiter
        tiers = await _tiers_with_rules(request)
        rules = _rules(limiter, tiers)
        hour, busiest = await _recently(app_of(request).state.recent, rules)
        values = {
            "mode": limiter.mode.value,
            "is_off": limiter.mode is RateLimitMode.OFF,
            "is_shadow": limiter.mode is RateLimitMode.SHADOW,
            "is_shared": limiter.link.up,
            "is_known": hour is not None,
            "plot_of_refused": _refused_by_path(hour) if hour else None,
            "paths": _by_path(hour) if hour else {},
            "rules": await _with_callers(request, limiter, tiers, rules, busiest),
            "most_rules": MOST_RULES,
            "is_cut": len(rules) == MOST_RULES,
            "now": utc_now(),
        }
        return self.page(request, "limits.html", values)


async def _tiers_with_rules(request: Request) -> dict[int, str]:
    query = select(Tier.id, Tier.name).where(col(Tier.id).in_(select(RateLimit.tier_id))).order_by(Tier.name)
    return {tier_id: name for tier_id, name in await session_of(request).exec(query.limit(MOST_RULES)) if tier_id}


def _rules(limiter: Limiter, tiers: dict[int, str]) -> list[Rule]:
    """As this process has them in force: the tiers' by name and path, then the default."""
    mine = [rule for tier_id in tiers for rule in limiter.rules.all_of(tier_id) if rule.tier_id == tier_id]
    return [*mine[: MOST_RULES - 1], *limiter.rules.all_of(None)]


async def _recently(recent: Recent | None, rules: list[Rule]) -> tuple[Hour | None, list[list[Subject]]]:
    """The last hour and each rule's busiest subjects; None and nobody while Redis/Valkey is away."""
    nothing: tuple[Hour | None, list[list[Subject]]] = None, [[] for _ in rules]
    return nothing if recent is None else await unless_away(_answers(recent, rules)) or nothing


async def _answers(recent: Recent, rules: list[Rule]) -> tuple[Hour, list[list[Subject]]]:
    busiest = asyncio.gather(*(recent.busiest(rule.tier_id, rule.path, MOST_SUBJECTS) for rule in rules))
    return await asyncio.gather(recent.last_hour(), busiest)


async def _with_callers(
    request: Request, limiter: Limiter, tiers: dict[int, str], rules: list[Rule], busiest: list[list[Subject]]
) -> list[RuleNow]:
    pairs = [(rule, subject) for rule, subjects in zip(rules, busiest, strict=True) for subject in subjects]
    usages = await asyncio.gather(*(limiter.usage_of(subject.subject, rule) for rule, subject in pairs))
    names = await _names(request, {user_id for _, subject in pairs if (user_id := _user_id(subject)) is not None})
    callers: dict[str, list[Caller]] = {}
    for (rule, subject), usage in zip(pairs, usages, strict=True):
        user_id = _user_id(subject)
        name = subject.subject.partition(":")[2] if user_id is None else names.get(user_id, f"user {user_id}")
        callers.setdefault(rule.key, []).append(Caller(name, user_id, subject.calls, subject.refused, usage))
    found = [
        RuleNow(tiers[rule.tier_id] if rule.tier_id is not None else None, rule, callers.get(rule.key, []))
        for rule in rules
    ]
    return sorted(found, key=lambda one: not one.callers)  # Those in use first.


def _user_id(subject: Subject) -> int | None:
    kind, _, rest = subject.subject.partition(":")
    return int(rest) if kind == "user" and rest.isdecimal() and int(rest) <= MAX_ID else None


async def _names(request: Request, ids: set[int]) -> dict[int, str]:
    if not ids:
        return {}
    query = select(User.id, User.username).where(col(User.id).in_(ids))
    return {user_id: name for user_id, name in await session_of(request).exec(query) if user_id is not None}


def _by_path(hour: Hour) -> dict[str, LimitCounts]:
    counts = hour.last(len(hour.minutes)).limits
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1].refused, -pair[1].allowed, pair[0])))


def _refused_by_path(hour: Hour) -> Plot:
    """The paths with most refused calls, and all others as one."""
    paths = [path for path, counts in _by_path(hour).items() if counts.refused]
    series = [
        Series(path, [_refused(minute.limits.get(path)) for minute in hour.minutes], tone_of(n))
        for n, path in enumerate(paths[:MOST_PATHS])
    ]
    if others := paths[MOST_PATHS:]:
        values = [sum(_refused(minute.limits.get(path)) for path in others) for minute in hour.minutes]
        series.append(Series(f"{len(others)} others", values, "gray"))
    none = Series("none refused", [0] * len(hour.minutes), "gray")
    return Plot(
        "Refused calls by path", "per minute", series or [none], [minute.start for minute in hour.minutes], True
    )


def _refused(counts: LimitCounts | None) -> int:
    return counts.refused if counts is not None else 0
