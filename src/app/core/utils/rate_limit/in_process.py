"""Counts in this process's memory, while Redis/Valkey is away. Each process then has its part of every limit."""

from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from app.core.utils.rate_limit.rules import Rule, Window
from app.core.utils.rate_limit.script import SUB_WINDOWS

MOST_SUBJECTS: Final = 10_000  # that are remembered; those who were seen last


class _Counter:
    """One window of one subject: sub-windows that leave together, as in the script."""

    def __init__(self) -> None:
        self.used = 0
        self._subs: deque[list[float]] = deque()  # number of the sub-window, time of its last request, count

    def forget(self, now: float, period: int) -> None:
        while self._subs and self._subs[0][1] + period <= now:  # The sum that is told to those who wait.
            self.used -= int(self._subs.popleft()[2])

    def add(self, cost: int, now: float, period: int) -> None:
        number = now * SUB_WINDOWS // period
        if not self._subs or self._subs[-1][0] != number:
            self._subs.append([number, now, 0])
        self._subs[-1][1] = now
        self._subs[-1][2] += cost
        self.used += cost

    def time_when_gone(self, count: int, period: int) -> float:
        """When so many of the oldest will have left."""
        for _, last, gone in self._subs:
            count -= int(gone)
            if count <= 0:
                return last + period
        return 0.0


class InProcess:
    """The limiter of an outage."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.processes = 1  # that share a limit
        self.decisions = 0  # since the start
        self._clock = clock
        self._counters: OrderedDict[bytes, _Counter] = OrderedDict()

    def decide(self, subject: str, rules: tuple[Rule, ...], cost: int) -> list[int]:
        """What the script would answer."""
        now = self._clock()
        self.decisions += 1
        windows = [pair for rule in rules for pair in zip(rule.keys(subject)[::2], rule.windows, strict=True)]
        found = [(self._counter(key, window, now), window, self._share(window)) for key, window in windows]
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
        self._counters.clear()

    def _share(self, window: Window) -> int:
        return max(1, window.limit // self.processes)

    def _counter(self, key: bytes, window: Window, now: float) -> _Counter:
        counter = self._counters.pop(key, None) or _Counter()
        self._counters[key] = counter  # It is the one seen last.
        if len(self._counters) > MOST_SUBJECTS:
            self._counters.popitem(last=False)
        counter.forget(now, window.period)
        return counter


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000_000)) if seconds else 0
