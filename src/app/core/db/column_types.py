"""Column types of the application's tables: Python enums as checked text, and a type by its SQL spelling."""

from typing import Any
from weakref import WeakSet

from sqlalchemy import CheckConstraint, Column, ColumnElement, Enum, MetaData, String, Table, TypeDecorator, cast, event
from sqlalchemy import type_coerce as coerced
from sqlalchemy.dialects.postgresql import ARRAY, ENUM, array
from sqlalchemy.types import ARRAY as GENERIC_ARRAY
from sqlalchemy.types import UserDefinedType

_stored_as_text: WeakSet[Enum] = WeakSet()  # Columns may share one instance of a type.


class SqlType(UserDefinedType[Any]):
    """A column type by its SQL spelling, such as `ltree` or `vector(3)`.

    Migrations use it for the types that SQLAlchemy does not know, so that they import no code of the application.
    """

    cache_ok = True

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def get_col_spec(self, **_: Any) -> str:
        """Return the type as it stands in a statement."""
        return self.sql


def store_enums_as_text(metadata: MetaData) -> None:
    """Have enum columns of these tables, and of tables that are added later, stored as text with a CHECK constraint.

    A native enum of PostgreSQL cannot lose a label, cannot use a new label in the transaction that adds it, and
    outlives its table. A column that asks for `sqlalchemy.dialects.postgresql.ENUM` still gets a native enum.
    """

    def on_attach(column: Column[Any], table: Table) -> None:
        if table.metadata is metadata:
            _store_as_text(column, table)

    for table in metadata.tables.values():
        for column in table.columns:
            _store_as_text(column, table)
    event.listen(Column, "after_parent_attach", on_attach)


def _store_as_text(column: Column[Any], table: Table) -> None:
    enum, is_array = _enum_of(column)
    if enum is None or isinstance(enum, ENUM) or not (enum.native_enum or enum in _stored_as_text):
        return
    _stored_as_text.add(enum)
    enum.native_enum = False
    enum.length = None  # A longer label needs no other column type.
    if not enum.create_constraint:
        check = _has_known_labels(column, enum, is_array)
        table.append_constraint(CheckConstraint(check, name=f"{column.name}_values"))


def _enum_of(column: Column[Any]) -> tuple[Enum | None, bool]:
    """The enum that a column holds, and whether it holds an array of it."""
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    is_array = isinstance(kind, GENERIC_ARRAY)
    item = kind.item_type if isinstance(kind, GENERIC_ARRAY) else kind
    return item if isinstance(item, Enum) else None, is_array


def _has_known_labels(column: Column[Any], enum: Enum, is_array: bool) -> ColumnElement[bool]:
    if not is_array:
        return coerced(column, String()).in_(enum.enums)
    labels = cast(array(enum.enums), ARRAY(String))
    contained: ColumnElement[bool] = coerced(column, ARRAY(String)).contained_by(labels)
    return contained
