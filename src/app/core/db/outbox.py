"""What has to be dropped from the cache, written in the transaction that makes it wrong (a transactional outbox).

Whoever commits drops it at once. These rows are for when that fails, for when the process dies before it, and for
those who change data without a connection to the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Identity, text
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession


class CacheInvalidation(SQLModel, table=True):
    """The table. A row is done by whoever wrote it, or from `due_at` on by anybody."""

    __tablename__ = "cache_invalidation"

    id: int = Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))
    target: str = Field(description="A key, or a pattern of keys.")
    is_pattern: bool
    due_at: datetime = Field(index=True)


@dataclass(frozen=True, slots=True)
class Targets:
    """What to drop: keys, and patterns of keys."""

    keys: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys or self.patterns)


_RECORD = text(
    "INSERT INTO cache_invalidation (target, is_pattern, due_at)"
    " SELECT target, is_pattern, clock_timestamp() + make_interval(secs => :delay)"
    " FROM unnest(CAST(:targets AS text[]), CAST(:patterns AS boolean[])) AS given (target, is_pattern) RETURNING id"
)
_ALL = text("SELECT target, is_pattern FROM cache_invalidation ORDER BY id")
ANY_DUE = text("SELECT EXISTS (SELECT FROM cache_invalidation WHERE due_at <= clock_timestamp())")
_TAKE_DUE = text(
    "UPDATE cache_invalidation SET due_at = clock_timestamp() + make_interval(secs => :delay)"
    " WHERE id IN (SELECT id FROM cache_invalidation WHERE due_at <= clock_timestamp()"
    " ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED) RETURNING target, is_pattern, id"
)
_FORGET = text("DELETE FROM cache_invalidation WHERE id = ANY(CAST(:ids AS bigint[]))")
_MAKE_DUE = text("UPDATE cache_invalidation SET due_at = clock_timestamp() WHERE id = ANY(CAST(:ids AS bigint[]))")


async def record(db: AsyncSession, targets: Targets, delay: float) -> list[int]:
    """Writes down what is to be dropped; `delay` is after how many seconds others take over. Returns the rows' ids."""
    values = {
        "targets": [*targets.keys, *targets.patterns],
        "patterns": [False] * len(targets.keys) + [True] * len(targets.patterns),
        "delay": delay,
    }
    return list((await (await db.connection()).execute(_RECORD, values)).scalars())


async def everything(db: AsyncSession) -> Targets:
    """All that is written down, due or not."""
    return _targets((await (await db.connection()).execute(_ALL)).all())


async def is_any_due(db: AsyncSession) -> bool:
    """Whether there is something that others have left."""
    return bool(await (await db.connection()).scalar(ANY_DUE))


async def take_due(db: AsyncSession, most: int, delay: float) -> tuple[Targets, list[int]]:
    """Takes over what is due, once this transaction is committed, and the rows' ids. Two processes never take the same.

    After `delay` seconds the rows are due again, unless they are forgotten by then.
    """
    rows = (await (await db.connection()).execute(_TAKE_DUE, {"most": most, "delay": delay})).all()
    return _targets(rows), [row[2] for row in rows]


async def forget(db: AsyncSession, ids: Sequence[int]) -> None:
    """Removes rows that are done."""
    await (await db.connection()).execute(_FORGET, {"ids": ids})


async def make_due(db: AsyncSession, ids: Sequence[int]) -> None:
    """Leaves rows to anybody, from now on."""
    await (await db.connection()).execute(_MAKE_DUE, {"ids": ids})


def _targets(rows: Sequence[Any]) -> Targets:
    found = {(row[0], row[1]) for row in rows}
    return Targets(
        tuple(sorted(target for target, is_pattern in found if not is_pattern)),
        tuple(sorted(target for target, is_pattern in found if is_pattern)),
    )
