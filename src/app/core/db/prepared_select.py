"""The few statements that nearly every request runs, past SQLAlchemy's session: a quarter of the time.

A `PreparedSelect` is a SELECT that is written and compiled as any other, once, and run on the driver's own connection,
out of the same pool. `docs/benchmarks.md` has what that saves. Whatever it cannot do as a session does, it leaves to a
session: that is decided once, when the statement first runs on an engine.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg
import structlog
from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import greenlet_spawn
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from app.core.db.database import Reader
from app.core.db.detached import Build, builder_of, columns_of, needs_session
from app.core.db.engine import timed_out
from app.core.db.outages import DatabaseUnavailable, outage_of
from app.core.tracing.lifecycle import tracer

ResultT = TypeVar("ResultT")
T = TypeVar("T")
Convert = Callable[[Any], Any]

_ENGINE_EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")

log = structlog.stdlib.get_logger("slipway.database")


@dataclass(frozen=True, slots=True)
class _Flat:
    """A statement whose tables are replaced by their columns.

    Attributes:
        statement: the statement.
        builders: a function for each thing in a result, which gets it from a row's values.
        is_scalar: whether a result is that one thing, or a tuple of them.
    """

    statement: Any
    builders: list[Build]
    is_scalar: bool

    def results(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """What a session would return for these rows, its objects detached."""
        if self.is_scalar:
            (build,) = self.builders
            return [build(row) for row in rows]
        return [tuple(build(row) for build in self.builders) for row in rows]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A flat statement as the driver takes it.

    Attributes:
        text: with `$1`, `$2`.
        values: for each of those the constant value, or None.
        given: the others: the place, the parameter's name, and how its value is converted.
        converted: how what the driver returns is converted, by its place in a row.
    """

    text: str
    values: list[Any]
    given: list[tuple[int, str, Convert]]
    converted: list[tuple[int, Convert]]


class PreparedSelect(Generic[ResultT]):
    """A SELECT that is compiled once. Its results are in no session, as a closed session leaves them."""

    def __init__(self, statement: Select[*tuple[Any, ...]] | SelectOfScalar[ResultT]) -> None:
        """
        Args:
            statement: with a `bindparam` for each value that differs from one time to the next.
        """
        self._statement: Any = statement
        self._flat: _Flat | None = None
        self._is_flattened = False
        self._compiled: _Compiled | None = None
        self._compiled_for: Engine | None = None

    async def all(self, db: AsyncSession, **values: Any) -> list[ResultT]:
        """All results: rows, or single values where the statement selects one thing, as `db.exec` has them.

        Goes past the session only where each of its statements is a transaction of its own (`reading`), without
        PgBouncer, and while nobody traces; in any other session it is one statement of that session.

        Args:
            db: where to run it.
            **values: of the parameters, by name.

        Raises: DatabaseUnavailable, or what SQLAlchemy raises for a statement.
        """
        flat = self._flattened()
        if flat is None:
            return await self._in_session(db, values)
        if isinstance(db, Reader) and db.is_alone and tracer() is None:
            rows = await self._on_driver(db, flat, values)
            if rows is not None:
                return flat.results(rows)
        await db.flush()  # As a session does before it runs a statement.
        return flat.results((await (await db.connection()).execute(flat.statement, values)).all())

    async def first(self, db: AsyncSession, **values: Any) -> ResultT | None:
        """The first of `all`, or None."""
        return next(iter(await self.all(db, **values)), None)

    # ---- In a session ----

    async def _in_session(self, db: AsyncSession, values: dict[str, Any]) -> list[ResultT]:
        """In one of its own, on the same connection: its objects are detached at the end, and the caller's stay."""
        await db.flush()
        async with AsyncSession(bind=await db.connection(), expire_on_commit=False) as session:
            found = await session.exec(self._statement, params=values)
            return list(found.unique() if self._has_entity() else found)  # What is loaded by a join repeats its row.

    def _has_entity(self) -> bool:
        return any(isinstance(one["expr"], type) for one in self._statement.column_descriptions)

    # ---- On the driver's connection ----

    def _flattened(self) -> _Flat | None:
        if not self._is_flattened:
            self._flat, self._is_flattened = _flatten(self._statement), True
        return self._flat

    async def _on_driver(self, db: Reader, flat: _Flat, values: dict[str, Any]) -> list[list[Any]] | None:
        """The rows' values. None for what a session has to do, errors that are the statement's own included."""
        engine = db.sync_session.get_bind()
        try:
            if self._compiled_for is not engine:
                self._compiled = await _compiled(db, engine, flat)
                self._compiled_for = engine  # type: ignore[assignment]  # a reader is bound to an engine
            if (compiled := self._compiled) is None:
                return None
            sent = compiled.values.copy()
            for place, name, convert in compiled.given:
                sent[place] = convert(values[name])
            rows = [list(row) for row in await _with_driver(db, lambda driver: fetch(driver, compiled.text, sent))]
            for place, convert in compiled.converted:
                for row in rows:
                    row[place] = convert(row[place])
        except DatabaseUnavailable:
            raise
        except Exception as error:
            log.debug("select runs in the session", reason=type(error).__name__)  # It raises as any statement would.
            return None
        return rows


def _flatten(statement: Any) -> _Flat | None:
    columns: list[Any] = []
    builders: list[Build] = []
    for selected in statement.column_descriptions:
        model = selected["expr"]
        if not isinstance(model, type):  # a column, or another expression
            builders.append(_item(len(columns)))
            columns.append(model)
        elif statement._with_options or needs_session(model) is not None:
            return None
        else:
            builders.append(builder_of(model, len(columns)))
            columns.extend(columns_of(model))
    flat = statement.with_only_columns(*columns, maintain_column_froms=True)
    return _Flat(flat, builders, isinstance(statement, SelectOfScalar))


def _item(place: int) -> Build:
    return lambda row: row[place]


async def _compiled(db: Reader, engine: Any, flat: _Flat) -> _Compiled | None:
    """The statement for the driver; None, and a line in the log, when only a session can run it."""
    try:
        compiled = await _compile(db, engine, flat)
    except (DatabaseUnavailable, asyncpg.PostgresError):  # Another time it can be compiled.
        raise
    except Exception as error:
        log.info("select runs in sessions", reason=type(error).__name__)
        return None
    if compiled is None:
        log.info("select runs in sessions", reason="its text differs, or something listens for statements")
    return compiled


async def _compile(db: Reader, engine: Any, flat: _Flat) -> _Compiled | None:
    if any(getattr(engine.dispatch, event) for event in _ENGINE_EVENTS):
        return None  # Whoever listens for statements is to see these as well.
    dialect = engine.dialect
    compiled = flat.statement.compile(dialect=dialect)
    if compiled.post_compile_params:
        return None  # An IN is written out for each execution.
    values: list[Any] = []
    given: list[tuple[int, str, Convert]] = []
    for place, name in enumerate(compiled.positiontup or ()):
        parameter = compiled.binds[name]
        convert = parameter.type._cached_bind_processor(dialect) or _as_it_is
        if parameter.required:
            given.append((place, name, convert))
        values.append(None if parameter.required else convert(compiled.params[name]))
    types = await _with_driver(db, lambda driver: _types_of_answer(driver, compiled.string))
    selected = [column.type for column in flat.statement.selected_columns]
    if len(selected) != len(types):
        return None
    processors = [type_._cached_result_processor(dialect, oid) for type_, oid in zip(selected, types, strict=True)]
    converted = [(place, convert) for place, convert in enumerate(processors) if convert is not None]
    return _Compiled(compiled.string, values, given, converted)


def _as_it_is(value: Any) -> Any:
    return value


async def _types_of_answer(connection: Any, text: str) -> list[int]:
    """The numbers of the types of what PostgreSQL returns: how a number with decimals is converted depends on them."""
    prepared = await connection.prepare(text)
    return [attribute.type.oid for attribute in prepared.get_attributes()]


async def _with_driver(db: Reader, work: Callable[[Any], Awaitable[T]]) -> T:
    """The result of `work` on a connection of the pool. Raises: DatabaseUnavailable, and what the driver raises."""
    engine: Any = db.sync_session.get_bind()
    try:
        pooled: PoolProxiedConnection = await greenlet_spawn(engine.raw_connection)
    except PoolTimeoutError as error:
        raise DatabaseUnavailable from error
    connection: Any = pooled.driver_connection
    try:
        result = await work(connection)
    except BaseException as error:
        lost = connection.is_closed()
        if isinstance(error, asyncpg.PostgresError):
            pooled.close()
        else:
            await asyncio.shield(asyncio.create_task(_discard(pooled, error)))
        if isinstance(error, TimeoutError):
            raise timed_out(connection) from error
        if isinstance(error, Exception) and (lost or outage_of(error) is not None):
            raise (outage_of(error) or DatabaseUnavailable) from error
        raise
    pooled.close()  # Into the pool. There is no transaction to end, so this waits for nothing.
    return result


async def _discard(pooled: PoolProxiedConnection, error: BaseException) -> None:
    """Closes a connection whose statement the server may still be at, and has it stopped: nobody else is to get it."""
    try:
        await greenlet_spawn(pooled.invalidate, error)
    finally:
        pooled.close()


async def fetch(connection: Any, text: str, values: Sequence[Any]) -> list[Any]:
    """Runs a statement on the driver: the one place where a statement goes past SQLAlchemy's events."""
    rows: list[Any] = await connection.fetch(text, *values)
    return rows
