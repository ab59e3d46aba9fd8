"""Reads the last hour of all processes."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.core.metrics.recent.clock import MinuteClock
from app.core.metrics.recent.hour import Hour, Minute
from app.core.metrics.recent.keys import BUSIEST, MINUTES, NOW, ROOT, busiest_keys, routes_key, totals_key
from app.core.utils.rate_limit.metrics import Subject
from app.core.utils.rate_limit.rules import rule_key
from app.core.utils.redis_link import AnyLink, Command


@dataclass(slots=True)
class Route:
    """What was asked of one route, by its template; `other`: of all that are too many to tell apart.

    Attributes:
        errors: answers of 500 and above.
        seconds: that all requests together took.
    """

    route: str
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds that a request took."""
        return self.seconds / self.requests if self.requests else 0.0


class Recent:
    """The last hour. Every question is one round trip, and raises LinkError while Redis/Valkey is away."""

    def __init__(self, link: AnyLink, clock: MinuteClock) -> None:
        """
        Args:
            link: to where it is kept.
            clock: says which minute it is there.
        """
        self._link = link
        self._clock = clock

    async def last_hour(self) -> Hour:
        """All that was counted, by minute. Up to some two seconds old. Raises: LinkError."""
        newest, replies = await self._ask(
            lambda newest: [("HGETALL", totals_key(minute)) for minute in _last(MINUTES, newest)]
        )
        found = zip(_last(MINUTES, newest), replies, strict=True)
        return Hour(tuple(Minute.of(minute, reply) for minute, reply in found))

    async def routes(self, minutes: int = 5) -> list[Route]:
        """The routes that were asked in the last minutes, this one included; the busiest first. Raises: LinkError."""
        _, replies = await self._ask(
            lambda newest: [("HGETALL", routes_key(minute)) for minute in _last(minutes, newest)]
        )
        sums: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for reply in replies:
            for name, value in zip(reply[::2], reply[1::2], strict=True):
                what, _, route = name.decode().partition(":")
                sums[route][what] += int(value)
        found = [
            Route(route, counts["requests"], counts["errors"], counts["microseconds"] / 1_000_000)
            for route, counts in sums.items()
        ]
        return sorted(found, key=lambda one: (-one.requests, one.route))

    async def busiest(self, tier_id: int | None, path: str, most: int = 10) -> list[Subject]:
        """Who has asked most under a rule in this minute and the one before, the busiest first. Raises: LinkError.

        Args:
            tier_id: the rule's tier; None: the default rule.
            path: the rule's.
            most: how many to tell.
        """
        key = rule_key(tier_id, path)
        _, (reply,) = await self._ask(
            lambda newest: [(BUSIEST, (*busiest_keys(newest - 1, key), *busiest_keys(newest, key)), most)]
        )
        return [
            Subject(subject.decode(), calls, refused)
            for subject, calls, refused in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    async def _ask(self, commands: Callable[[int], list[Command]]) -> tuple[int, list[Any]]:
        """Asks for what depends on the minute, which the server says along with it; once more if it is another one."""
        newest, replies = await self._ask_once(commands)
        if self._clock.minute() != newest:
            newest, replies = await self._ask_once(commands)
        return newest, replies

    async def _ask_once(self, commands: Callable[[int], list[Command]]) -> tuple[int, list[Any]]:
        newest = self._clock.minute()
        time, *replies = await self._link.run((NOW, ROOT), *commands(newest))
        self._clock.learn(time)
        return newest, replies


def _last(minutes: int, newest: int) -> range:
    return range(newest - minutes + 1, newest + 1)
