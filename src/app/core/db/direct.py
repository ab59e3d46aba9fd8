"""The few questions that nearly every request asks, past SQLAlchemy's session: a quarter of the time.

A `Question` is a SELECT that is written and compiled as any other, once, and asked on the driver's own connection, out
of the same pool. `docs/benchmarks.md` has what that saves.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Float, Numeric, PoolProxiedConnection, Select, inspect
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state, manager_of_class
from sqlalchemy.util import greenlet_spawn
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.data_errors import hide_values
from app.core.db.database import Reader
from app.core.db.engine import DatabaseUnavailable, is_transient
from app.core.tracing.lifecycle import tracer

ModelT = TypeVar("ModelT", bound=SQLModel)
Found = dict[str, Any]  # a row's values, by the names of their columns
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement as the driver takes it.

    Attributes:
        text: with `$1`, `$2`.
        values: for each of those what it always is, or None.
        given: the others: which it is, the parameter's name, and how its value is converted.
        results: how what the driver finds is converted, by the column's name.
    """

    text: str
    values: list[Any]
    given: list[tuple[int, str, Convert]]
    results: dict[str, Convert]


class Question:
    """A SELECT that is compiled once."""

    def __init__(self, statement: Select[*tuple[Any, ...]]) -> None:
        """
        Args:
            statement: with a `bindparam` for each value that differs from one time to the next; its columns have no
                numbers with decimals.
        """
        self._statement = statement

    async def all(self, db: AsyncSession, **values: Any) -> list[Found]:
        """The rows, by the names of their columns.

        Asks past the session only where each of its statements is a transaction of its own (`reading`), without
        PgBouncer, and while nobody traces; in any other session it is one statement of that session.

        Args:
            db: where to ask.
            **values: of the parameters, by name.

        Raises: DatabaseUnavailable, KeyError for a missing value, or what the driver or SQLAlchemy says of a statement.
        """
        if isinstance(db, Reader) and not db.in_transaction() and tracer() is None:
            return await self._ask_directly(db, values)
        await db.flush()  # As a session does before it asks.
        connection = await db.connection()
        return [dict(row) for row in (await connection.execute(self._statement, values)).mappings()]

    async def first(self, db: AsyncSession, **values: Any) -> Found | None:
        """The first row that `all` finds, or None."""
        return next(iter(await self.all(db, **values)), None)

    async def _ask_directly(self, db: Reader, values: dict[str, Any]) -> list[Found]:
        compiled = self._compiled
        sent = compiled.values.copy()
        for place, name, convert in compiled.given:
            sent[place] = convert(values[name])
        rows = [dict(row) for row in await _ask(db, compiled.text, sent)]
        for row in rows:
            for name, convert in compiled.results.items():
                row[name] = convert(row[name])
        return rows

    @cached_property
    def _compiled(self) -> _Compiled:
        dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]  # it has no annotation
        compiled = self._statement.compile(dialect=dialect)
        if compiled.post_compile_params:
            raise TypeError("An IN is written out for each execution: take `= ANY`, or a session.")
        values: list[Any] = []
        given: list[tuple[int, str, Convert]] = []
        for place, name in enumerate(compiled.positiontup or ()):
            parameter = compiled.binds[name]
            convert = parameter.type.dialect_impl(dialect).bind_processor(dialect) or _as_it_is
            if parameter.required:
                given.append((place, name, convert))
            values.append(None if parameter.required else convert(compiled.params[name]))
        results: dict[str, Convert] = {}
        for column in self._statement.selected_columns:
            if isinstance(column.type, Numeric | Float):
                raise TypeError(f"{column}: only the answer says how a number with decimals is converted.")
            if found := column.type.dialect_impl(dialect).result_processor(dialect, None):
                results[column.name] = found
        return _Compiled(compiled.string, values, given, results)


def _as_it_is(value: Any) -> Any:
    return value


def detached(model: type[ModelT], found: Found) -> ModelT:
    """A row's object, as a session that was closed leaves one: as it is in the database, and in no session.

    Args:
        model: the table.
        found: a value for each of its columns, maybe beside others.
    """
    mapper: Mapper[ModelT] = inspect(model)
    row: ModelT = manager_of_class(model).new_instance()
    values = {name: found[name] for name in _columns(mapper)}
    row.__dict__.update(values)
    key = tuple(values[mapper.get_property_by_column(column).key] for column in mapper.primary_key)
    instance_state(row).key = mapper.identity_key_from_primary_key(key)
    return row


@cache
def _columns(mapper: Mapper[Any]) -> tuple[str, ...]:
    return tuple(column.key for column in mapper.column_attrs)


async def _ask(db: Reader, text: str, values: Sequence[Any]) -> list[Any]:
    engine: Any = db.sync_session.get_bind()
    try:
        pooled: PoolProxiedConnection = await greenlet_spawn(engine.raw_connection)
    except PoolTimeoutError as error:
        raise DatabaseUnavailable from error
    connection: Any = pooled.driver_connection
    try:
        rows = await fetch(connection, text, values)
    except BaseException as error:
        lost = connection.is_closed()
        if isinstance(error, asyncpg.PostgresError):
            pooled.close()
        else:
            await asyncio.shield(asyncio.create_task(_discard(pooled, error)))
        if isinstance(error, Exception) and (lost or is_transient(error)):
            raise DatabaseUnavailable from error
        hide_values(error)
        raise
    pooled.close()  # Into the pool. There is no transaction to end, so this waits for nothing.
    return rows


async def _discard(pooled: PoolProxiedConnection, error: BaseException) -> None:
    """Closes a connection whose statement the server may still be at, and has it stopped: nobody else is to get it."""
    try:
        await greenlet_spawn(pooled.invalidate, error)
    finally:
        pooled.close()


async def fetch(connection: Any, text: str, values: Sequence[Any]) -> list[Any]:
    """Asks the driver: the one place where a statement goes past SQLAlchemy's events."""
    rows: list[Any] = await connection.fetch(text, *values)
    return rows
