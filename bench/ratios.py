"""Rounds: all cases in turn, several times, each as the ratio to the bare route of its own round.

What a machine does in a second drifts; ratios of one round do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Asked, Measured, load
from bench.servers import server, services

__all__ = ["Found", "Load", "median_of", "rounds", "server", "services"]

Load = Callable[[Asked, float], Measured]


@dataclass(frozen=True, slots=True)
class Found:
    """The medians of a case over all rounds.

    Attributes:
        rate: requests per second.
        ratio: of its rate to the base's of the same round.
        p50, p99: milliseconds.
        cpu: microseconds that the server has computed for a request, where that is known.
    """

    rate: float
    ratio: float
    p50: float
    p99: float
    cpu: float | None = None


def rounds(asked: Mapping[str, Asked], base: str, *, count: int, seconds: float, load: Load = load) -> dict[str, Found]:
    """Asks all in turn, `count` times after a round that warms up.

    Args:
        asked: by the names of the cases.
        base: the one that the others are compared with.
        seconds: of each case in each round.

    Raises: SystemExit when a request fails.
    """
    found: dict[str, list[Measured]] = {name: [] for name in asked}
    for number in range(count + 1):
        for name, request in asked.items():
            measured = load(request, seconds if number else min(seconds, 2))
            if number:  # The first round warms up.
                found[name].append(measured)
    return {name: median_of(each, found[base]) for name, each in found.items()}


def median_of(each: Sequence[Measured], base: Sequence[Measured]) -> Found:
    """The medians of rounds, and of their ratios to the base's rounds."""
    return Found(
        rate=median(one.rate for one in each),
        ratio=median(one.rate / other.rate for one, other in zip(each, base, strict=True)),
        p50=median(one.p50 for one in each),
        p99=median(one.p99 for one in each),
        cpu=median(known) if (known := [one.cpu for one in each if one.cpu is not None]) else None,
    )
