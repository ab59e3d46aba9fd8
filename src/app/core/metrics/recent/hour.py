"""The last hour as it is read."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from math import inf
from typing import Final

from app.core.metrics import http

BOUNDS: Final[tuple[float, ...]] = tuple(http.SECONDS._upper_bounds)


@dataclass(slots=True)
class CacheCounts:
    """Requests to cached routes of one key prefix, or of all."""

    hits: int = 0
    misses: int = 0
    stale: int = 0
    bypass: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """The share that the cache has answered, of those for which it could be asked; None when there was none."""
        asked = self.hits + self.stale + self.misses
        return (self.hits + self.stale) / asked if asked else None


@dataclass(slots=True)
class LimitCounts:
    """Requests under the rules of one path, or of all; `would_refuse` in shadow mode."""

    allowed: int = 0
    refused: int = 0
    would_refuse: int = 0


_CACHE: Final = {"hit": "hits", "miss": "misses", "stale": "stale", "bypass": "bypass"}
_LIMIT: Final = ("allowed", "refused", "would_refuse")


@dataclass(slots=True)
class Totals:
    """What was counted in some time.

    Attributes:
        requests: to routes of the API.
        errors: of these, answers of 500 and above; without those of `/ready`, which are about something else.
        unrouted, unrouted_errors: the same of what is no route of the API: paths that nobody knows, and the console.
        seconds: that all timed requests together took: not those to routes that last as long as somebody likes.
        buckets: timed requests by the least bound, in seconds, that they did not exceed.
        caches: by key prefix.
        limits: by the path of the rule that applied.
    """

    requests: int = 0
    errors: int = 0
    unrouted: int = 0
    unrouted_errors: int = 0
    seconds: float = 0.0
    buckets: dict[float, int] = field(default_factory=dict)
    caches: dict[str, CacheCounts] = field(default_factory=dict)
    limits: dict[str, LimitCounts] = field(default_factory=dict)

    @property
    def error_share(self) -> float | None:
        """The share of requests that failed, 0 to 1; None when there was none."""
        return self.errors / self.requests if self.requests else None

    @property
    def timed(self) -> int:
        """The requests of which it counts how long they took."""
        return sum(self.buckets.values())

    @property
    def mean(self) -> float | None:
        """Seconds that a timed request took."""
        return self.seconds / self.timed if self.timed else None

    @property
    def p50(self) -> float | None:
        """Seconds within which half of the timed requests were answered."""
        return quantile(0.5, self.buckets)

    @property
    def p95(self) -> float | None:
        """Seconds within which 95 % of the timed requests were answered."""
        return quantile(0.95, self.buckets)

    @property
    def cache(self) -> CacheCounts:
        """Of all prefixes."""
        whole = CacheCounts()
        for counts in self.caches.values():
            _increase(whole, counts, _CACHE.values())
        return whole

    @property
    def limit(self) -> LimitCounts:
        """Of all paths."""
        whole = LimitCounts()
        for counts in self.limits.values():
            _increase(whole, counts, _LIMIT)
        return whole

    @property
    def hit_ratio(self) -> float | None:
        """Of all prefixes."""
        return self.cache.hit_ratio

    @property
    def refused(self) -> int:
        """Of all paths; without what only would have been."""
        return self.limit.refused

    def add(self, other: "Totals") -> None:
        """Takes in what was counted at another time."""
        _increase(self, other, ("requests", "errors", "unrouted", "unrouted_errors", "seconds"))
        for bound, count in other.buckets.items():
            self.buckets[bound] = self.buckets.get(bound, 0) + count
        for prefix, counts in other.caches.items():
            _increase(self.caches.setdefault(prefix, CacheCounts()), counts, _CACHE.values())
        for path, limited in other.limits.items():
            _increase(self.limits.setdefault(path, LimitCounts()), limited, _LIMIT)


def _increase(one: object, other: object, names: Iterable[str]) -> None:
    for name in names:
        setattr(one, name, getattr(one, name) + getattr(other, name))


@dataclass(slots=True)
class Minute(Totals):
    """One minute.

    Attributes:
        start: when it began, by the clock of Redis/Valkey.
    """

    start: datetime = field(kw_only=True)

    @classmethod
    def of(cls, minute: int, reply: Sequence[bytes]) -> "Minute":
        """From a minute's number since 1970, and its hash as HGETALL tells it. What is not known here is left out."""
        found = cls(start=datetime.fromtimestamp(minute * 60, UTC))
        for name, value in zip(reply[::2], reply[1::2], strict=True):
            found._set(name.decode(), int(value))
        return found

    def _set(self, name: str, value: int) -> None:
        kind, _, rest = name.partition(":")
        if kind in {"requests", "errors", "unrouted", "unrouted_errors"}:
            setattr(self, kind, value)
        elif kind == "microseconds":
            self.seconds = value / 1_000_000
        elif kind == "le":
            self.buckets[float(rest)] = value
        elif kind == "cache" and (cached := rest.partition(":"))[0] in _CACHE:
            setattr(self.caches.setdefault(cached[2], CacheCounts()), _CACHE[cached[0]], value)
        elif kind == "limit" and (limited := rest.partition(":"))[0] in _LIMIT:
            setattr(self.limits.setdefault(limited[2], LimitCounts()), limited[0], value)


@dataclass(frozen=True, slots=True)
class Hour:
    """60 minutes, the oldest first; the last one is not over yet."""

    minutes: tuple[Minute, ...]

    def last(self, minutes: int = 5) -> Totals:
        """The sum of the last of them, with the one that is not over."""
        whole = Totals()
        for minute in self.minutes[-minutes:]:
            whole.add(minute)
        return whole

    @property
    def prefixes(self) -> list[str]:
        """All key prefixes of cached routes that were asked for, sorted."""
        return sorted({prefix for minute in self.minutes for prefix in minute.caches})

    @property
    def paths(self) -> list[str]:
        """All paths of rules that applied, sorted."""
        return sorted({path for minute in self.minutes for path in minute.limits})


def quantile(share: float, buckets: Mapping[float, int]) -> float | None:
    """The seconds within which this share of requests was answered, as Prometheus' `histogram_quantile` has them.

    Between the bounds of the bucket in which that is, requests are taken to be spread evenly. Above the highest, it is
    that one.

    Args:
        share: above 0, up to 1.
        buckets: requests by their upper bound in seconds, each counted in one bucket only.

    Returns: None when there were no requests.
    """
    bounds = sorted({*BOUNDS, *buckets})
    within = list(accumulate(buckets.get(bound, 0) for bound in bounds))
    rank = share * within[-1]
    if not rank:
        return None
    index = bisect_left(within, rank)
    lower, upper = (bounds[index - 1] if index else 0.0), bounds[index]
    if upper == inf:
        return lower
    return lower + (upper - lower) * (1 - (within[index] - rank) / buckets[upper])
