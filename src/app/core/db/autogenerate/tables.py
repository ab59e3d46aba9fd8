"""Compares the constraints and indexes of a table that Alembic does not compare, or not in all their parts."""

import re
from collections.abc import Iterable
from typing import Any

from alembic.operations.ops import CreateCheckConstraintOp, CreateIndexOp, DropIndexOp, MigrateOperation, ModifyTableOps
from alembic.util.sqla_compat import _get_constraint_final_name
from sqlalchemy import CheckConstraint, Dialect, Table, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as create_dialect

from app.core.db.autogenerate.catalog import Catalog, TableName, is_same
from app.core.db.autogenerate.statements import Statement, as_text_clause, qualified, quote

_dialect: Dialect = create_dialect()  # type: ignore[no-untyped-call]
_PLAIN_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX \S+ ON \S+ USING btree \([\w\", ]+\)")


def compare_constraints(
    database: Catalog, models: Catalog, operations: ModifyTableOps, table: TableName, wanted: Table
) -> None:
    """Add what makes the CHECK and EXCLUDE constraints of an existing table those of the model."""
    old, new = database.constraints[table], models.constraints[table]
    checks = _by_name(item for item in wanted.constraints if isinstance(item, CheckConstraint))
    for name in sorted(old.keys() | new.keys()):
        if is_same(old.get(name), new.get(name)):
            continue
        if name in old:  # First of all: it may stand in the way of a column's new type.
            operations.ops.insert(0, _addition(table, name, old[name]).reverse())
        if name in new:
            check = checks.get(name)
            operations.ops.append(_check(check) if check is not None else _addition(table, name, new[name]))


def compare_indexes(
    database: Catalog, models: Catalog, operations: ModifyTableOps, table: TableName, wanted: Table
) -> None:
    """Correct what Alembic found: it compares neither predicates nor methods, and sees differences in spelling."""
    old, new = database.indexes[table], models.indexes[table]
    indexes = _by_name(wanted.indexes)
    found = {name for operation in operations.ops if (name := _index_name(operation)) is not None}
    for name in old.keys() & new.keys():
        if is_same(old[name], new[name]):
            operations.ops[:] = [operation for operation in operations.ops if _index_name(operation) != name]
        elif name not in found and name in indexes:
            operations.ops += [_removal(table, name, old[name]), CreateIndexOp.from_index(indexes[name])]


def keep_definitions(database: Catalog, operations: ModifyTableOps, table: TableName) -> None:
    """Have indexes that are dropped come back in the downgrade as they were, with all that Alembic does not read."""
    for place, operation in enumerate(operations.ops):
        if isinstance(operation, DropIndexOp):
            name = str(operation.index_name)
            definition = database.indexes[table].get(name, "")
            if definition and not _PLAIN_INDEX.fullmatch(definition):
                operations.ops[place] = _removal(table, name, definition)


def keep_exclusions(database: Catalog, operations: ModifyTableOps, table: TableName) -> None:
    """Have a table that is dropped come back in the downgrade with its EXCLUDE constraints."""
    for name, definition in sorted(database.constraints[table].items()):
        if definition.startswith("EXCLUDE"):
            operations.ops.append(Statement("", _addition(table, name, definition).sql))


def _check(constraint: CheckConstraint) -> CreateCheckConstraintOp:
    operation = CreateCheckConstraintOp.from_constraint(constraint)
    # As text: an expression of the model's columns would add itself to the model once more.
    options = {"literal_binds": True, "include_table": False}
    operation.condition = text(
        as_text_clause(str(constraint.sqltext.compile(dialect=_dialect, compile_kwargs=options)))
    )
    return operation


def _addition(table: TableName, name: str, definition: str) -> Statement:
    alter = f"ALTER TABLE {qualified(*table)}"
    return Statement(f"{alter} ADD CONSTRAINT {quote(name)} {definition}", f"{alter} DROP CONSTRAINT {quote(name)}")


def _removal(table: TableName, name: str, definition: str) -> Statement:
    return Statement(f"DROP INDEX {qualified(table[0], name)}", definition)


def _index_name(operation: MigrateOperation) -> str | None:
    return str(operation.index_name) if isinstance(operation, CreateIndexOp | DropIndexOp) else None


def _by_name(items: Iterable[Any]) -> dict[str, Any]:
    return {str(_get_constraint_final_name(item, _dialect)): item for item in items}
