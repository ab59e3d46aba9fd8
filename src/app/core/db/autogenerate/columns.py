"""Compares the columns of a table, and writes what adding or changing one needs beyond Alembic's own operation."""

import json
from datetime import datetime
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _alter_column, _render_server_default, renderers
from alembic.operations.ops import AddColumnOp, AlterColumnOp, DropColumnOp, MigrateOperation, ModifyTableOps
from alembic.util import PriorityDispatchResult
from sqlalchemy import Column, ColumnElement, DefaultClause, Dialect, Identity, Table, Uuid, cast, literal, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as create_dialect
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.type_api import TypeEngine
from sqlalchemy.types import ARRAY, NullType

from app.core.db.autogenerate.catalog import Catalog, TableName, is_same
from app.core.db.autogenerate.statements import Statement, as_text_clause, qualified, quote
from app.core.db.column_types import SqlType

CONTINUE, STOP = PriorityDispatchResult.CONTINUE, PriorityDispatchResult.STOP
_dialect: Dialect = create_dialect()  # type: ignore[no-untyped-call]


class ConvertColumnOp(AlterColumnOp):
    """A change of a column's type between kinds that PostgreSQL does not convert by itself."""


@renderers.dispatch_for(ConvertColumnOp)
def _render(context: AutogenContext, operation: ConvertColumnOp) -> str:
    assert operation.modify_type is not None  # noqa: S101 -- what makes it one
    using = f"{quote(operation.column_name)}::{operation.modify_type.compile(_dialect)}"
    return f"{_alter_column(context, operation)[:-1]}, postgresql_using={using!r})"


class ChangeIdentityOp(AlterColumnOp):
    """A change to, from or of an identity column, which needs to know what was there."""


@renderers.dispatch_for(ChangeIdentityOp)
def _render_identity_change(context: AutogenContext, operation: ChangeIdentityOp) -> str:
    existing = _render_server_default(operation.existing_server_default or None, context)
    return f"{_alter_column(context, operation)[:-1]}, existing_server_default={existing})"


def compare_type(
    database: Catalog,
    models: Catalog,
    change: AlterColumnOp,
    table: TableName,
    existing: Column[Any],
    wanted: Column[Any],
) -> PriorityDispatchResult:
    """Set the operation's new type when the type differs, by its SQL spelling."""
    describe(database, table, existing)
    change.existing_type = existing.type
    if database.columns[table][existing.name].type != models.columns[table][wanted.name].type:
        change.modify_type = wanted.type
    return STOP


def compare_default(
    database: Catalog,
    models: Catalog,
    change: AlterColumnOp,
    table: TableName,
    existing: Column[Any],
    wanted: Column[Any],
) -> PriorityDispatchResult:
    """Set the operation's new default when the expression differs. Identities are left to Alembic."""
    old, new = database.columns[table][existing.name], models.columns[table][wanted.name]
    if old.identity or new.identity:
        return CONTINUE
    if old.computed or new.computed:
        return STOP  # see recompute_columns
    change.existing_server_default = existing.server_default
    both_serial = all((default or "").startswith("nextval(") for default in (old.default, new.default))
    if not is_same(old.default, new.default) and not both_serial:
        change.modify_server_default = wanted.server_default
    return STOP


def describe(database: Catalog, table: TableName, column: Column[Any]) -> None:
    """Give a column of the database what SQLAlchemy does not read: an unknown type, and a default with a colon."""
    facts = database.columns[table][column.name]
    if isinstance(column.type, NullType):
        column.type = SqlType(facts.type)
    if facts.default is not None and isinstance(column.server_default, DefaultClause):
        column.server_default = DefaultClause(text(as_text_clause(facts.default)))


def recompute_columns(
    database: Catalog, models: Catalog, operations: ModifyTableOps, table: TableName, existing: Table, wanted: Table
) -> None:
    """Add what changes the expressions of computed columns."""
    old, new = database.columns[table], models.columns[table]
    for name in sorted(old.keys() & new.keys()):
        if not (old[name].computed or new[name].computed) or old[name] == new[name]:
            continue
        if old[name].computed and new[name].computed and old[name].type == new[name].type:
            alter = f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(name)} SET EXPRESSION AS "
            operations.ops.append(Statement(f"{alter}({new[name].default})", f"{alter}({old[name].default})"))
        else:
            schema, table_name = table
            operations.ops.append(DropColumnOp.from_column_and_tablename(schema, table_name, existing.c[name]))
            operations.ops.append(AddColumnOp.from_column_and_tablename(schema, table_name, wanted.c[name]))


def complete(operations: ModifyTableOps) -> list[str]:
    """Write the table's operations so that they work on rows that exist, and without casts by hand.

    Returns: the names of added columns that need a value in each existing row, and for which there is none.
    """
    without_value: list[str] = []
    complete: list[MigrateOperation] = []
    for operation in operations.ops:
        if isinstance(operation, AddColumnOp):
            complete += _fill(operation, without_value)
        elif isinstance(operation, AlterColumnOp) and operation.modify_type is not None:
            complete += _convert(operation)
        elif isinstance(operation, AlterColumnOp) and _is_identity_change(operation):
            operation.__class__ = ChangeIdentityOp
            complete.append(operation)
        else:
            complete.append(operation)
    operations.ops[:] = complete
    return without_value


def _is_identity_change(change: AlterColumnOp) -> bool:
    defaults = change.existing_server_default, change.modify_server_default
    return change.modify_server_default is not False and any(isinstance(default, Identity) for default in defaults)


def _convert(change: AlterColumnOp) -> list[MigrateOperation]:
    """A default cannot be cast along: it goes before the type changes, and comes back after."""
    old, new = change.existing_type, change.modify_type
    assert isinstance(old, TypeEngine) and isinstance(new, TypeEngine)  # noqa: S101, PT018 -- set by compare_type
    if old._type_affinity is new._type_affinity and not isinstance(old, SqlType | ARRAY):
        return [change]
    before = change.existing_server_default
    after = before if change.modify_server_default is False else change.modify_server_default
    change.__class__ = ConvertColumnOp
    change.modify_server_default = False
    change.existing_server_default = None
    drop, add = _default_change(change, old), _default_change(change, new)
    drop.existing_server_default, drop.modify_server_default = before, None
    add.existing_server_default, add.modify_server_default = None, after
    return [*([drop] if before else []), change, *([add] if after else [])]


def _default_change(change: AlterColumnOp, type_: TypeEngine[Any]) -> AlterColumnOp:
    return AlterColumnOp(
        change.table_name,
        change.column_name,
        schema=change.schema,
        existing_type=type_,
        existing_nullable=change.existing_nullable,
    )


def _fill(addition: AddColumnOp, without_value: list[str]) -> list[MigrateOperation]:
    """Rows that exist get the model's default: as the column's default, which is taken away again."""
    column = addition.column
    if column.nullable or column.server_default is not None:
        return [addition]  # Computed columns and identities are server defaults too.
    default = _default_of(column)
    if default is None:
        without_value.append(f"{addition.table_name}.{column.name}")
        return [addition]
    filled = column._copy()
    filled.server_default = DefaultClause(text(as_text_clause(default)))
    alter = f"ALTER TABLE {qualified(addition.schema, addition.table_name)} ALTER COLUMN {quote(column.name)}"
    return [
        AddColumnOp(addition.table_name, filled, schema=addition.schema),
        Statement(f"{alter} DROP DEFAULT", ""),
    ]


def _default_of(column: Column[Any]) -> str | None:
    """The default that the model gives in Python, as SQL; None when it has no meaning for rows that exist."""
    default: Any = column.default
    if default is None or default.is_sequence or default.is_clause_element:
        return None
    if not default.is_callable:
        return _literal(default.arg, column.type)
    if isinstance(column.type, Uuid):
        return "gen_random_uuid()"
    value = default.arg(None)
    if isinstance(value, datetime):
        return "now()"
    return _literal(value, column.type) if isinstance(value, list | dict) else None


def _literal(value: object, type_: TypeEngine[Any]) -> str | None:
    if isinstance(value, list | dict) and not isinstance(type_, ARRAY):
        return str(literal(json.dumps(value)).compile(dialect=_dialect, compile_kwargs={"literal_binds": True}))
    expression: ColumnElement[Any] = literal(value, type_)
    if isinstance(type_, ARRAY):
        expression = cast(expression, type_)
    try:
        return str(expression.compile(dialect=_dialect, compile_kwargs={"literal_binds": True}))
    except CompileError:  # a type without literals
        return None
