"""Operations of a migration that are written as SQL, each with the statement that undoes it."""

import re
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations.ops import ExecuteSQLOp
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import dialect

quote = dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]


class Statement(ExecuteSQLOp):
    """A statement of the upgrade and the one that undoes it. An empty text does nothing."""

    def __init__(self, sql: str, undo: str) -> None:
        super().__init__(sql)
        self.sql = sql
        self.undo = undo

    def reverse(self) -> "Statement":
        """Return the operation of the downgrade."""
        return Statement(self.undo, self.sql)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return how `alembic check` names it."""
        return ("execute", self.sql)


@renderers.dispatch_for(Statement)
def _render(context: AutogenContext, operation: Statement) -> list[str]:
    return [f"op.execute({as_text_clause(operation.sql)!r})"] if operation.sql else []


def as_text_clause(sql: str) -> str:
    """Return a statement as SQLAlchemy's `text()` takes it: there ":name" would be a parameter."""
    return re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", sql)


class TextAwareImpl(PostgresqlImpl):
    """Alembic's way to write expressions, which end in `text()`."""

    __dialect__ = "postgresql"

    def render_ddl_sql_expr(
        self, expr: ClauseElement, is_server_default: bool = False, is_index: bool = False, **kw: Any
    ) -> str:
        """Return the expression as it stands in the migration."""
        sql = super().render_ddl_sql_expr(expr, is_server_default=is_server_default, is_index=is_index, **kw)
        return sql if is_index else as_text_clause(sql)


def qualified(schema: str | None, table: str) -> str:
    """Return a table's name as it stands in a statement."""
    return f"{quote(schema)}.{quote(table)}" if schema else str(quote(table))
