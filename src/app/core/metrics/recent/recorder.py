"""Adds what this process counts to the last hour: a task of its own, every two seconds."""

import asyncio
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final
from uuid import uuid4

import structlog

from app.core.metrics.recent.clock import MinuteClock
from app.core.metrics.recent.keys import (
    ADD,
    BUSIEST_KEPT,
    KEPT,
    MINUTES,
    MOST_RANKED,
    RANK,
    busiest_keys,
    routes_key,
    sent_key,
    totals_key,
)
from app.core.metrics.recent.sampling import Change, Sampler
from app.core.utils.rate_limit.metrics import Subjects
from app.core.utils.redis_link import AnyLink, LinkError

EVERY: Final = 2.0  # seconds
BUSIEST: Final = 100  # subjects of a rule that are sent at a time
CLOSE_SECONDS: Final = 2.0

log = structlog.stdlib.get_logger("slipway.recent")


@dataclass
class _Batch:
    """What was counted in a minute. Once it has a number, it may have been sent, and stays as it is."""

    minute: int
    change: Change
    number: int | None = None


class Recorder:
    """Keeps what Redis/Valkey has not taken, for an hour, and adds it later to the minute it belongs to, and only once.

    Who asks is not kept: what cannot be sent of that is dropped.
    """

    def __init__(
        self, link: AnyLink, clock: MinuteClock, subjects: Subjects | None = None, sampler: Sampler | None = None
    ) -> None:
        """
        Args:
            link: to where the hour is kept.
            clock: says which minute it is there.
            subjects: who asks.
            sampler: what is counted; by default all that this process counts from now on.
        """
        self._link = link
        self._clock = clock
        self._subjects = subjects
        self._sampler = sampler or Sampler()
        self._sent_key = sent_key(uuid4().hex)
        self._numbers = count(1)
        self._batches: deque[_Batch] = deque(maxlen=2 * MINUTES)
        self._closing = asyncio.Event()
        self._complained = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begins, with what is counted from now on."""
        self._sampler.look()
        with suppress(LinkError):
            self._clock.learn(await self._link.send("TIME"))
        self._task = asyncio.create_task(self._run(), name="last hour recorded")

    async def close(self) -> None:
        """Sends what is left, if that can be, and stops."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)

    async def _run(self) -> None:
        closing = False
        while not closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY * random.uniform(0.8, 1.2)):  # noqa: S311 -- no secret
                    await self._closing.wait()
            closing = self._closing.is_set()
            await self.look()  # Once more after the last request.

    async def look(self) -> None:
        """Looks at what has been counted, and sends what is new. Raises nothing: nobody's request is about this."""
        try:
            self._take_in(self._sampler.look())
            busiest = self._subjects.take(BUSIEST) if self._subjects is not None else {}
            if self._link.up:
                await self._send()
                for rule_key, found in busiest.items():  # One after the other: in between, requests have their turn.
                    words = [word for one in found for word in one]
                    keys = busiest_keys(self._clock.minute(), rule_key)
                    await self._link.call(RANK, keys, BUSIEST_KEPT, MOST_RANKED, *words)
            self._complained = False
        except Exception as error:  # Whatever it is, the next look may go better, and nobody else would look.
            if not self._complained:
                log.warning("last hour cannot be recorded", why=repr(error))
            self._complained = True

    def _take_in(self, change: Change) -> None:
        minute = self._clock.minute()
        while self._batches and self._batches[0].minute <= minute - MINUTES:
            self._batches.popleft()
        if not change:
            return
        last = self._batches[-1] if self._batches else None
        if last is not None and last.minute == minute and last.number is None:
            last.change.add(change)
        else:
            self._batches.append(_Batch(minute, change))

    async def _send(self) -> None:
        while self._batches:
            batch = self._batches[0]
            if batch.number is None:
                batch.number = next(self._numbers)
            words: list[str | int] = [batch.number, KEPT]
            for fields in (batch.change.totals, batch.change.routes):
                words += [len(fields), *(word for pair in fields.items() for word in pair)]
            keys = self._sent_key, totals_key(batch.minute), routes_key(batch.minute)
            self._clock.learn(await self._link.call(ADD, keys, *words))
            self._batches.popleft()
