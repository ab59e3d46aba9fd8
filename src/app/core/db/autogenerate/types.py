"""How a migration spells types and defaults: with SQLAlchemy's names or in SQL, and without the application's code."""

from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _repr_type
from sqlalchemy import DefaultClause, Dialect, Enum
from sqlalchemy.dialects.postgresql.asyncpg import dialect as create_dialect
from sqlalchemy.dialects.postgresql.named_types import NamedType
from sqlalchemy.sql.type_api import TypeEngine
from sqlalchemy.types import ARRAY, TypeDecorator

from app.core.db.column_types import SqlType

_dialect: Dialect = create_dialect()  # type: ignore[no-untyped-call]


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Return how Alembic writes this item; False leaves it to Alembic."""
    if kind == "type":
        return _render_type(item, context)
    if kind == "server_default" and isinstance(item, DefaultClause) and isinstance(item.arg, str):
        return repr(str.__str__(item.arg))  # Alembic would take quotes away that belong to the value.
    return False


def _render_type(type_: TypeEngine[Any], context: AutogenContext) -> str | Literal[False]:
    plain = _plain(type_)
    if isinstance(plain, ARRAY):
        item = _repr_type(plain.item_type, context)
        dimensions = f", dimensions={plain.dimensions}" if plain.dimensions else ""
        return f"sa.ARRAY({item}{dimensions})"
    if isinstance(plain, Enum) and not plain.native_enum:
        return f"sa.String({plain.length or ''})" if plain.length is None else f"sa.String(length={plain.length})"
    if isinstance(plain, NamedType | Enum) or not type(plain).__module__.startswith("sqlalchemy."):
        context.imports.add("from app.core.db.column_types import SqlType")
        return f"SqlType({(plain.sql if isinstance(plain, SqlType) else str(plain.compile(_dialect)))!r})"
    return False if plain is type_ else _repr_type(plain, context)


def _plain(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type that PostgreSQL gets, of a type with variants or one that converts values."""
    type_ = type_._variant_mapping.get("postgresql", type_)
    while isinstance(type_, TypeDecorator) and not type(type_).__module__.startswith("sqlalchemy."):
        type_ = type_.load_dialect_impl(_dialect)
    return type_
