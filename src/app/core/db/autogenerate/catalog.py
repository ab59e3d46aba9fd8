"""A schema as PostgreSQL's catalog describes it, and the schema that the models describe, read the same way.

PostgreSQL normalises expressions and types: the text of a default or a constraint in the catalog is not the text of the
model. So the models' tables are created in schemas of their own, read from the catalog, and rolled back. The two
descriptions are then compared as they are.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, MetaData, text

_SHADOW = "slipway_models"

TableName = tuple[str | None, str]  # the schema, None for the default one; and the table
_TEXT_CAST = re.compile(r"::(?:character varying|text|bpchar)(?:\(\d+\))?(?:\[\])?")


def is_same(one: str | None, other: str | None) -> bool:
    """Return whether two definitions say the same.

    PostgreSQL spells the casts between kinds of text anew when it reads its own spelling: after a downgrade, `IN` on a
    `varchar` looks different.
    """
    if one is None or other is None:
        return one is other
    return _TEXT_CAST.sub("", one) == _TEXT_CAST.sub("", other)


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """A column.

    Attributes:
        type: the type by its SQL spelling.
        type_name: the type without length and dimensions.
        default: the default's expression, or the expression of a computed column.
        computed: whether the column is computed from others.
        identity: whether the column is an identity.
    """

    type: str
    type_name: str
    default: str | None
    computed: bool
    identity: bool


@dataclass(slots=True)
class Catalog:
    """Schemas, without what Alembic compares reliably by itself.

    Attributes:
        columns: by table and name.
        constraints: CHECK and EXCLUDE constraints, by table and name.
        indexes: without those of constraints, by table and name.
        types: enums and domains, by schema and name: the text behind `CREATE TYPE name` or `CREATE DOMAIN name`.
    """

    columns: dict[TableName, dict[str, ColumnFacts]] = field(default_factory=lambda: defaultdict(dict))
    constraints: dict[TableName, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    indexes: dict[TableName, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    types: dict[str, str] = field(default_factory=dict)


def read_database(connection: Connection, metadata: MetaData) -> Catalog:
    """Return what the database has, in the schemas of these tables."""
    default = connection.scalar(text("SELECT current_schema()"))
    own: dict[str, str | None] = {schema: schema for schema in _schemas_of(metadata)}
    return _read(connection, {default: None, **own})


def read_models(connection: Connection, metadata: MetaData) -> Catalog:
    """Return what these tables would be. Creates them in a transaction of its own, which is rolled back.

    Raises: sqlalchemy.exc.DBAPIError when PostgreSQL refuses them, such as for a type that it does not know.
    """
    shadows: dict[str | None, str] = {schema: f"{_SHADOW}_{schema}" for schema in _schemas_of(metadata)}
    path = connection.scalars(text("SELECT quote_ident(s) FROM unnest(current_schemas(false)) s")).all()
    savepoint = connection.begin_nested()
    try:
        for schema in (_SHADOW, *shadows.values()):
            connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        connection.execute(text(f"SET LOCAL search_path TO {', '.join([_SHADOW, *path])}"))
        connection.execution_options(schema_translate_map=shadows)
        metadata.create_all(connection, checkfirst=False)
        return _read(connection, {_SHADOW: None, **{shadow: schema for schema, shadow in shadows.items()}})
    finally:
        connection.execution_options(schema_translate_map=None)
        savepoint.rollback()


def _schemas_of(metadata: MetaData) -> list[str]:
    return sorted({table.schema for table in metadata.tables.values() if table.schema})


_COLUMNS = """
    SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS type,
           format_type(CASE t.typcategory WHEN 'A' THEN t.typelem ELSE t.oid END, NULL) AS type_name,
           pg_get_expr(d.adbin, d.adrelid, true) AS expression, a.attgenerated <> '' AS computed,
           a.attidentity <> '' AS identity
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname = ANY(:schemas)
"""
_CONSTRAINTS = """
    SELECT n.nspname, c.relname, o.conname, pg_get_constraintdef(o.oid, true) AS definition
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE o.contype IN ('c', 'x') AND n.nspname = ANY(:schemas)
"""
_INDEXES = """
    SELECT n.nspname, c.relname, x.relname AS name, pg_get_indexdef(x.oid, 0, true) AS definition
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY(:schemas) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = x.oid)
"""
_TYPES = """
    SELECT format_type(t.oid, NULL) AS name, CASE t.typtype
        WHEN 'e' THEN 'AS ENUM (' || (
            SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
            FROM pg_enum e WHERE e.enumtypid = t.oid
        ) || ')'
        ELSE 'AS ' || format_type(t.typbasetype, t.typtypmod) || coalesce(' DEFAULT ' || t.typdefault, '')
            || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END || coalesce((
                SELECT string_agg(
                    ' CONSTRAINT ' || quote_ident(o.conname) || ' ' || pg_get_constraintdef(o.oid, true), ''
                    ORDER BY o.conname
                ) FROM pg_constraint o WHERE o.contypid = t.oid AND o.contype = 'c'
            ), '')
        END AS definition
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd') AND n.nspname = ANY(:schemas)
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = t.oid AND deptype = 'e')
"""


def _read(connection: Connection, schemas: dict[str, str | None]) -> Catalog:
    """Read these schemas; the dictionary says what the models call each."""
    shadow = re.compile(rf'"?\b{_SHADOW}_(\w+)\b"?\.')  # as it stands in expressions

    def rows(query: str) -> Any:
        for row in connection.execute(text(query), {"schemas": list(schemas)}):
            yield [shadow.sub(r"\1.", value) if isinstance(value, str) else value for value in row]

    catalog = Catalog()
    for schema, table, name, *facts in rows(_COLUMNS):
        catalog.columns[schemas[schema], table][name] = ColumnFacts(*facts)
    for schema, table, name, definition in rows(_CONSTRAINTS):
        catalog.constraints[schemas[schema], table][name] = definition
    for schema, table, name, definition in rows(_INDEXES):
        catalog.indexes[schemas[schema], table][name] = definition
    catalog.types = dict(rows(_TYPES))
    return catalog
