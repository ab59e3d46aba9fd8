"""What the limiter does, in Prometheus' words."""

from heapq import nlargest
from typing import Final, NamedTuple

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


MOST_SUBJECTS: Final = 10_000  # that are noted between two looks, of all rules together


class Subject(NamedTuple):
    """How often a subject, such as `user:5` or `address:10.0.0.0/24`, has asked, and how often it was one too many."""

    subject: str
    calls: int
    refused: int


class Subjects:
    """Who has asked under which rule since somebody last looked. Forgets whom it first hears of when it is full."""

    def __init__(self) -> None:
        self._by_rule: dict[str, dict[str, list[int]]] = {}
        self._room = MOST_SUBJECTS

    def note(self, rule_key: str, subject: str, *, refused: bool) -> None:
        """One request more."""
        try:
            counts = self._by_rule[rule_key][subject]
        except KeyError:
            if not self._room:
                return
            self._room -= 1
            counts = self._by_rule.setdefault(rule_key, {})[subject] = [0, 0]
        counts[0] += 1
        if refused:
            counts[1] += 1

    def take(self, most: int) -> dict[str, list[Subject]]:
        """The busiest of each rule's key, busiest first; then it begins anew."""
        by_rule, self._by_rule = self._by_rule, {}
        self._room = MOST_SUBJECTS
        return {
            rule_key: [Subject(name, *counts) for name, counts in nlargest(most, found.items(), key=_calls)]
            for rule_key, found in by_rule.items()
        }


def _calls(found: tuple[str, list[int]]) -> int:
    return found[1][0]
