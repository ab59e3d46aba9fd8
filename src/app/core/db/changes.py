"""Changes of rows as events: what a transaction has made of the rows of a table, compared just before its commit.

Rows are noted when they are flushed, and before an UPDATE or DELETE statement of the ORM runs, so that it makes no
difference which function changes them. `INSERT` statements, statements on a connection, and other programs are not
seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, event, select
from sqlalchemy.orm import ORMExecuteState, Session, object_session
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

Values = Mapping[str, Any]  # of a row, by the names of its attributes
_Noted = dict[tuple[str, Any], Values | None]

MAX_KEYS: Final = 10_000  # of one statement, whose parameters the driver counts in 16 bits
_NOTED: Final = "slipway_changed_rows"  # in a session's info: the rows as they were before, None for a new one


class ChangeTracking(Session):
    """Marks a class of sessions that note changes. Without subscriptions sessions do not, which costs nothing."""


@dataclass(frozen=True, slots=True)
class _Tracked:
    """A table whose rows are compared.

    Attributes:
        key, key_name: the primary key, and the name of its attribute.
        columns: what is compared, by the names of the model's attributes; the primary key is one of them.
        events_of: makes events of a row as it was before (None: it was not there) and as it is (None: it is gone).
    """

    key: Column[Any]
    key_name: str
    columns: dict[str, Column[Any]]
    events_of: Callable[[Values | None, Values | None], Iterable[object]]

    def read(
        self, connection: Connection, *where: Any, lock: bool = False, parameters: Values | None = None
    ) -> dict[Any, Values]:
        wanted = select(*(column.label(name) for name, column in self.columns.items())).where(*where)
        if lock:
            wanted = wanted.with_for_update(key_share=True)
        rows = connection.execute(wanted, parameters or {}).mappings()
        return {row[self.key_name]: dict(row) for row in rows}

    def read_keys(self, connection: Connection, keys: Sequence[Any], *, lock: bool = False) -> dict[Any, Values]:
        """The rows with these primary keys."""
        found: dict[Any, Values] = {}
        for start in range(0, len(keys), MAX_KEYS):
            found |= self.read(connection, self.key.in_(keys[start : start + MAX_KEYS]), lock=lock)
        return found


_tracked: dict[str, _Tracked] = {}  # by table


def track_changes(
    model: type[SQLModel],
    events_of: Callable[[Values | None, Values | None], Iterable[object]],
    *,
    without: Iterable[str] = (),
) -> None:
    """Have the changes of a table's rows published as events.

    Call it once, in the module that defines the events: a subscription to one of them imports that module.

    Args:
        model: the table, with one column as its primary key.
        events_of: makes events of a row's values before and after; None stands for a row that is not there.
        without: attributes that are neither compared nor in the values. Those with `Field(repr=False)` never are.
    """
    mapper: Any = model.__mapper__  # type: ignore[attr-defined]  # SQLAlchemy adds it to tables
    hidden = {name for name, field in model.model_fields.items() if field.repr is False} | set(without)
    columns = {one.key: one.columns[0] for one in mapper.column_attrs if one.key not in hidden}
    (key,) = mapper.primary_key
    key_name = mapper.get_property_by_column(key).key
    _tracked[mapper.local_table.name] = _Tracked(key, key_name, columns, events_of)
    event.listen(model, "after_insert", _note_new)
    event.listen(model, "before_update", _note_changed)
    event.listen(model, "before_delete", _note_removed)


def _note_new(mapper: Any, connection: Connection, row: Any) -> None:
    if (noted := _noted_of(object_session(row))) is not None:
        table = mapper.local_table.name
        noted.setdefault((table, mapper.primary_key_from_instance(row)[0]), None)


def _note_changed(mapper: Any, connection: Connection, row: Any) -> None:
    session = object_session(row)
    if session is not None and session.is_modified(row):  # It is flushed also when it was set to what it was.
        _note_removed(mapper, connection, row)


def _note_removed(mapper: Any, connection: Connection, row: Any) -> None:
    if (noted := _noted_of(object_session(row))) is not None:
        table = mapper.local_table.name
        key = mapper.primary_key_from_instance(row)[0]
        if (table, key) not in noted:
            _note(noted, table, _tracked[table].read_keys(connection, [key], lock=True))


def note_statement(state: ORMExecuteState) -> None:
    """Note the rows that an UPDATE or DELETE of the ORM is about to change. Listens to `do_orm_execute`."""
    mapper: Any = state.bind_mapper
    if not (state.is_update or state.is_delete) or mapper is None:
        return
    table = getattr(mapper.local_table, "name", "")
    tracked, noted = _tracked.get(table), _noted_of(state.session)
    if tracked is None or noted is None:
        return
    connection = state.session.connection()
    if isinstance(state.parameters, Sequence):  # An UPDATE of several rows by their primary keys.
        ids = [values[tracked.key_name] for values in state.parameters if tracked.key_name in values]
        _note(noted, table, tracked.read_keys(connection, ids, lock=True))
        return
    condition = getattr(state.statement, "whereclause", None)
    where = [] if condition is None else [condition]
    _note(noted, table, tracked.read(connection, *where, lock=True, parameters=state.parameters))


def _note(noted: _Noted, table: str, rows: Mapping[Any, Values]) -> None:
    for key, values in rows.items():
        noted.setdefault((table, key), values)


def _noted_of(session: Session | None) -> _Noted | None:
    if not isinstance(session, ChangeTracking):
        return None
    noted: _Noted = session.info.setdefault(_NOTED, {})
    return noted


def forget_changes(session: Session) -> None:
    """Forget what was noted: the transaction was rolled back."""
    session.info.pop(_NOTED, None)


async def take_events(db: AsyncSession) -> list[object]:
    """Flush, and return the events of what has changed since the last call, in the order in which rows were noted."""
    if db.new or db.dirty or db.deleted:
        await db.flush()
    noted: _Noted = db.info.pop(_NOTED, {})
    if not noted:
        return []
    return await db.run_sync(lambda session: list(_events_of(session.connection(), noted)))


def _events_of(connection: Connection, noted: _Noted) -> Iterator[object]:
    current: dict[tuple[str, Any], Values] = {}
    for table in {table for table, _ in noted}:
        tracked = _tracked[table]
        ids = [key for name, key in noted if name == table]
        found = tracked.read_keys(connection, ids)
        current |= {(table, key): values for key, values in found.items()}
    for row, before in noted.items():
        after = current.get(row)
        if before != after:  # Changed and changed back, or in a savepoint that was rolled back, is no change.
            yield from _tracked[row[0]].events_of(before, after)
