"""Drops from the cache what a transaction has made wrong: after its commit, whatever happens in between.

What is to be dropped is written down in that transaction (`app.core.db.outbox`), and dropped once it is committed,
before the caller is told. When that cannot be done, it is done by a task of each API process as soon as it can.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Final

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db import outbox
from app.core.db.database import open_transaction, reading, transaction
from app.core.db.outbox import Targets
from app.core.utils.cache.metrics import INVALIDATIONS, UP
from app.core.utils.cache.server_clock import CLOCK_SLACK
from app.core.utils.cache.store import Store
from app.core.utils.redis_link import LinkError

TICK: Final = 1.0  # seconds between two looks at what others have left
SETTLE: Final = 1.0  # seconds after an outage until all processes are back, and what they left undone can be known
OWN: Final = 10.0  # seconds that whoever committed has to drop it, before others do; more than LINGER and two ticks
# Seconds that rows are kept after they are done. A server that crashes can lose, with its last second, what it has
# dropped, and come back with the old answers: what is still written down is then dropped again.
LINGER: Final = 5.0
CLOSE_SECONDS: Final = 2.0  # that a close waits for what is being done
MOST_AT_ONCE: Final = 500

log = structlog.stdlib.get_logger("slipway.cache")


class Invalidator:
    """Drops what is wrong, and decides whether what is stored can be trusted.

    After an outage it cannot, until all that was to be dropped meanwhile is dropped: `trusted` is False until then.
    """

    def __init__(self, store: Store, *, durable: bool) -> None:
        """
        Args:
            store: where to drop it from.
            durable: whether there is a database to write down what to drop. Without one, or while it is away, this
                process remembers.
        """
        self.trusted = False
        self._store = store
        self._durable = durable
        self._outage = 0  # counts them
        self._settled_at = 0.0  # on the monotonic clock
        self._done: deque[tuple[float, list[int]]] = deque()
        self._overdue: list[int] = []
        self._remembered: set[Targets] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._complained = False
        self._closing = False
        store.link.on_change(self._on_change)

    async def open(self) -> None:
        """Begins to look after what is left to drop; what was left by others is dropped by then, if it can be."""
        self._settled_at = 0.0  # At a start, there was no outage.
        if self._store.link.up:
            await self._try()
            await asyncio.sleep(2 * CLOCK_SLACK)  # Requests are to be younger than the notes, if these are new as well.
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops. What is not done by now is written down, and done by others."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            self._task.cancel()
        self._distrust()

    @asynccontextmanager
    async def around(self, db: AsyncSession, targets: Targets) -> AsyncIterator[None]:
        """Goes around a commit: writes down before what it drops after."""
        ids = await outbox.record(db, targets, delay=OWN if self._store.link.up else 0)
        yield
        await self._drop_committed(targets, ids)

    async def now(self, targets: Targets) -> None:
        """Drops this, or sees to it that it is dropped later. For changes made outside of our transactions."""
        try:
            await self._drop(targets)
        except LinkError:
            self._distrust()
            if not (self._durable and await self._is_written_down(targets)):
                self._remembered.add(targets)

    async def _is_written_down(self, targets: Targets) -> bool:
        if open_transaction() is not None:
            return False  # A transaction that is rolled back would take it along. This process remembers it.
        try:
            async with reading() as db:
                await outbox.record(db, targets, delay=0)
        except Exception as error:  # The change is made, whatever is wrong with the database.
            log.warning("cache invalidation not written down", why=repr(error.__cause__ or error))
            return False
        return True

    async def _drop_committed(self, targets: Targets, ids: list[int]) -> None:
        try:
            await self._drop(targets)
        except LinkError as error:
            if self.trusted:  # One line per outage.
                log.warning("cache not invalidated yet", why=repr(error))
            self._distrust()  # What it holds is wrong by now.
            self._overdue += ids
            self._wake.set()
        else:
            self._done.append((monotonic(), ids))

    async def _drop(self, targets: Targets) -> None:
        count = len(targets.keys) + len(targets.patterns)
        try:
            await self._store.void(targets.keys, targets.patterns)
        except LinkError:
            INVALIDATIONS.labels("failed").inc(count)
            raise
        INVALIDATIONS.labels("done").inc(count)

    # ---- What is left to drop ----

    def _on_change(self, up: bool) -> None:
        if up:
            self._settled_at = monotonic() + SETTLE
            self._wake.set()
        else:
            self._distrust()

    def _distrust(self) -> None:
        self._outage += 1
        self.trusted = False
        UP.set(0)

    async def _run(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                pause = TICK if self.trusted else TICK / 4
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):  # noqa: S311 -- no secret
                    await self._wake.wait()
            self._wake.clear()
            if not self._closing:
                await self._try()

    async def _try(self) -> None:
        try:
            await self._tick()
            self._complained = False
        except Exception as error:  # Whatever it is, the next look may go better, and nobody else would look.
            if isinstance(error, LinkError):
                self._distrust()  # It takes no orders: read-only, say. What others drop would stay there, too.
            if not self._complained:
                log.warning("cache invalidations wait", why=repr(error.__cause__ or error))
            self._complained = True

    async def _tick(self) -> None:
        if self._overdue:
            await self._hand_over()
        if not self._store.link.up:
            return
        await self._store.probe()
        if not self.trusted and monotonic() >= self._settled_at:
            await self._regain_trust()
        if self._durable and self.trusted:
            await self._forget_done()
            await self._do_what_is_due()

    async def _regain_trust(self) -> None:
        outage = self._outage
        for targets in list(self._remembered):
            await self._drop(targets)
            self._remembered.discard(targets)
        if self._durable:
            async with reading() as db:
                written = await outbox.everything(db)
            await self._drop(written)
        if outage == self._outage:
            self.trusted = True
            self._done = deque((monotonic(), ids) for _, ids in self._done)  # Time begins anew for all that is kept.
            UP.set(1)
            log.info("cache in use")

    async def _hand_over(self) -> None:
        overdue = list(self._overdue)
        async with reading() as db:
            await outbox.make_due(db, overdue)
        del self._overdue[: len(overdue)]

    async def _forget_done(self) -> None:
        old = [ids for since, ids in self._done if monotonic() - since > LINGER]
        if old:
            async with reading() as db:
                await outbox.forget(db, [row for ids in old for row in ids])
            for _ in old:
                self._done.popleft()

    async def _do_what_is_due(self) -> None:
        async with reading() as db:
            left = await outbox.is_any_due(db)
        while left:
            async with transaction() as db:
                targets, ids = await outbox.take_due(db, MOST_AT_ONCE, delay=OWN)
                await self._drop(targets)
            self._done.append((monotonic(), ids))
            left = bool(ids)


@asynccontextmanager
async def write_down(db: AsyncSession, targets: Targets) -> AsyncIterator[None]:
    """Goes around a commit where the cache is not open: leaves it to those where it is."""
    await outbox.record(db, targets, delay=0)
    yield
