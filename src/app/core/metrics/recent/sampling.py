"""What this process has counted since the last look at its own metrics."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import prometheus_client as prometheus

from app.core.metrics import http
from app.core.utils.cache import metrics as cache
from app.core.utils.rate_limit import metrics as rate_limit

# What a process tells apart at most; what comes after these is counted together.
MOST_ROUTES: Final = 200
MOST_PREFIXES: Final = 100
MOST_PATHS: Final = 100
OTHER: Final = "other"


@dataclass(frozen=True)
class Metrics:
    """Where it is counted."""

    requests: prometheus.Counter = http.REQUESTS
    seconds: prometheus.Histogram = http.SECONDS
    cache: prometheus.Counter = cache.REQUESTS
    limits: prometheus.Counter = rate_limit.REQUESTS


@dataclass
class Change:
    """What is to be added to the fields of a minute's hashes."""

    totals: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Change") -> None:
        """Takes in what has come after it."""
        self.totals.update(other.totals)
        self.routes.update(other.routes)

    def __bool__(self) -> bool:
        return bool(self.totals or self.routes)


class Sampler:
    """Looks at the metrics as objects: where they are in files for all processes, too, these have this one's counts."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._seen: dict[Any, float] = {}
        self._routes, self._prefixes, self._paths = _Names(MOST_ROUTES), _Names(MOST_PREFIXES), _Names(MOST_PATHS)

    def look(self) -> Change:
        """What has been counted since the last look; the first time, since the start."""
        change = Change()
        self._look_at_requests(change)
        self._look_at_seconds(change)
        for (prefix, result), counter in _children(self._metrics.cache):
            if more := self._more(counter._value):
                change.totals[f"cache:{result}:{self._prefixes.of(prefix)}"] += round(more)
        for (path, result, _), counter in _children(self._metrics.limits):
            if more := self._more(counter._value):
                change.totals[f"limit:{result}:{self._paths.of(path)}"] += round(more)
        return change

    def _look_at_requests(self, change: Change) -> None:
        """Of what has no route, which may be anything, the console's own requests too, there is only the number."""
        for (_, route, status), counter in _children(self._metrics.requests):
            if not (more := round(self._more(counter._value))):
                continue
            is_error = status.startswith("5")
            if route == http.NO_ROUTE:
                change.totals["unrouted"] += more
                if is_error:
                    change.totals["unrouted_errors"] += more
                continue
            name = self._routes.of(route)
            change.totals["requests"] += more
            change.routes[f"requests:{name}"] += more
            if is_error:
                change.routes[f"errors:{name}"] += more
                if http.can_fail(route):
                    change.totals["errors"] += more

    def _look_at_seconds(self, change: Change) -> None:
        """What all routes have taken together leaves out those whose times say nothing."""
        for (_, route), histogram in _children(self._metrics.seconds):
            if route == http.NO_ROUTE or not (seconds := self._more(histogram._sum)):
                continue
            microseconds = round(seconds * 1_000_000)
            change.routes[f"microseconds:{self._routes.of(route)}"] += microseconds
            if not http.is_timed(route):
                continue
            change.totals["microseconds"] += microseconds
            for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
                if more := self._more(bucket):
                    change.totals[f"le:{bound}"] += round(more)

    def _more(self, value: Any) -> float:
        now: float = value.get()
        before = self._seen.get(value, 0.0)
        if now == before:
            return 0.0
        self._seen[value] = now
        return now - before if now > before else now  # It begins anew in a process that was forked off.


class _Names:
    """Not more than so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """This name, or the one for all that are too many."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


def _children(metric: Any) -> Iterator[tuple[Any, Any]]:
    """By the values of their labels. `collect()` makes an object of every number, also where nothing has changed."""
    with metric._lock:
        children = list(metric._metrics.items())
    return iter(children)
