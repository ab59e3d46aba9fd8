"""What is not loaded is never loaded by accident: relations have `lazy="raise"`, and the error says what to write.

Reading an attribute cannot wait for the database in a coroutine. SQLAlchemy's own errors about that name neither the
attribute nor the remedy.
"""

from typing import Any, Final, NoReturn

from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Mapper, ORMExecuteState, RelationshipProperty, strategies
from sqlalchemy.util.concurrency import in_greenlet
from sqlmodel import Session

_RAISE: Final = "raise"


class NotLoaded(InvalidRequestError):  # noqa: N818 -- a state, with what to do about it
    """An attribute was read that is not loaded: a relation, a deferred column, or one that the database has changed."""


def relation_not_loaded(model: str, key: str) -> NotLoaded:
    """The error for a relation, by the names of the class and the attribute."""
    return NotLoaded(
        f"{model}.{key} is not loaded. Load it with the row: options=[selectinload({model}.{key})] for a finder of "
        f"CRUDBase, .options(selectinload({model}.{key})) for a select. Of a row that is there already: "
        f'await db.refresh(row, ["{key}"]).'
    )


def column_not_loaded(model: str, *keys: str) -> NotLoaded:
    """The error for columns, by the names of the class and of the attributes."""
    names = ", ".join(f"{model}.{key}" for key in keys) or f"An attribute of {model}"
    wanted = "".join(f', ["{key}"]' for key in keys[:1])
    return NotLoaded(
        f"{names} is not loaded: it is deferred, it has expired, or the database has set it in a flush. Before you "
        f"read it: await db.refresh(row{wanted}). A deferred column is loaded with the row by "
        f".options(undefer({model}.{keys[0] if keys else '...'}))."
    )


@event.listens_for(Mapper, "before_mapper_configured", retval=False)
def _load_nothing_by_accident(mapper: Mapper[Any], model: type[Any]) -> None:
    """Makes `lazy="raise"` the default, and has an UPDATE return what the database sets in it."""
    if mapper.eager_defaults == "auto":
        mapper.eager_defaults = True
    declared = getattr(model, "__sqlmodel_relationships__", {})
    for key, prop in mapper.attrs.items():
        if not isinstance(prop, RelationshipProperty):
            continue
        info = declared.get(key)
        is_explicit = "lazy" in (getattr(info, "sa_relationship_kwargs", None) or {})
        if prop.lazy == "select" and not is_explicit:
            prop.lazy = _RAISE
            prop.strategy_key = (("lazy", _RAISE),)
        if prop.backref is not None:
            other, options = (prop.backref, {}) if isinstance(prop.backref, str) else prop.backref
            prop.backref = (other, {"lazy": _RAISE} | options)


class ExplainingSession(Session):
    """Says what a row lacks, where SQLAlchemy would say that there is no greenlet."""


@event.listens_for(ExplainingSession, "do_orm_execute")
def _explain(state: ORMExecuteState) -> None:
    if in_greenlet() or not (state.is_relationship_load or state.is_column_load):
        return
    if state.is_relationship_load:
        prop = state.loader_strategy_path.prop  # type: ignore[union-attr]  # a relation's path has one
        raise relation_not_loaded(prop.parent.class_.__name__, prop.key)
    mapper = state.bind_mapper
    options = getattr(state.statement, "_compile_options", None)
    wanted = getattr(options, "_only_load_props", None) or ()
    columns = set() if mapper is None else set(mapper.column_attrs.keys())
    raise column_not_loaded(
        "a row" if mapper is None else mapper.class_.__name__, *sorted(columns.intersection(wanted))
    )


def _raise_relation_not_loaded(self: Any, state: Any, passive: Any, lazy: str) -> NoReturn:
    raise relation_not_loaded(state.class_.__name__, self.key)


def _raise_column_not_loaded(self: Any, state: Any, passive: Any, lazy: str) -> NoReturn:
    raise column_not_loaded(state.class_.__name__, self.key)


def _explain_raising_loaders() -> None:
    """Replaces the texts of `lazy="raise"` and `raiseload`. Where SQLAlchemy has changed, its own texts stay."""
    for name, explanation in (
        ("_LazyLoader", _raise_relation_not_loaded),
        ("_DeferredColumnLoader", _raise_column_not_loaded),
    ):
        loader = getattr(strategies, name, None)
        if hasattr(loader, "_invoke_raise_load"):
            loader._invoke_raise_load = explanation  # type: ignore[union-attr]  # as was just seen


_explain_raising_loaders()
