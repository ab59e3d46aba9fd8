"""Writes what creates, changes and drops the native enums and domains of PostgreSQL that columns have."""

import re
from collections.abc import Iterator

from alembic.operations.ops import MigrateOperation, UpgradeOps

from app.core.db.autogenerate.catalog import Catalog, TableName
from app.core.db.autogenerate.statements import Statement, qualified, quote


def compare_types(database: Catalog, models: Catalog, operations: UpgradeOps) -> None:
    """Add what creates a type before its first column, drops it after its last one, or makes it anew.

    An enum cannot lose a label, and a new label cannot be used before the transaction that adds it ends. So a changed
    type takes the place of the former one, which rewrites the tables that have it.
    """
    first: list[MigrateOperation] = []
    for name, definition in models.types.items():
        if name not in database.types:
            first.append(_creation(name, definition))
        elif database.types[name] != definition:
            first += _replacement(database, name, database.types[name], definition)
    operations.ops[:0] = first
    for name, definition in database.types.items():
        if any(_columns_of(database, name)) and not any(_columns_of(models, name)):
            operations.ops.append(_creation(name, definition).reverse())


def _creation(name: str, definition: str) -> Statement:
    kind = _kind(definition)
    return Statement(f"CREATE {kind} {name} {definition}", f"DROP {kind} {name}")


def _kind(definition: str) -> str:
    return "TYPE" if definition.startswith("AS ENUM") else "DOMAIN"


def _replacement(database: Catalog, name: str, old: str, new: str) -> list[Statement]:
    """What stands in the way goes, the columns move to the new type, and it comes back; the same in the downgrade."""
    schema, _, bare = name.rpartition(".")
    former = quote(f"{bare.strip(chr(34))}_former")
    rename = f"ALTER {_kind(old)} {name} RENAME TO {former}"
    drop = f"DROP {_kind(old)} {schema}.{former}" if schema else f"DROP {_kind(old)} {former}"
    obstacles = [*_defaults(database, name), *_expressions(database, name)]
    return [
        *(Statement(takes, gives) for takes, gives in obstacles),
        Statement(rename, drop),
        Statement(f"CREATE {_kind(new)} {name} {new}", ""),
        *(Statement(move, move) for move in _moves(database, name)),
        Statement("", f"CREATE {_kind(old)} {name} {old}"),
        Statement(drop, rename),
        *(Statement(gives if _is_possible(gives, old, new) else "", takes) for takes, gives in reversed(obstacles)),
    ]


def _moves(database: Catalog, name: str) -> Iterator[str]:
    for table, column in _columns_of(database, name):
        dimensions = "[]" if database.columns[table][column].type.endswith("[]") else ""
        using = f"{quote(column)}::text{dimensions}::{name}{dimensions}"
        yield f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column)} TYPE {name}{dimensions} USING {using}"


def _defaults(database: Catalog, name: str) -> Iterator[tuple[str, str]]:
    for table, column in _columns_of(database, name):
        default = database.columns[table][column].default
        if default is not None:
            alter = f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column)}"
            yield f"{alter} DROP DEFAULT", f"{alter} SET DEFAULT {default}"


def _expressions(database: Catalog, name: str) -> Iterator[tuple[str, str]]:
    """Constraints and partial indexes that name the type: PostgreSQL does not read them anew with another type."""
    named = re.compile(rf"::{re.escape(name)}(?![\w$])")
    for table in {table for table, _ in _columns_of(database, name)}:
        alter = f"ALTER TABLE {qualified(*table)}"
        for constraint, definition in database.constraints[table].items():
            if named.search(definition):
                drop = f"{alter} DROP CONSTRAINT {quote(constraint)}"
                yield drop, f"{alter} ADD CONSTRAINT {quote(constraint)} {definition}"
        for index, definition in database.indexes[table].items():
            if named.search(definition):
                yield f"DROP INDEX {qualified(table[0], index)}", definition


def _is_possible(statement: str, old: str, new: str) -> bool:
    """Whether a statement names no label that the new definition lacks."""
    gone = set(re.findall(r"'(?:[^']|'')*'", old)) - set(re.findall(r"'(?:[^']|'')*'", new))
    return not any(label in statement for label in gone)


def _columns_of(catalog: Catalog, name: str) -> Iterator[tuple[TableName, str]]:
    for table, columns in catalog.columns.items():
        for column, facts in columns.items():
            if facts.type_name == name:
                yield table, column
