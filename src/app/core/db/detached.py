"""Builds a row's object as a closed session leaves it, for the tables where plain attributes are all there is to it."""

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import structlog
from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.orm.attributes import instance_state
from sqlmodel import Session

# What a relationship may be without the session having anything to do when it loads the row.
_NOT_LOADED_WITH_ROW = ("select", True, "raise", "raise_on_sql", "write_only", "dynamic")

Build = Callable[[Sequence[Any]], Any]

log = structlog.stdlib.get_logger("slipway.database")


@cache
def needs_session(model: type[Any]) -> str | None:
    """Why rows of a table are loaded by a session only; None when `columns_of` and `builder_of` do the same.

    Decided once for each table, and logged.
    """
    reason = _reason(inspect(model))
    if reason is not None:
        log.info("rows are loaded by a session", table=model.__name__, reason=reason)
    return reason


def columns_of(model: type[Any]) -> list[InstrumentedAttribute[Any]]:
    """The attributes of a table's columns, in the order in which `builder_of` wants their values."""
    return [getattr(model, prop.key) for prop in inspect(model).column_attrs]


def builder_of(model: type[Any], start: int = 0) -> Build:
    """A function that builds a row's object, detached and unmodified.

    Args:
        model: the table, for which `needs_session` is None.
        start: the position of the first of its columns within a row; there are `len(columns_of(model))` of them.

    Returns: the function. It takes a row's values and returns the object, or None where an outer join found no row.
    """
    mapper: Mapper[Any] = inspect(model)
    keys = tuple(prop.key for prop in mapper.column_attrs)
    stop = start + len(keys)
    primary = itemgetter(*(keys.index(mapper.get_property_by_column(column).key) for column in mapper.primary_key))
    is_composite = len(mapper.primary_key) > 1
    new_instance = mapper.class_manager.new_instance
    identity_key = mapper.identity_key_from_primary_key

    def build(row: Sequence[Any]) -> Any:
        values = row[start:stop]
        identity = primary(values) if is_composite else (primary(values),)
        if None in identity:
            return None
        instance = new_instance()
        instance.__dict__.update(zip(keys, values, strict=True))
        instance_state(instance).key = identity_key(identity)
        return instance

    return build


def _reason(mapper: Mapper[Any]) -> str | None:
    """What a session does when it loads a row of this table, beside putting a value into each attribute."""
    if mapper.inherits or mapper.polymorphic_on is not None or len(list(mapper.self_and_descendants)) > 1:
        return "it is part of an inheritance"
    if not isinstance(mapper.local_table, Table):
        return "it is not mapped to a table"
    events: Any = Session().dispatch
    if mapper.class_manager.dispatch.load or events.loaded_as_persistent:
        return "something listens for its rows being loaded"
    if events.do_orm_execute:
        return "something listens for the statements of sessions"
    return next((reason for prop in mapper.attrs if (reason := _reason_of(prop)) is not None), None)


def _reason_of(prop: Any) -> str | None:
    if isinstance(prop, RelationshipProperty):
        return None if prop.lazy in _NOT_LOADED_WITH_ROW else f"{prop.key} is loaded with each row"
    if isinstance(prop, SynonymProperty):
        return None
    if not isinstance(prop, ColumnProperty) or not isinstance(prop.columns[0], Column) or len(prop.columns) > 1:
        return f"{prop.key} is more than a column"
    return f"{prop.key} is deferred" if prop.deferred else None
