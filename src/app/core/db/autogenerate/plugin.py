"""Alembic's plugin: compares the database with what PostgreSQL makes of the models, and completes the operations."""

from dataclasses import dataclass, field
from typing import Final

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import AlterColumnOp, ModifyTableOps, UpgradeOps
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from alembic.util.messaging import msg
from sqlalchemy import Column, Dialect, MetaData, Table, inspect
from sqlalchemy.exc import DBAPIError

from app.core.db.autogenerate import columns, named_types, order, tables
from app.core.db.autogenerate.catalog import Catalog, read_database, read_models

NAME: Final = "slipway.catalog"
_KEY: Final = "slipway_comparison"
CONTINUE, STOP = PriorityDispatchResult.CONTINUE, PriorityDispatchResult.STOP


@dataclass
class _Comparison:
    """One run of autogenerate.

    Attributes:
        models: None when PostgreSQL refuses the models' tables; then Alembic's own comparison has to do.
        dropped: tables that the database has and the models lack.
        without_value: added columns for which the rows that exist have no value.
    """

    database: Catalog
    models: Catalog | None
    dropped: list[Table] = field(default_factory=list)
    without_value: list[str] = field(default_factory=list)


def _begin(context: AutogenContext, operations: UpgradeOps) -> PriorityDispatchResult:
    connection, metadata = context.connection, context.metadata
    assert connection is not None and isinstance(metadata, MetaData)  # noqa: S101, PT018 -- env.py gives both
    _free_constraints(metadata, connection.dialect)
    database = read_database(connection, metadata)
    try:
        models = read_models(connection, metadata)
    except DBAPIError as error:
        models = None
        msg(f"PostgreSQL refuses the models, which are compared by name only: {error.orig}")
    context.opts[_KEY] = _Comparison(database, models)
    return CONTINUE


def _free_constraints(metadata: MetaData, dialect: Dialect) -> None:
    """Alembic leaves constraints that types bring to the types, which are plain ones in a migration."""
    compiler = dialect.ddl_compiler(dialect, None)  # type: ignore[arg-type]  # of no statement
    for table in metadata.tables.values():
        for constraint in table.constraints:
            if constraint._create_rule is not None and constraint._create_rule(compiler):
                constraint._type_bound = False


def _compare_type(
    context: AutogenContext,
    change: AlterColumnOp,
    schema: str | None,
    table: str,
    column: str,
    existing: Column[object],
    wanted: Column[object],
) -> PriorityDispatchResult:
    comparison: _Comparison = context.opts[_KEY]
    if comparison.models is None:
        return CONTINUE
    return columns.compare_type(comparison.database, comparison.models, change, (schema, table), existing, wanted)


def _compare_default(
    context: AutogenContext,
    change: AlterColumnOp,
    schema: str | None,
    table: str,
    column: str,
    existing: Column[object],
    wanted: Column[object],
) -> PriorityDispatchResult:
    comparison: _Comparison = context.opts[_KEY]
    if comparison.models is None:
        return STOP  # Alembic's comparison fails for JSON, and what fails ends the transaction.
    return columns.compare_default(comparison.database, comparison.models, change, (schema, table), existing, wanted)


def _compare_table(
    context: AutogenContext,
    operations: ModifyTableOps,
    schema: str | None,
    table: str,
    existing: Table | None,
    wanted: Table | None,
) -> PriorityDispatchResult:
    comparison: _Comparison = context.opts[_KEY]
    database, models, name = comparison.database, comparison.models, (schema, table)
    for column in existing.columns if existing is not None else ():
        columns.describe(database, name, column)
    if existing is not None and wanted is None:
        comparison.dropped.append(existing)
        tables.keep_exclusions(database, operations, name)
    elif existing is not None and wanted is not None and models is not None:
        tables.compare_indexes(database, models, operations, name, wanted)
        tables.compare_constraints(database, models, operations, name, wanted)
        columns.recompute_columns(database, models, operations, name, existing, wanted)
    tables.keep_definitions(database, operations, name)
    if existing is not None:
        comparison.without_value += columns.complete(operations)
    return CONTINUE


def _end(context: AutogenContext, operations: UpgradeOps) -> PriorityDispatchResult:
    comparison: _Comparison = context.opts[_KEY]
    assert isinstance(context.metadata, MetaData)  # noqa: S101 -- see _begin
    order.create_in_order(operations)
    order.drop_in_order(operations, comparison.dropped)
    if comparison.models is not None:
        named_types.compare_types(comparison.database, comparison.models, operations)
    order.create_schemas(operations, context.metadata, set(inspect(context.connection).get_schema_names()))
    for column in comparison.without_value:
        msg(f"{column} may not be NULL and has no default: the migration fails where the table has rows.")
    return CONTINUE


_plugin = Plugin(NAME)
_plugin.add_autogenerate_comparator(_begin, "autogenerate", priority=DispatchPriority.FIRST)
_plugin.add_autogenerate_comparator(_compare_type, "column", "types", priority=DispatchPriority.FIRST)
_plugin.add_autogenerate_comparator(_compare_default, "column", "server_default", priority=DispatchPriority.FIRST)
_plugin.add_autogenerate_comparator(_compare_table, "table", "catalog", priority=DispatchPriority.LAST)
_plugin.add_autogenerate_comparator(_end, "autogenerate", priority=DispatchPriority.LAST)
