"""Failed logins in the database, where they count on every server and with Valkey down."""

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import Integer, case, cast, delete, func, or_
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.models.login_throttle import LoginThrottle

FIRST_LOCK = timedelta(seconds=1)  # doubles with each further failure
LONGEST_LOCK = timedelta(minutes=15)
FORGOTTEN_AFTER = timedelta(hours=1)  # as many failures as are free


class CRUDLoginThrottle:
    """Counts failures under keys, and locks a key for a while when there were too many.

    A key that is locked counts nothing, so that nobody can keep it locked by asking on and on.
    """

    async def is_locked(self, db: AsyncSession, keys: Mapping[str, int]) -> bool:
        """Whether any of the keys is locked. Until this transaction ends, nobody else asks or counts under them.

        A lock on the rows would not do: there is none yet before the first failure.
        """
        for key in sorted(keys):  # One order, hence no deadlock.
            await db.exec(select(func.pg_advisory_xact_lock(func.hashtextextended(f"login_throttle {key}", 0))))
        rows = select(LoginThrottle).where(col(LoginThrottle.key).in_(keys))
        now = utc_now()
        return any(row.locked_until is not None and row.locked_until > now for row in await db.exec(rows))

    async def fail(self, db: AsyncSession, keys: Mapping[str, int]) -> bool:
        """Counts a failure under each key and says whether that locked one.

        Args:
            keys: by key, how many failures go before the first lock.
        """
        locked = [await self._fail(db, key, keys[key]) for key in sorted(keys)]
        return any(locked)

    async def _fail(self, db: AsyncSession, key: str, free: int) -> bool:
        now = utc_now()
        table = LoginThrottle
        # They are forgotten one by one: an address with many people behind it never is without a failure for long.
        seconds_each = FORGOTTEN_AFTER.total_seconds() / free
        forgotten = func.floor(func.extract("epoch", now - col(table.last_failure_at)) / seconds_each)
        failures = cast(func.greatest(col(table.failures) - forgotten, 0) + 1, Integer)
        over = func.least(failures - free, 20)
        lock = func.least(FIRST_LOCK * func.power(2, over - 1), LONGEST_LOCK)
        statement = (
            insert(table)
            .values(key=key, failures=1, last_failure_at=now)
            .on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "failures": failures,
                    "last_failure_at": now,
                    "locked_until": case((over > 0, now + lock), else_=None),
                },
                where=or_(col(table.locked_until).is_(None), col(table.locked_until) <= now),
            )
            .returning(col(table.locked_until))
        )
        return (await db.exec(statement)).scalar_one_or_none() is not None

    async def forgive(self, db: AsyncSession, *keys: str) -> None:
        """Forgets all failures under these keys."""
        await db.exec(delete(LoginThrottle).where(col(LoginThrottle.key).in_(keys)))

    async def purge(self, db: AsyncSession) -> int:
        """Removes what would be forgotten anyway. Says how many."""
        # No lock lasts as long as that.
        old = col(LoginThrottle.last_failure_at) < utc_now() - FORGOTTEN_AFTER
        return (await db.exec(delete(LoginThrottle).where(old))).rowcount


crud_login_throttle = CRUDLoginThrottle()
