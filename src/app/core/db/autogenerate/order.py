"""The order of a migration's operations: what refers to a table is created after it, and dropped before it."""

from collections.abc import Sequence

from alembic.operations.ops import AddConstraintOp, CreateTableOp, DropConstraintOp, DropTableOp, UpgradeOps
from sqlalchemy import ForeignKeyConstraint, MetaData, Table

from app.core.db.autogenerate.statements import Statement, quote


def create_schemas(operations: UpgradeOps, metadata: MetaData, existing: set[str]) -> None:
    """Add the schemas that tables name and the database lacks."""
    for schema in sorted({table.schema for table in metadata.tables.values() if table.schema} - existing, reverse=True):
        operations.ops.insert(0, Statement(f"CREATE SCHEMA {quote(schema)}", f"DROP SCHEMA {quote(schema)}"))


def create_in_order(operations: UpgradeOps) -> None:
    """Move foreign keys to tables that are created later in the same migration to its end."""
    creations = [operation for operation in operations.ops if isinstance(operation, CreateTableOp)]
    later = {creation.to_table().fullname for creation in creations}
    for creation in creations:
        later.discard(creation.to_table().fullname)
        for item in list(creation.columns):
            if isinstance(item, ForeignKeyConstraint) and _referred(item) in later:
                creation.columns = [other for other in creation.columns if other is not item]
                operations.ops.append(AddConstraintOp.from_constraint(item))


def drop_in_order(operations: UpgradeOps, dropped: Sequence[Table]) -> None:
    """Move the drops of these tables to the end, each after the tables that refer to it.

    Where tables refer to each other in a circle, a foreign key goes first.
    """
    drops = [operation for operation in operations.ops if isinstance(operation, DropTableOp)]
    operations.ops[:] = [operation for operation in operations.ops if not isinstance(operation, DropTableOp)]
    left = {table.fullname: (table, drop) for table in dropped for drop in drops if _is_of(drop, table)}
    while left:
        references = {
            name: [
                (constraint, drop)
                for table, drop in left.values()
                for constraint in table.foreign_key_constraints
                if _referred(constraint) == name != table.fullname
            ]
            for name in left
        }
        name = min(left, key=lambda name: (len(references[name]), name))
        for constraint, drop in references[name]:
            operations.ops.append(DropConstraintOp.from_constraint(constraint))
            assert drop._reverse is not None  # noqa: S101 -- Alembic sets it in from_table()
            drop._reverse.columns = [item for item in drop._reverse.columns if item is not constraint]
        operations.ops.append(left.pop(name)[1])


def _is_of(drop: DropTableOp, table: Table) -> bool:
    return (drop.schema, drop.table_name) == (table.schema, table.name)


def _referred(constraint: ForeignKeyConstraint) -> str:
    """The full name of the table that it refers to, which need not be known here."""
    return constraint.elements[0].target_fullname.rpartition(".")[0]
