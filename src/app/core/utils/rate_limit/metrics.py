"""What the limiter does, in Prometheus' words."""

from typing import Final

from prometheus_client import Counter, Gauge

REQUESTS: Final = Counter(
    "slipway_rate_limit_requests",
    "Requests by the path of the rule that applied, and what became of them: allowed, refused, or would_refuse in "
    "shadow mode. Counted in: redis, or process while that is away.",
    ["path", "result", "counted_in"],
)
IN_PROCESS: Final = Gauge(
    "slipway_rate_limit_in_process",
    "1 while requests are counted in this process, since Redis/Valkey cannot.",
    multiprocess_mode="livemax",
)
PROCESSES: Final = Gauge(
    "slipway_rate_limit_processes",
    "Processes that share the limits, as last heard: each has its part in an outage.",
    multiprocess_mode="livemostrecent",
)
RULES_FAILED: Final = Counter("slipway_rate_limit_rules_failed", "Times that the rules could not be read.")


class Meter:
    """The metrics of one rule's path, looked up once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._counters: dict[tuple[str, bool], Counter] = {}

    def count(self, result: str, *, in_process: bool) -> None:
        """One request more."""
        counter = self._counters.get((result, in_process))
        if counter is None:
            counter = REQUESTS.labels(self._path, result, "process" if in_process else "redis")
            self._counters[result, in_process] = counter
        counter.inc()
