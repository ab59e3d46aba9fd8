"""Reads on a replica, where nobody is shown less than what they have written themselves.

Whoever has written something is noted in Redis/Valkey, with the place in the primary's log (LSN) up to which a replica
has to have come before it may answer them. Until then, and whenever that cannot be told, the primary does. Others may
see what was true a moment ago, and a minute ago at most. What is cached has to be read on the primary: it would be kept
for everybody (docs/decisions/0017-who-has-written-is-not-answered-by-a-replica-that-lags.md).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import reading
from app.core.db.engine import DatabaseUnavailable
from app.core.db.timeouts import LimitedSession
from app.core.utils.redis_link import AnyLink, LinkError, Script

ANSWER: Final = 0.5  # seconds until a replica that does not say how far it is is taken to be away
PAUSES: Final = (0.5, 1.0, 2.0, 5.0)  # seconds between the tries to find it back, by one task
SAMPLE: Final = 5.0  # seconds between two looks at how far the primary is
LAG: Final = 60.0  # seconds that a replica may be behind, which answers anybody
REMEMBERED: Final = 180  # seconds for which it is known who has written: longer than that lag
CATCH_UP: Final = 1.0  # seconds that a writer waits for the replica when they cannot be noted
LOOK: Final = 0.01  # seconds between two looks at how far it is

READS: Final = Counter(
    "slipway_database_reads",
    "Reading sessions by who had them: replica, or primary and why: behind, away, unknown (who has written what).",
    ["answered_by"],
)

_FURTHER_THAN_ANY: Final = "f" * 16  # a place in the log
# KEYS: somebody. ARGV: a place in the log, for how many milliseconds. The further of two places stays.
_NOTE = Script(
    """
local known = redis.call('GET', KEYS[1])
if known and known > ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

# As a number: a place is written as two.
_WRITTEN = text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS numeric)")
_REPLAYED = text(
    "SELECT CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
    " - '0/0' AS numeric)"
)
_OUTAGES = (DatabaseUnavailable, SQLAlchemyError, TimeoutError)

Dependency = TypeVar("Dependency", bound=Callable[..., Any])

log = structlog.stdlib.get_logger("slipway.database")

_MAY_LAG: Final = "_slipway_may_lag"


def lagging(dependency: Dependency) -> Dependency:
    """Marks a dependency whose session can be behind: `@cache` refuses to be used with it."""
    setattr(dependency, _MAY_LAG, True)
    return dependency


def may_lag(dependency: object) -> bool:
    """Whether it is marked so."""
    return hasattr(dependency, _MAY_LAG)


class Replica:
    """The replica, and who may not be answered by it yet."""

    def __init__(self, engine: AsyncEngine, link: AnyLink) -> None:
        """
        Args:
            engine: of the replica.
            link: to where it is noted who has written; what is noted there must not be evicted.
        """
        self._sessions = async_sessionmaker(
            engine.execution_options(postgresql_readonly=True),
            class_=AsyncSession,
            sync_session_class=LimitedSession,
            expire_on_commit=False,
        )
        self._link = link
        self._away = False
        self._least = 0  # a replica that is not there yet is too far behind for anybody
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begins to look at how far the primary is."""
        self._tasks.append(asyncio.create_task(self._sample_primary()))

    async def close(self) -> None:
        """Ends that."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def ping(self) -> None:
        """Returns when it answers. Raises: DatabaseUnavailable, or what SQLAlchemy says else."""
        async with self._sessions() as db:
            await self._position(db)

    # ---- Reading ----

    @asynccontextmanager
    async def reading(self, subjects: Sequence[str]) -> AsyncIterator[AsyncSession]:
        """A session to read with, for a caller of whom it may be noted that they have written.

        Args:
            subjects: what the caller is called in `note`: each is one who may have written.

        Raises: DatabaseUnavailable.
        """
        async with AsyncExitStack() as stack:
            found = await self._enter(stack, subjects)
            READS.labels(found if isinstance(found, str) else "replica").inc()
            yield await stack.enter_async_context(reading()) if isinstance(found, str) else found

    async def _enter(self, stack: AsyncExitStack, subjects: Sequence[str]) -> AsyncSession | str:
        """A session on the replica, or why there is none."""
        if self._away:
            return "away"
        try:
            needed = max(self._least, await self._needed_by(subjects))
        except LinkError:
            return "unknown"
        async with AsyncExitStack() as entered:
            try:
                async with asyncio.timeout(ANSWER):
                    db = await entered.enter_async_context(self._sessions())
                    position = await self._position(db)
            except _OUTAGES as error:
                self._lose(error)
                return "away"
            if position < needed:
                return "behind"
            stack.push_async_exit(entered.pop_all())
            return db

    async def _needed_by(self, subjects: Sequence[str]) -> int:
        noted = await asyncio.gather(*(self._link.ask("GET", _key(subject)) for subject in subjects))
        return max((int(place, 16) for place in noted if place is not None), default=0)

    async def _position(self, db: AsyncSession) -> int:
        return int(await (await db.connection()).scalar(_REPLAYED) or 0)

    def _lose(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            log.warning("replica is away", why=repr(error.__cause__ or error))
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks.append(asyncio.create_task(self._find_back()))

    async def _find_back(self) -> None:
        """One task asks, and nobody else waits for a server that may hang."""
        pauses = iter(PAUSES)
        while self._away:
            await asyncio.sleep(next(pauses, PAUSES[-1]))
            with suppress(*_OUTAGES):
                async with asyncio.timeout(ANSWER * 4):
                    await self.ping()
                self._away = False
        log.info("replica is there")

    async def _sample_primary(self) -> None:
        """Whatever the primary had written a minute ago, a replica has to have."""
        samples: deque[int] = deque(maxlen=int(LAG / SAMPLE))
        while True:
            with suppress(*_OUTAGES):
                written = await _written()
                if len(samples) == samples.maxlen:
                    self._least = samples[0]
                samples.append(written)
            await asyncio.sleep(SAMPLE)

    # ---- Having written ----

    async def note(self, subjects: Iterable[str]) -> None:
        """From when this returns, none of these is answered by a replica that lacks what is committed by now."""
        written: int | None
        try:
            written = await _written()
        except _OUTAGES as error:  # It has just committed. The primary answers them for as long as is remembered.
            log.warning("primary does not say how far it is", why=repr(error.__cause__ or error))
            written = None
        place = _FURTHER_THAN_ANY if written is None else f"{written:016x}"
        try:
            await asyncio.gather(
                *(self._link.call(_NOTE, _key(subject), place, REMEMBERED * 1000) for subject in subjects)
            )
        except LinkError:
            if written is not None:
                await self._until(written)

    async def _until(self, written: int) -> None:
        """Waits for the replica: other processes may still reach Redis/Valkey, and find nothing there."""
        try:
            async with asyncio.timeout(CATCH_UP), self._sessions() as db:
                while await self._position(db) < written:  # noqa: ASYNC110 -- it asks another process
                    await asyncio.sleep(LOOK)
        except _OUTAGES as error:
            log.warning("writes not noted", why=repr(error.__cause__ or error))


async def _written() -> int:
    async with reading() as db:
        return int(await (await db.connection()).scalar(_WRITTEN) or 0)


def _key(subject: str) -> str:
    return f"slipway:written:{{{subject}}}"
