"""JSON, and never pickle: what is read from Redis/Valkey or a table must not be run.

What JSON would change without a word is refused: keys that are not text, numbers that are none, halves of surrogate
pairs. Tuples become lists, and subclasses of text, numbers, lists and dicts what they derive from.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from app.core.db.data_errors import hide_values


def dumps(value: Any) -> bytes:
    """The JSON of a value; an exception, which ARQ stores as the result of a failed job, becomes its text.

    Raises: TypeError or ValueError for what JSON cannot hold, or what is nested more than `MAX_DEPTH` levels deep.
    """
    return _dumps(value, "value", exceptions=True).encode()


def dump_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """The JSON of a job's positional and keyword arguments. Raises: TypeError, ValueError, with the place."""
    return _dumps(args, "args"), _dumps(dict(kwargs), "kwargs")


def dump_result(value: Any) -> str:
    """The JSON of what a job has returned. Raises: TypeError, ValueError, with the place."""
    return _dumps(value, "result")


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
MAX_DEPTH: Final = 100  # levels; what answers over HTTP gives up soon after
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")  # keys that an error may show: others can be data

# What to pass instead, by type.
_INSTEAD: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    ((date, time), "its `isoformat()`"),
    (timedelta, "its `total_seconds()`"),
    ((Decimal, UUID), "its `str()`"),
    (Enum, "its `value`"),
    ((set, frozenset), "a sorted list"),
    ((bytes, bytearray, memoryview), "its text, or base64"),
    (BaseModel, '`model_dump(mode="json")`, or the id of a row'),
)


def _dumps(value: Any, place: str, *, exceptions: bool = False) -> str:
    _check(value, place, (), exceptions=exceptions)
    return json.dumps(value, default=describe, ensure_ascii=False, allow_nan=False)  # Only exceptions get to `default`.


def _check(value: Any, place: str, around: tuple[int, ...], *, exceptions: bool) -> None:
    """Raises: TypeError or ValueError when JSON cannot hold the value as it is. `around` has what the value is in."""
    if value is None or isinstance(value, int):
        return
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{place} is {value}: JSON has no such number.")
    elif isinstance(value, dict | list | tuple):
        if id(value) in around:
            raise ValueError(f"Circular reference: {place} contains itself.")
        if len(around) >= MAX_DEPTH:
            raise ValueError(f"It is nested more than {MAX_DEPTH} levels deep.")
        for inner, where in _inside(value, place):
            _check(inner, where, (*around, id(value)), exceptions=exceptions)
    elif not (exceptions and isinstance(value, BaseException)):
        kind = type(value)
        instead = next((text for kinds, text in _INSTEAD if isinstance(value, kinds)), None)
        if instead is None and is_dataclass(value):
            instead = "`dataclasses.asdict()`"
        raise TypeError(
            f"{place} is of type {kind.__name__}, which JSON does not have{f': use {instead}' if instead else ''}."
        )


def _check_text(text: str, place: str) -> None:
    try:
        _ = text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} has half of a surrogate pair in it, which is no text.") from None


def _inside(value: dict[Any, Any] | list[Any] | tuple[Any, ...], place: str) -> Iterator[tuple[Any, str]]:
    if not isinstance(value, dict):
        for number, inner in enumerate(value):
            yield inner, f"{place}[{number}]"
        return
    for key, inner in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{place} has a key of type {type(key).__name__}: the keys of JSON are text, use `str()`.")
        _check_text(key, f"a key of {place}")
        yield inner, f"{place}[{key!r}]" if _NAME.fullmatch(key) else f"{place}[...]"
