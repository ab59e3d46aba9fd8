"""Which minute it is at the server: all processes are to agree on that, whatever their own clocks say."""

from collections.abc import Callable, Sequence
from time import monotonic, time


class MinuteClock:
    """The server's clock, as last heard. Until it has been heard, it is this machine's."""

    def __init__(self, steady: Callable[[], float] = monotonic, wall: Callable[[], float] = time) -> None:
        """
        Args:
            steady: seconds since whenever; nobody sets it.
            wall: seconds since 1970, as this machine has them.
        """
        self._steady = steady
        self._ahead = wall() - steady()

    def learn(self, reply: Sequence[bytes]) -> None:
        """Takes in what `TIME` has just answered."""
        seconds, microseconds = map(int, reply)
        self._ahead = seconds + microseconds / 1_000_000 - self._steady()

    def minute(self) -> int:
        """The minute, counted from 1970."""
        return int((self._steady() + self._ahead) // 60)
