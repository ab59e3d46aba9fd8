"""Carries the ids of jobs to the workers: a sorted set per queue, by when they are due, as ARQ has it.

Whatever is lost here is sent again from the table, and what comes twice is claimed once.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from app.core.utils.redis_link import AnyLink, LinkError, Script

MARKER: Final = "slipway:jobs"  # gone: the server was emptied, or has come back without what it had
MOST_AT_ONCE: Final = 1000

# Two workers never take the same id. Times are in milliseconds.
_TAKE: Final = Script(
    """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #ids > 0 then redis.call('ZREM', KEYS[1], unpack(ids)) end
return ids
"""
)


class Transport:
    """The sorted sets, over a link that is shared with others or not. Everything raises LinkError."""

    def __init__(self, link: AnyLink) -> None:
        """`link` is open."""
        self.link = link
        self._takes_orders = True

    @property
    def usable(self) -> bool:
        """Whether the server is there, and takes what is written: it can be full, or a replica by now."""
        return self.link.up and self._takes_orders

    async def send_all(self, queue: str, due_by_id: dict[str, datetime]) -> None:
        """Has jobs taken, each from its moment on. One that is there already is due then."""
        for some in _in_parts(list(due_by_id.items())):
            words = [word for job_id, due in some for word in (_score(due), job_id)]
            await self.link.send("ZADD", queue, *words)

    async def take(self, queue: str, now: datetime, most: int) -> list[str]:
        """Takes out jobs that are due, the longest due first."""
        try:
            taken = await self.link.call(_TAKE, queue, _score(now), min(most, MOST_AT_ONCE))
        except LinkError:
            self._takes_orders = False  # Until the next round of upkeep finds that it does.
            raise
        return [job_id.decode(errors="replace") for job_id in taken]

    async def missing(self, queue: str, ids: Sequence[str]) -> set[str]:
        """Which of these are not there."""
        found: list[Any] = []
        for some in _in_parts(ids):
            found += await self.link.send("ZMSCORE", queue, *some)
        return {job_id for job_id, score in zip(ids, found, strict=True) if score is None}

    async def was_emptied(self) -> bool:
        """Whether the server has lost everything since this was last asked, by whichever worker. True once.

        That is a write, so it also tells whether the server is `usable`.
        """
        try:
            answer = await self.link.send("SET", MARKER, 1, "NX")
        except LinkError:
            self._takes_orders = False
            raise
        self._takes_orders = True
        return answer is not None

    async def is_ones_turn(self, queue: str, seconds: float) -> bool:
        """True once in so many seconds, for one of all workers of a queue."""
        turn = ("NX", "PX", int(seconds * 1000))
        return await self.link.send("SET", f"{MARKER}:{queue}", 1, *turn) is not None

    async def ping(self) -> None:
        """Returns when the server is there."""
        await self.link.send("PING")


def _score(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _in_parts(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + MOST_AT_ONCE] for start in range(0, len(items), MOST_AT_ONCE))
