"""How the server's clock stands to ours."""

from math import inf
from time import perf_counter
from typing import Final

CLOCK_SECONDS: Final = 1.0  # in which an answer about the server's clock counts; up to twice as long
CLOCK_STEP: Final = 0.5  # seconds back that are no late answer, but a clock that was set
CLOCK_SLACK: Final = 0.002  # seconds by which two clocks may part in that time


class ServerClock:
    """What the server's clock said, at the least, at a time of this process.

    Each answer with the server's time gives a bound on how far its clock is ahead of ours; the best of the last seconds
    counts, so that it stays good while answers are late (Cristian, "Probabilistic clock synchronization", 1989).
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Knows nothing any more: it may be another server now."""
        self._since = self._best = self._previous = -inf

    def learn(self, microseconds: int) -> None:
        """Takes in an answer that has just come."""
        now = perf_counter()
        ahead = microseconds / 1_000_000 - now
        if now - self._since > 2 * CLOCK_SECONDS or ahead < self._best - CLOCK_STEP:
            self.forget()
        if now - self._since > CLOCK_SECONDS:
            self._since, self._previous, self._best = now, self._best, ahead
        self._best = max(self._best, ahead)

    def at_least(self, moment: float) -> float:
        """The server's time at that moment of our `perf_counter`, in seconds, or earlier."""
        return moment + max(self._best, self._previous) - CLOCK_SLACK
