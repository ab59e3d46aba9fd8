"""What is asked over HTTP, in Prometheus' words."""

import re
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter(
    "slipway_http_requests",
    "Requests by method, route (the template; none where there is no such route) and status (aborted: no answer).",
    ["method", "route", "status"],
)
SECONDS: Final = Histogram(
    "slipway_http_request_seconds",
    "How long answers took, to their last byte.",
    ["method", "route"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IN_FLIGHT: Final = Gauge(
    "slipway_http_requests_in_flight", "Requests that are not answered in full yet.", multiprocess_mode="livesum"
)

NO_ROUTE: Final = "none"
ABORTED: Final = "aborted"
OTHER_METHOD: Final = "other"

# Routes that say nothing about how well the app does, as deploy/monitoring/alerts.yml has them: answers that last as
# long as a job, or each time look at everything; and the ones that are errors when something else is not well.
UNTIMED: Final = ".*/events|/metrics"
NEVER_FAILED: Final = ".*/ready"

_UNTIMED: Final = re.compile(UNTIMED)
_NEVER_FAILED: Final = re.compile(NEVER_FAILED)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_kept: dict[tuple[str, str | None, int], tuple[Counter, Histogram]] = {}


def is_timed(route: str) -> bool:
    """Whether it counts how long this route's answers take."""
    return _UNTIMED.fullmatch(route) is None


def can_fail(route: str) -> bool:
    """Whether this route's errors are errors of the app."""
    return _NEVER_FAILED.fullmatch(route) is None


def count_request(method: str, route: str | None, status: int, seconds: float) -> None:
    """One request more.

    Args:
        method: of any name: those that nobody knows are counted together, since a caller may think of many.
        route: the template of its path, if there is one.
        status: 0 when nothing was answered.
        seconds: how long it took.
    """
    kept = _kept.get((method, route, status))
    if kept is None:
        kept = _look_up(method, route, status)
    kept[0].inc()
    kept[1].observe(seconds)


def _look_up(method: str, route: str | None, status: int) -> tuple[Counter, Histogram]:
    """The two metrics, which are kept: a look-up by labels takes longer than to count."""
    name = method if method in _METHODS else OTHER_METHOD
    labels = name, route or NO_ROUTE
    found = REQUESTS.labels(*labels, str(status) if status else ABORTED), SECONDS.labels(*labels)
    if name == method:
        _kept[method, route, status] = found
    return found
