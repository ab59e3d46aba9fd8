"""How the clock of a server stands to this machine's."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from app.core.doctor.finding import Finding, failed, ok

FARTHEST: Final = 2.0  # seconds: tokens, leases and limits are judged by more than one clock
_READINGS: Final = 3

wall_clock = time.time  # this machine's, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds by which a server's clock is ahead of ours, give or take `uncertainty`: half of the round trip."""

    ahead: float
    uncertainty: float


async def read_clock(server_now: Callable[[], Awaitable[float]]) -> Clock:
    """Reads it by the quickest of a few answers (Cristian, "Probabilistic clock synchronization", 1989).

    Args:
        server_now: asks the server for its seconds since 1970.
    """
    best = Clock(0.0, inf)
    for _ in range(_READINGS):
        asked = wall_clock()
        said = await server_now()
        answered = wall_clock()
        best = min(
            best, Clock(said - (asked + answered) / 2, (answered - asked) / 2), key=lambda clock: clock.uncertainty
        )
    return best


def judge_clock(server: str, clock: Clock) -> Finding:
    """`server` is what the finding calls it."""
    check = f"clock: {server}"
    apart = f"{abs(clock.ahead):.3f} s {'ahead of' if clock.ahead > 0 else 'behind'} this machine's"
    if abs(clock.ahead) - clock.uncertainty > FARTHEST:
        return failed(check, f"it is {apart}", "have both machines set their clocks by NTP (chronyc tracking)")
    return ok(check, apart)
