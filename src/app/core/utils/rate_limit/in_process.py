"""Counts in this process's memory, while Redis/Valkey is away. Each process then has its part of every limit."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from time import monotonic
from typing import Final

from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import SUB_WINDOWS

MOST_SUBJECTS: Final = 10_000  # that are remembered; those who were seen last


class _Counter:
    """One window of one subject: sub-windows that leave together, as in the script."""

    def __init__(self) -> None:
        self.used = 0
        self._subs: deque[_Sub] = deque()

    def forget(self, now: float, period: int) -> None:
        while self._subs and self._subs[0].last + period <= now:  # The sum that is told to those who wait.
            self.used -= self._subs.popleft().count

    def add(self, cost: int, now: float, period: int) -> None:
        number = int(now * SUB_WINDOWS // period)
        if not self._subs or self._subs[-1].number != number:
            self._subs.append(_Sub(number, first=now, last=now))
        self._subs[-1].last = now
        self._subs[-1].count += cost
        self.used += cost

    def time_when_gone(self, count: int, period: int) -> float:
        """When so many of the oldest will have left."""
        for sub in self._subs:
            count -= sub.count
            if count <= 0:
                return sub.last + period
        return 0.0

    def continued(self, formers: list["_Counter"], now: float, period: int) -> "_Counter":
        """Return the counter of a window that is new in its rule, as the script's `carry_over` makes it.

        It holds its own earlier record and what a former window recorded since, or the record of a former window,
        whichever is more.
        """
        since = self._subs[-1].last if self._subs else -inf
        records = [
            record for former in formers for record in (former._since(-inf), [*self._subs, *former._since(since)])
        ]
        return max(
            (_Counter._of(record, now, period) for record in records), key=lambda counter: counter.used, default=self
        )

    @classmethod
    def _of(cls, record: list["_Sub"], now: float, period: int) -> "_Counter":
        counter = cls()
        for sub in record:
            if sub.last + period > now:
                counter._subs.append(replace(sub, number=int(sub.last * SUB_WINDOWS // period)))
                counter.used += sub.count
        return counter

    def _since(self, moment: float) -> list["_Sub"]:
        return [sub for sub in self._subs if sub.first > moment]


@dataclass(slots=True)
class _Sub:
    """A part of a window.

    Attributes:
        number: which part of all time it is.
        first, last: the times of its first and its last request.
    """

    number: int
    first: float
    last: float
    count: int = 0


@dataclass(slots=True)
class _Bucket:
    """What one subject did under one path.

    Attributes:
        periods: of the windows that were counted last.
        counters: by period, those of former windows included while they can tell something.
    """

    periods: tuple[int, ...] = ()
    counters: dict[int, _Counter] = field(default_factory=dict)

    def windows(self, wanted: tuple[Window, ...], now: float) -> list[tuple[_Counter, Window]]:
        """Return the counter of each window, up to date."""
        for period, counter in list(self.counters.items()):
            counter.forget(now, period)
            if not counter.used and period not in self.periods:
                del self.counters[period]
        periods = tuple(window.period for window in wanted)
        if periods != self.periods:
            formers = [self.counters[period] for period in self.periods]
            for period in periods:
                own = self.counters.get(period) or _Counter()
                self.counters[period] = own if period in self.periods else own.continued(formers, now, period)
            self.periods = periods
        return [(self.counters[window.period], window) for window in wanted]


class InProcess:
    """The limiter of an outage."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.processes = 1  # that share a limit
        self.decisions = 0  # since the start
        self._clock = clock
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    def decide(self, subject: str, rules: tuple[Rule, ...], cost: int) -> list[int]:
        """What the script would answer."""
        now = self._clock()
        self.decisions += 1
        found = [
            (counter, window, self._share(window))
            for rule in rules
            for counter, window in self._bucket(rule.keys(subject)[0]).windows(rule.windows, now)
        ]
        waits = [
            counter.time_when_gone(over, window.period) - now
            for counter, window, share in found
            if cost and (over := counter.used + min(cost, share) - share) > 0
        ]
        reply = [max(map(_microseconds, waits), default=0)]
        for counter, window, share in found:
            if cost and not waits:
                counter.add(min(cost, share), now, window.period)
            free_in = counter.time_when_gone(1, window.period) - now if counter.used else 0
            # Of the whole limit, so that what is told to callers fits the policy they know.
            used = window.limit - (share - counter.used)
            reply += [used if counter.used else 0, _microseconds(free_in)]
        return reply

    def forget(self) -> None:
        """Redis/Valkey has been counting again for long enough."""
        self._buckets.clear()

    def _share(self, window: Window) -> int:
        return max(1, window.limit // self.processes)

    def _bucket(self, key: bytes) -> _Bucket:
        bucket = self._buckets.pop(key, None) or _Bucket()
        self._buckets[key] = bucket  # It is the one seen last.
        if len(self._buckets) > MOST_SUBJECTS:
            self._buckets.popitem(last=False)
        return bucket


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000_000)) if seconds else 0
