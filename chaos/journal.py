"""What was asked and what became of it; what was acknowledged, and whether it holds. All times: `time.monotonic()`."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

ANSWERED: Final = "answered"
SAID: Final = "503"  # with Retry-After: a failure that was said

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is over.

    Attributes:
        kind: what it was about.
        sent, came: when.
        outcome: `ANSWERED`, or what came instead: `SAID`, another status, `no answer` or `timeout`.
        words: what was said of a failure.
    """

    kind: str
    sent: float
    came: float
    outcome: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Stale:
    """An answer that is older than a write which was acknowledged before it was asked for.

    Attributes:
        age: seconds from the first acknowledgement that it does not know to the question.
    """

    what: str
    asked: float
    age: float
    version: int
    acknowledged: int


@dataclass
class Register:
    """Something with a version that one writer raises, step by step.

    Attributes:
        tried: the last version that was sent; it may have been written even when nobody has said so.
        acknowledged: when each version was said to be written.
    """

    name: str
    tried: int = 0
    acknowledged: dict[int, float] = field(default_factory=dict)

    @property
    def known(self) -> int:
        """The newest version that was acknowledged; 0 is what it began with."""
        return max(self.acknowledged, default=0)

    def acknowledge(self, version: int) -> None:
        self.acknowledged[version] = time.monotonic()


@dataclass
class Journal:
    """Of the whole run.

    Attributes:
        orders: when each order was acknowledged, by its number.
        admitted: of those who ask too much, when each request was sent and answered that was let through.
        forgotten: when a sign-in was refused that had been acknowledged.
    """

    asked: list[Asked] = field(default_factory=list)
    stale: list[Stale] = field(default_factory=list)
    orders: dict[int, float] = field(default_factory=dict)
    admitted: list[Span] = field(default_factory=list)
    forgotten: list[float] = field(default_factory=list)

    def see(self, register: Register, version: int, known: int, asked: float) -> None:
        """Notes a version that was read, when it is older than what was known as the question was sent."""
        if version < known:
            missed = min(when for number, when in register.acknowledged.items() if number > version)
            self.stale.append(Stale(register.name, asked, asked - missed, version, known))

    def between(self, begin: float, end: float) -> list[Asked]:
        """The requests that were answered in this time: what a fault has cut off was often sent before it."""
        return [one for one in self.asked if begin <= one.came < end]

    def failures(self, begin: float, end: float) -> list[Asked]:
        """Those that failed."""
        return [one for one in self.between(begin, end) if one.outcome != ANSWERED]


def over_admitted(admitted: Iterable[Span], limit: int, period: float) -> list[float]:
    """When requests were let through beyond the limit, whatever the moment at which each was decided.

    A request is decided between its sending and its answer. It is one too many for certain when it and as many others
    as the limit is were all decided within less than a period.

    Args:
        admitted: when each was sent and answered, in seconds.
        limit: requests in any period.
        period: seconds.
    """
    kept: list[Span] = []
    over: list[float] = []
    for one in sorted(admitted, key=lambda sent_and_came: sent_and_came[1]):
        window = [*kept[len(kept) - limit :], one] if len(kept) >= limit else []
        if window and one[1] - min(sent for sent, _ in window) < period:
            over.append(one[1])
        else:
            kept.append(one)
    return over
