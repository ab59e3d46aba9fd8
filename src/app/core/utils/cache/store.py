"""Answers in Redis/Valkey, and the leases that decide who computes one.

One resource is one hash. In it each variant has a field with its stored answer and, while somebody computes it, one
with a lease (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013): only the holder computes, the others wait.
Deleting the hash drops the answers and voids the leases, so that whoever began to compute before cannot store after.

A request can have read what it answers with before it took the lease: in a dependency, say. So the last minute's
invalidations are noted, and a lease says how long ago the last one of its resource was: a request that is older than
that does not store its answer.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from math import inf
from operator import attrgetter
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

from app.core.utils.cache import scripts
from app.core.utils.cache.server_clock import ServerClock
from app.core.utils.redis_link import AnyLink, ClusterLink, Link, LinkDown, LinkError, Refused

RECENTLY: Final = 60  # seconds for which an invalidation is noted
LONGEST_COMPUTATION: Final = 60  # seconds after which a lease is forgotten, and what is computed is not stored
MOST_AT_ONCE: Final = 500  # keys that are dropped in one write to the server
MOST_FIELDS: Final = 1_000  # of one resource; query strings are the caller's, and so could be any number
UNCOORDINATED: Final = 1.0  # seconds for which nobody waits for others, after an answer that cannot be stored
FIRST_POLL: Final = 0.002  # seconds
LONGEST_POLL: Final = 0.05

NOTES: Final = "slipway:cache:invalidated"  # a sorted set: when each key, or any pattern, was last invalidated
ANY_PATTERN: Final = "*"


@dataclass(slots=True)
class Lease:
    """The right to compute one variant of a resource.

    Attributes:
        invalidated: when the resource last was, or can have been, in seconds of the server's clock.
    """

    key: str
    variant: bytes
    token: bytes
    invalidated: float


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else has the lease, for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Request:
    """One that waits, and when it began."""

    started: float
    future: asyncio.Future[bytes | Lease | None]

    def resolve(self, found: bytes | Lease | None) -> None:
        """Ends its waiting, if that has not ended otherwise."""
        if not self.future.done():
            self.future.set_result(found)


class _Waiting:
    """Those of this process who wait for one variant. One task asks for all of them."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        self.wake = asyncio.Event()

    def has_requests(self) -> bool:
        """Whether anybody still waits."""
        self.requests = [one for one in self.requests if not one.future.done()]
        return bool(self.requests)


class Store:
    """The cache's side of Redis/Valkey. Methods raise LinkError when that is away, hangs or refuses."""

    def __init__(self, link: AnyLink) -> None:
        self.link = link
        self._clock = ServerClock()
        self._epoch = 0  # counts what `_begin_anew` is about
        self._began = -inf  # the last one, on `perf_counter`
        self._waiting: dict[tuple[str, bytes, bytes | None], _Waiting] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        link.on_change(self._begin_anew, NOTES)

    def _begin_anew(self, _: bool) -> None:
        """It may be another server now: with another clock, and without the last that was noted and dropped.

        A request that is older must not store. One that has asked before must not take what it gets from there.
        """
        self._clock.forget()
        self._epoch += 1
        self._began = perf_counter()

    async def get(self, key: str, variant: bytes) -> bytes | None:
        """The stored answer. One command, which is all that a hit costs."""
        epoch = self._epoch
        try:
            stored: bytes | None = await self.link.ask("HGET", key, b"v" + variant)
        except Refused as refused:
            if not str(refused).startswith("WRONGTYPE"):  # Something else's key, which `take` removes.
                raise
            return None
        if epoch != self._epoch:
            raise LinkDown(self.link.name)
        return stored

    # ---- Leases ----

    async def take(
        self, key: str, variant: bytes, seconds: float, unwanted: bytes | None = None
    ) -> bytes | Lease | Held | None:
        """Takes the lease on a variant, if it is free.

        Args:
            key: the resource's.
            variant: which of its variants.
            seconds: after which somebody else may compute it as well.
            unwanted: the stored answer that will not do, when there is one: it has expired, say.

        Returns: the lease, or the stored answer, or who is before us, or None when the answer should be computed
        without a lease, and not stored.
        """
        asking = asyncio.ensure_future(self._take(key, variant, seconds, unwanted))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._give_back_what_nobody_waits_for)
            raise

    def _give_back_what_nobody_waits_for(self, asking: asyncio.Future[bytes | Lease | Held | None]) -> None:
        if not asking.cancelled() and asking.exception() is None and isinstance(lease := asking.result(), Lease):
            self.give_back(lease)

    async def _take(
        self, key: str, variant: bytes, seconds: float, unwanted: bytes | None
    ) -> bytes | Lease | Held | None:
        epoch, token = self._epoch, token_hex(8)
        take = (
            scripts.TAKE,
            key,
            variant,
            token,
            int(seconds * 1000),
            LONGEST_COMPUTATION * 1000,
            "" if unwanted is None else sha1(unwanted, usedforsecurity=False).hexdigest(),
            MOST_FIELDS,
        )
        try:
            # In this order, so that what is invalidated in between voids the lease.
            taken, (time, last) = await self.link.run(take, (scripts.LAST, NOTES, key, ANY_PATTERN))
            if epoch != self._epoch:
                raise LinkDown(self.link.name)
        except LinkDown:  # In a cluster, it may have been taken all the same.
            self.give_back(Lease(key, variant, token.encode(), inf))
            raise
        self._clock.learn(time)
        kind, *rest = taken
        if kind == b"lease":
            return Lease(key, variant, rest[0], last / 1_000_000)
        if kind == b"held":
            return Held(rest[0] / 1000)
        return rest[0] if kind == b"value" else None

    def covers(self, lease: Lease, started: float) -> bool:
        """Whether a request that started then may store its answer.

        Not when the resource was invalidated since: it may have read what it answers with before.
        """
        recently = started > self._began and perf_counter() - started < RECENTLY
        return recently and lease.invalidated < self._clock.at_least(started)

    async def probe(self) -> None:
        """Returns when what is stored could be dropped; asks for the server's time meanwhile."""
        epoch = self._epoch
        time = await self.link.call(scripts.NOTE, NOTES, RECENTLY * 1000)
        if epoch == self._epoch:
            self._clock.learn(time)
        if isinstance(self.link, ClusterLink):  # That was one of them.
            await asyncio.gather(*(part.send("PING") for part in await self.link.parts()))

    async def store(self, lease: Lease, value: bytes, seconds: float) -> bool:
        """Stores the answer and ends the lease. False when it was voided: the resource has changed meanwhile."""
        stored = await self.link.call(
            scripts.STORE, lease.key, lease.variant, lease.token, value, round(seconds * 1000)
        )
        self._wake(lease)
        return bool(stored)

    async def share(self, lease: Lease, value: bytes, started: float) -> None:
        """Ends the lease with an answer that must not be stored, but is good enough for requests older than this one.

        It may have read before the last invalidation. But it has read after it `started`, and so after those who wait
        here since before that: whatever they have been told of, it has seen.
        """
        for waiting in self._waiting_for(lease):
            _resolve([one for one in waiting.requests if one.started <= started], value)
        await self.give_up(lease)

    async def give_up(self, lease: Lease, *, uncoordinated: bool = False) -> None:
        """Ends the lease without an answer to store.

        Args:
            lease: the lease.
            uncoordinated: whether those who wait should not try in turns, but each compute their own for a while:
                the answer is an error, or one of those that are not stored.
        """
        milliseconds = int(UNCOORDINATED * 1000) if uncoordinated else 0
        await self.link.call(scripts.GIVE_UP, lease.key, lease.variant, lease.token, milliseconds)
        self._wake(lease)

    # ---- Waiting ----

    async def wait(
        self, key: str, variant: bytes, seconds: float, unwanted: bytes | None = None, *, started: float | None = None
    ) -> bytes | Lease | None:
        """`take` for somebody who found another before them: waits until there is something else to return.

        When that other takes longer than their lease, it is passed on to one of those who wait. `started` is when the
        request began, on our `perf_counter`.
        """
        place = (key, variant, unwanted)
        waiting = self._waiting.get(place)
        if waiting is None:
            waiting = self._waiting[place] = _Waiting()
            self._spawn(self._ask_for_all(place, waiting, seconds))
        future: asyncio.Future[bytes | Lease | None] = asyncio.get_running_loop().create_future()
        waiting.requests.append(_Request(perf_counter() if started is None else started, future))
        try:
            async with asyncio.timeout(LONGEST_COMPUTATION):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and isinstance(lease := future.result(), Lease):
                self.give_back(lease)  # Given to somebody who has just gone.
            if isinstance(error, TimeoutError):
                return None
            raise

    async def _ask_for_all(self, place: tuple[str, bytes, bytes | None], waiting: _Waiting, seconds: float) -> None:
        """Asks again and again until nobody waits. Who comes while it is asked gets the next answer: this one may
        be from before they came, and before a change that they have been told of."""
        key, variant, unwanted = place
        pause = FIRST_POLL
        try:
            while waiting.has_requests():
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await waiting.wake.wait()
                waiting.wake.clear()
                asking = list(waiting.requests)
                found = await self.take(key, variant, seconds, unwanted)
                left = [one for one in asking if not one.future.done()]
                if isinstance(found, Held):
                    pause = min(pause * 1.5, LONGEST_POLL, max(found.seconds, FIRST_POLL))
                elif not isinstance(found, Lease):
                    _resolve(left, found)
                    pause = FIRST_POLL
                elif left:
                    # The newest: if what it computes cannot be stored, the others may have it all the same.
                    max(left, key=attrgetter("started")).resolve(found)
                    pause = FIRST_POLL
                else:
                    await self.give_up(found)
        except LinkError:
            pass
        finally:
            del self._waiting[place]
            _resolve(waiting.requests, None)

    def give_back(self, lease: Lease, *, uncoordinated: bool = False) -> None:
        """`give_up` for somebody who cannot wait for it."""
        self._spawn(self._give_up_quietly(lease, uncoordinated))

    async def _give_up_quietly(self, lease: Lease, uncoordinated: bool) -> None:
        with suppress(LinkError):
            await self.give_up(lease, uncoordinated=uncoordinated)

    def _wake(self, lease: Lease) -> None:
        for waiting in self._waiting_for(lease):
            waiting.wake.set()

    def _waiting_for(self, lease: Lease) -> list[_Waiting]:
        wanted = (lease.key, lease.variant)
        return [waiting for (key, variant, _), waiting in self._waiting.items() if (key, variant) == wanted]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- Invalidation ----

    async def void(self, keys: Sequence[str], patterns: Sequence[str] = ()) -> None:
        """Drops resources with all their variants, and voids every lease on them. A note of it comes first."""
        for first in range(0, len(keys), MOST_AT_ONCE):
            await self._void_keys(keys[first : first + MOST_AT_ONCE])
        if patterns:
            await self.link.call(scripts.NOTE, NOTES, RECENTLY * 1000, ANY_PATTERN)
        for pattern in patterns:
            await self._void_matching(pattern)

    async def _void_keys(self, keys: Sequence[str]) -> None:
        await self.link.run((scripts.NOTE, NOTES, RECENTLY * 1000, *keys), *(("UNLINK", key) for key in keys))

    async def _void_matching(self, pattern: str) -> None:
        # In a cluster, a key can move to where it was looked for already: once more, then, it is found there, or it was
        # found before it moved.
        for _ in range(2 if isinstance(self.link, ClusterLink) else 1):
            parts = await self.link.parts(anew=True)
            await asyncio.gather(*(self._void_matching_at(part, pattern) for part in parts))

    async def _void_matching_at(self, part: Link, pattern: str) -> None:
        cursor: bytes = b"0"
        while True:
            cursor, found = await part.send("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, "TYPE", "hash")
            if found:
                await self.link.run(*(("UNLINK", key) for key in found))
            if cursor == b"0":
                return


def _resolve(requests: list[_Request], found: bytes | None) -> None:
    for request in requests:
        request.resolve(found)
