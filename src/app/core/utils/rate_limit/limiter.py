"""Decides about requests: one round trip to Redis/Valkey, or in memory while that is away."""

from dataclasses import dataclass
from math import ceil
from typing import Final

from app.core.config import RateLimitMode
from app.core.utils.rate_limit.in_process import InProcess
from app.core.utils.rate_limit.metrics import Subjects
from app.core.utils.rate_limit.rules import Rule, Rules, Window
from app.core.utils.rate_limit.script import DECIDE
from app.core.utils.redis_link import AnyLink, LinkError

SECOND: Final = 1_000_000  # microseconds


@dataclass(slots=True)
class Usage:
    """How a subject stands with one window.

    Attributes:
        used: of the limit, in the period that ends now. Can be more than the limit, after that was lowered.
        reset: seconds until some of what is used is free again; 0 when nothing is.
    """

    window: Window
    used: int
    reset: int

    @property
    def remaining(self) -> int:
        """What is left."""
        return max(0, self.window.limit - self.used)


@dataclass(slots=True)
class Decision:
    """About one request.

    Attributes:
        rule: the one that applied.
        wait: seconds until it could be let through; 0 when it is.
        usages: of each window, with this request if it was let through.
    """

    rule: Rule
    wait: int
    usages: tuple[Usage, ...]


class Limiter:
    """Counts requests. Lets them through, up to a part of each limit, when Redis/Valkey is away.

    Attributes:
        subjects: where it is noted who asks, if anybody wants to know.
    """

    def __init__(self, link: AnyLink, mode: RateLimitMode, rules: Rules) -> None:
        self.link = link
        self.mode = mode
        self.rules = rules
        self.in_process = InProcess()
        self.subjects: Subjects | None = None

    async def decide(self, subject: str, rule: Rule, cost: int = 1) -> Decision:
        """Counts a request of this subject, unless it is one too many."""
        (wait, *numbers), in_process = await self._ask(subject, (rule,), cost)
        refused = "refused" if self.mode is RateLimitMode.ENFORCE else "would_refuse"
        rule.meter.count(refused if wait else "allowed", in_process=in_process)
        if self.subjects is not None:
            self.subjects.note(rule.key, subject, refused=wait > 0)
        return Decision(rule, ceil(wait / SECOND), tuple(_usages(rule, numbers)))

    async def usage(self, subject: str, tier_id: int | None) -> list[tuple[Rule, Usage]]:
        """How a subject stands with every window of each rule that can apply to it. Counts nothing."""
        rules = tuple(self.rules.all_of(tier_id))
        if self.mode is RateLimitMode.OFF or not rules:
            return []
        (_, *numbers), _ = await self._ask(subject, rules, 0)
        found = []
        for rule in rules:
            mine = 2 * len(rule.windows)
            found += [(rule, usage) for usage in _usages(rule, numbers[:mine])]
            del numbers[:mine]
        return found

    async def usage_of(self, subject: str, rule: Rule) -> list[Usage]:
        """How a subject stands with each window of one rule. Counts nothing. [] when nothing is limited.

        While Redis/Valkey is away, it is what this process has counted.
        """
        if self.mode is RateLimitMode.OFF:
            return []
        (_, *numbers), _ = await self._ask(subject, (rule,), 0)
        return _usages(rule, numbers)

    async def ping(self) -> None:
        """Returns when Redis/Valkey is there. Raises: LinkError."""
        await self.link.send("PING")

    async def _ask(self, subject: str, rules: tuple[Rule, ...], cost: int) -> tuple[list[int], bool]:
        keys = tuple([key for rule in rules for key in rule.keys(subject)])
        arguments = [argument for rule in rules for argument in rule.arguments]
        try:
            return await self.link.call(DECIDE, keys, cost, *arguments), False
        except LinkError:
            return self.in_process.decide(subject, rules, cost), True


def _usages(rule: Rule, numbers: list[int]) -> list[Usage]:
    pairs = zip(rule.windows, numbers[::2], numbers[1::2], strict=True)
    return [Usage(window, used, ceil(free_in / SECOND)) for window, used, free_in in pairs]
