"""The rules, compiled: which one applies to a tier's callers on a route is a few look-ups in memory."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import text

from app.core.config import DefaultRateLimitSettings, SettingsGroup
from app.core.db.database import reading
from app.core.utils.rate_limit.metrics import Meter

EVERY_PATH: Final = "*"
PREFIX: Final = b"rate"
_CONVERTOR: Final = re.compile(r":[a-zA-Z_][a-zA-Z0-9_]*}")  # of a path parameter, as in {id:int}

# Not through `app.models`: core points down only, and whoever leaves our models out has no such table.
_RULES = text('SELECT tier_id, name, path, "limit", period, additional_windows FROM rate_limit ORDER BY id')
# Changes whenever any of them does, by whatever hand.
FINGERPRINT = text("SELECT md5(coalesce(string_agg(rate_limit::text, chr(10) ORDER BY id), '')) FROM rate_limit")


@dataclass(frozen=True, slots=True)
class Window:
    """So many requests in any so many seconds."""

    limit: int
    period: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, with all that a request needs of it made once.

    Attributes:
        name: what its administrators call it.
        path: a route template, a method and a template (`POST /api/v1/tier`), or `*` for all routes without a rule of
            their own. Names the bucket.
        windows: all of them have to have room.
        tier_id: the tier it belongs to; None: it is the default.
        key: tells it from all others.
        suffixes: of the keys: the list of periods, then two for each window.
        arguments: what the script takes beside the keys: the periods, the number of windows, and the limit and the
            period in microseconds of each.
        policies: the windows' names in the `RateLimit` headers.
        policy_header: the whole `RateLimit-Policy`.
        meter: its metrics.
    """

    name: str
    path: str
    windows: tuple[Window, ...]
    tier_id: int | None = field(default=None, compare=False)
    key: str = field(init=False, compare=False)
    suffixes: tuple[bytes, ...] = field(init=False)
    arguments: tuple[int | str, ...] = field(init=False)
    policies: tuple[bytes, ...] = field(init=False)
    policy_header: bytes = field(init=False)
    meter: Meter = field(init=False, compare=False)

    def __post_init__(self) -> None:
        bucket = canonical(self.path).encode()
        stores = [b"%b:%d" % (bucket, window.period) for window in self.windows]
        # A quoted string of RFC 9651 is printable ASCII; windows after the first are told apart by their period.
        names = [quote(self.name, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")]
        names += [f"{names[0]}-{window.period}s" for window in self.windows[1:]]
        policies = tuple(f'"{name}"'.encode() for name in names)
        items = [b"%b;q=%d;w=%d" % (name, *_pair(window)) for name, window in zip(policies, self.windows, strict=True)]
        for name, value in (
            ("key", rule_key(self.tier_id, self.path)),
            ("suffixes", (bucket + b":periods", *(store + form for store in stores for form in (b":log", b":sub")))),
            ("arguments", _arguments(self.windows)),
            ("policies", policies),
            ("policy_header", b", ".join(items)),
            ("meter", Meter(self.path)),
        ):
            object.__setattr__(self, name, value)

    def keys(self, subject: str) -> tuple[bytes, ...]:
        """The keys of a subject under this rule. The subject is their hash tag: a cluster keeps them together."""
        prefix = b"%b:{%b}:" % (PREFIX, subject.encode())
        return tuple([prefix + suffix for suffix in self.suffixes])


def _pair(window: Window) -> tuple[int, int]:
    return window.limit, window.period


def _arguments(windows: tuple[Window, ...]) -> tuple[int | str, ...]:
    periods = " ".join(str(window.period) for window in windows)
    return periods, len(windows), *(n for window in windows for n in (window.limit, window.period * 1_000_000))


@lru_cache(maxsize=4096)
def canonical(path: str) -> str:
    """Return what a rule's path is compared by: as documented, but that a slash at the end does not count."""
    method, space, template = as_documented(path).rpartition(" ")
    return f"{method}{space}{template.rstrip('/') or '/'}"


def as_documented(path: str) -> str:
    """Return a rule's path as OpenAPI spells it.

    Without convertors (`/file/{path:path}` is `/file/{path}`), and with a method, if there is one, in capitals and one
    space after it.
    """
    method, _, template = path.rpartition(" ")
    template = _CONVERTOR.sub("}", template)
    return f"{method.strip().upper()} {template}" if method else template


def rule_key(tier_id: int | None, path: str) -> str:
    """What a rule of a tier, or without one the default, is called where it is told from all others."""
    return f"{'default' if tier_id is None else tier_id}:{canonical(path)}"


class Rules:
    """All rules at one moment."""

    def __init__(self, of_tiers: Mapping[int, Iterable[Rule]], default: Rule | None) -> None:
        """
        Args:
            of_tiers: each tier's rules.
            default: for callers without a tier, and for what no rule of a tier names. None: no limit.
        """
        self._default = default
        self._of_tiers = {tier: {canonical(rule.path): rule for rule in rules} for tier, rules in of_tiers.items()}

    def find(self, tier_id: int | None, path: str, method: str = "") -> Rule | None:
        """Return the rule for a route, the most exact one of the tier, else the default.

        A rule for the method and the template comes before one for the template, and that before one for every path.

        Args:
            tier_id: the caller's tier, if it has one.
            path: the route's template, as `canonical` spells it.
            method: the request's method, in capitals; "" where there is none.
        """
        mine = self._of_tiers.get(tier_id) if tier_id is not None else None
        if mine is None:
            return self._default
        return mine.get(f"{method} {path}") or mine.get(path) or mine.get(EVERY_PATH) or self._default

    def all_of(self, tier_id: int | None) -> list[Rule]:
        """Every rule that can apply to callers of this tier."""
        mine = self._of_tiers.get(tier_id, {}) if tier_id is not None else {}
        default = [] if self._default is None or EVERY_PATH in mine else [self._default]
        return [*(mine[path] for path in sorted(mine)), *default]


def default_rule(settings: SettingsGroup) -> Rule | None:
    """The rule of `DefaultRateLimitSettings`, when the settings have them."""
    if not isinstance(settings, DefaultRateLimitSettings):
        return None
    window = Window(settings.DEFAULT_RATE_LIMIT_LIMIT, settings.DEFAULT_RATE_LIMIT_PERIOD)
    return Rule("default", EVERY_PATH, (window,))


async def load_rules(default: Rule | None) -> Rules:
    """The rules in the database. Raises: DatabaseUnavailable, and what PostgreSQL says when there is no such table."""
    async with reading() as db:
        rows = (await (await db.connection()).execute(_RULES)).all()
    of_tiers: dict[int, list[Rule]] = {}
    for tier_id, name, path, limit, period, more in rows:
        windows = [Window(limit, period), *(Window(**window) for window in _decoded(more))]
        of_tiers.setdefault(tier_id, []).append(Rule(name, path, _distinct(windows), tier_id))
    return Rules(of_tiers, default)


async def fingerprint() -> str:
    """What changes when the rules in the database do."""
    async with reading() as db:
        return str(await (await db.connection()).scalar(FINGERPRINT))


def _distinct(windows: list[Window]) -> tuple[Window, ...]:
    """Of windows of the same period, which would count as one, the strictest."""
    strictest: dict[int, Window] = {}
    for window in windows:
        strictest[window.period] = min(window, strictest.get(window.period, window), key=lambda one: one.limit)
    return tuple(strictest.values())


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value  # Without a type, asyncpg leaves JSON as it is.
