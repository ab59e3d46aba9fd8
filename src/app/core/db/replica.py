"""Reads on a replica, where nobody is shown less than what they have written themselves.

Whoever has written something is noted in Redis/Valkey, with the place in the primary's log (LSN) up to which a replica
has to have come before it may answer them. Until then, and whenever that cannot be told, the primary does. Others may
see what was true a moment ago. What is cached has to be read on the primary: it would be kept for everybody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import reading
from app.core.db.engine import DatabaseUnavailable
from app.core.utils.redis_link import AnyLink, LinkError, Script

REMEMBERED: Final = 3600  # seconds for which it is known who has written: no replica may be further behind
LEFT_ALONE: Final = 1.0  # seconds for which a replica that did not answer is not asked again
CATCH_UP: Final = 1.0  # seconds that a caller waits for the replica when it cannot be noted that they have written
LOOK: Final = 0.01  # seconds between two looks at how far it is

READS: Final = Counter(
    "slipway_database_reads",
    "Reading sessions by who had them: replica, or primary and why: behind, away, unknown (who has written what).",
    ["answered_by"],
)

Dependency = TypeVar("Dependency", bound=Callable[..., Any])

log = structlog.stdlib.get_logger("slipway.database")

# KEYS: somebody. ARGV: a place in the log, for how many milliseconds. The later of two places stays.
_NOTE = Script(
    """
local known = redis.call('GET', KEYS[1])
if not known or known < ARGV[1] then known = ARGV[1] end
redis.call('SET', KEYS[1], known, 'PX', ARGV[2])
return 1
"""
)
_LOOK_UP = Script("#!lua flags=no-writes\nreturn redis.call('GET', KEYS[1])")

# As a number: a place is written as two.
_WRITTEN = text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS numeric)")
_REPLAYED = text(
    "SELECT CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
    " - '0/0' AS numeric)"
)


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
            engine.execution_options(postgresql_readonly=True), class_=AsyncSession, expire_on_commit=False
        )
        self._link = link
        self._away_until = 0.0  # on the loop's clock

    async def ping(self) -> None:
        """Returns when it answers. Raises: DatabaseUnavailable."""
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
            why = await self._enter(stack, subjects)
            if isinstance(why, str):
                READS.labels(why).inc()
                yield await stack.enter_async_context(reading())
            else:
                READS.labels("replica").inc()
                yield why

    async def _enter(self, stack: AsyncExitStack, subjects: Sequence[str]) -> AsyncSession | str:
        """A session on the replica, or why there is none."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            return "away"
        try:
            needed = await self._needed_by(subjects)
        except LinkError:
            return "unknown"
        inner = AsyncExitStack()
        try:
            db = await inner.enter_async_context(self._sessions())
            position = await self._position(db)
        except (DatabaseUnavailable, TimeoutError) as error:
            await inner.aclose()
            self._away_until = loop.time() + LEFT_ALONE
            log.warning("replica is away", why=repr(error.__cause__ or error))
            return "away"
        except BaseException:
            await inner.aclose()
            raise
        if position < needed:
            await inner.aclose()
            return "behind"
        stack.push_async_exit(inner)
        return db

    async def _needed_by(self, subjects: Sequence[str]) -> int:
        noted = await asyncio.gather(*(self._link.call(_LOOK_UP, _key(subject)) for subject in subjects))
        return max((int(place, 16) for place in noted if place is not None), default=0)

    async def _position(self, db: AsyncSession) -> int:
        return int(await (await db.connection()).scalar(_REPLAYED) or 0)

    # ---- Having written ----

    async def note(self, subjects: Iterable[str]) -> None:
        """From when this returns, none of these is answered by a replica that lacks what is committed by now."""
        try:
            async with reading() as db:
                written = int(await (await db.connection()).scalar(_WRITTEN) or 0)
        except DatabaseUnavailable as error:  # It has just committed: nobody knows what it will show them.
            log.warning("writes not noted", why=repr(error.__cause__ or error))
            return
        place = f"{written:016x}"
        try:
            await asyncio.gather(
                *(self._link.call(_NOTE, _key(subject), place, REMEMBERED * 1000) for subject in subjects)
            )
        except LinkError:
            await self._until(written)

    async def _until(self, written: int) -> None:
        """Waits for the replica: other processes may still reach Redis/Valkey, and find nothing there."""
        try:
            async with asyncio.timeout(CATCH_UP), self._sessions() as db:
                while await self._position(db) < written:  # noqa: ASYNC110 -- it asks another process
                    await asyncio.sleep(LOOK)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("writes not noted", why=repr(error.__cause__ or error))


def _key(subject: str) -> str:
    return f"slipway:written:{{{subject}}}"
