"""When servers were without Valkey, as their own logs say: they decide by what they see, and so do their promises."""

import json
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from chaos.journal import Journal, Span, Stale, over_admitted

LAG: Final = 3.0  # seconds that an old answer may live on while one server is without Valkey (docs/cache.md)
SLACK: Final = 0.1  # seconds by which the log is late
AWAY: Final = "redis is away"
THERE: Final = "redis is there"
FOREVER: Final = 1e12


def outages(log: Path) -> list[Span]:
    """The times in which the processes that wrote this log, one after the other, were without Valkey.

    Returns: on `time.monotonic()`.
    """
    offset = time.monotonic() - time.time()
    spans: list[Span] = []
    since: float | None = None
    for line in log.read_text(errors="replace").splitlines():
        if '"redis is ' not in line:
            continue
        told = json.loads(line)
        at = datetime.fromisoformat(told["timestamp"]).timestamp() + offset
        if told["event"] == AWAY and since is None:
            since = at - SLACK
        elif told["event"] == THERE and since is not None:
            spans.append((since, at + SLACK))
            since = None
    return spans if since is None else [*spans, (since, FOREVER)]


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same times, of several logs, in order and without overlaps."""
    found: list[Span] = []
    for since, until in sorted(spans):
        if found and since <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], until)
        else:
            found.append((since, until))
    return found


def is_allowed(stale: Stale, without: Iterable[Span]) -> bool:
    """Whether the answer may have been that old: a server could not reach Valkey, and it was not for too long."""
    return stale.age <= LAG and any(since <= stale.asked <= until + LAG for since, until in without)


def over_limit(journal: Journal, without: list[Span], limit: int, period: float) -> list[float]:
    """When requests were let through beyond the limit, while all servers counted in Valkey."""
    begins = [0.0, *(until for _, until in without)]
    ends = [*(since for since, _ in without), FOREVER]
    return [
        moment
        for begin, end in zip(begins, ends, strict=True)
        for moment in over_admitted(
            (one for one in journal.admitted if begin <= one[0] and one[1] < end), limit, period
        )
    ]


def overlap(spans: Iterable[Span], began: float, end: float) -> float:
    """How many seconds of this time they take."""
    return sum(max(0.0, min(until, end) - max(since, began)) for since, until in spans)
