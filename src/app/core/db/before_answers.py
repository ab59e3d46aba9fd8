"""Has transactions end before the answer is sent, however a handler asks for its session."""

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant, _is_async_gen_callable, _is_gen_callable

from app.core.db.database import async_get_db
from app.core.mounts import all_routes


def end_transactions_before_answers(app: FastAPI) -> None:
    """Gives every `Depends(async_get_db)` of the app, and of those mounted in it, `scope="function"`.

    FastAPI leaves a dependency with `yield` after the answer is sent, unless told otherwise: a commit that fails then
    was answered as a success, and a caller can read, after the answer, what was there before. What uses the session
    and has a `yield` of its own has to be left before it. Handlers that stream keep theirs until the end, and so does
    what asks for `scope="request"`.
    """
    for _, route in all_routes(app):
        dependant = getattr(route, "dependant", None)
        if isinstance(dependant, Dependant) and not _has_yield(dependant):
            _uses_a_transaction(dependant)


def _uses_a_transaction(dependant: Dependant) -> bool:
    if dependant.scope == "request":
        return False
    below = [_uses_a_transaction(other) for other in dependant.dependencies]  # all of them, whatever the first says
    uses = dependant.call is async_get_db or any(below)
    if uses and dependant.scope is None and _has_yield(dependant):
        dependant.scope = "function"
    return uses


def _has_yield(dependant: Dependant) -> bool:
    return _is_gen_callable(dependant.call) or _is_async_gen_callable(dependant.call)
