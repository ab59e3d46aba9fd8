"""JSON, and never pickle: what is read from Redis/Valkey or a table must not be run."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from app.core.db.data_errors import hide_values


def dumps(value: Any) -> bytes:
    """JSON; an exception, which ARQ stores as the result of a failed job, becomes its text.

    Half of a surrogate pair, which could be stored but not answered with, becomes a question mark.

    Raises: TypeError or ValueError for what JSON cannot hold, or what is nested too deep for who reads it.
    """
    try:
        text = json.dumps(value, default=_exception_as_text, ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _refuse_depth(value)
    return text.encode(errors="replace")


def loads(value: bytes | str) -> Any:
    """The reverse of `dumps`. Raises: ValueError for anything but JSON, pickles included."""
    return json.loads(value)


def describe(error: BaseException) -> str:
    """An exception in a line or a few, as a job's error; without the row and the statement that PostgreSQL quotes."""
    hide_values(error)
    try:
        text = re.split(r"\nDETAIL:|\n\[SQL", str(error), maxsplit=1)[0]
    except Exception:
        text = "(it cannot be shown)"
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR] if text else type(error).__name__


LONGEST_ERROR: Final = 4000  # characters
DEEPEST: Final = 100  # levels; what answers over HTTP gives up soon after
TOO_DEEP: Final = f"It is nested more than {DEEPEST} levels deep."


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _exception_as_text(value: object) -> str:
    if isinstance(value, BaseException):
        return describe(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")
