"""JSON, and nothing that could be run."""

import json
import pickle
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from app.core.utils.queue import dumps, loads
from app.core.utils.queue.serialization import LONGEST_ERROR, MAX_DEPTH, describe, dump_arguments, dump_result
from app.models.token import LoginForm
from app.models.user import User


@pytest.mark.parametrize("value", [None, 0, -0.5, 2**70, "", "NUL \x00", "ä€😀", "\\u0000", [], {"a": [{"b": None}]}])
def test_what_json_can_hold_comes_back(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(dumps(value).decode()) == value


def test_a_tuple_comes_back_as_a_list() -> None:
    assert loads(dumps((1, (2,)))) == [1, [2]]


def test_an_exception_is_its_text() -> None:
    assert loads(dumps({"r": ValueError("no luck")})) == {"r": "ValueError: no luck"}


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), float("nan"), float("inf"), {(1,): 2}])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        dumps([value])


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    SMALL = "small"


class Point(NamedTuple):
    x: int


@dataclass
class Box:
    size: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1: "a"}, "value has a key of type int: the keys of JSON are text"),
        ({"a": [{1.5: 2}]}, r"value\['a'\]\[0\] has a key of type float"),
        ({True: 1}, "a key of type bool"),
        ({None: 1}, "a key of type NoneType"),
        ({(1, 2): 1}, "a key of type tuple"),
        ({uuid4(): 1}, "a key of type UUID"),
        (Counter({7: 1}), "a key of type int"),
        ([{"x": {2}}], r"value\[0\]\['x'\] is of type set, which JSON does not have: use a sorted list"),
        (float("nan"), "value is nan: JSON has no such number"),
        ([float("-inf")], r"value\[0\] is -inf"),
        (Decimal("1.10"), "of type Decimal.*use its `str"),
        (datetime(2026, 1, 1, tzinfo=UTC), "of type datetime.*isoformat"),
        (date(2026, 1, 1), "of type date"),
        (timedelta(1), "total_seconds"),
        (uuid4(), "of type UUID"),
        (Colour.RED, "of type Colour.*its `value`"),
        (b"bytes", "of type bytes"),
        (LoginForm(username="somebody", password="a password"), "of type LoginForm.*model_dump"),
        (User.model_construct(), "of type User.*the id of a row"),
        (Box(1), r"of type Box.*asdict"),
        (object(), "of type object, which JSON does not have\\."),
        ("half \ud800", "value has half of a surrogate pair"),
        ({"\udfff": 1}, "a key of value has half of a surrogate pair"),
    ],
)
def test_what_json_would_change_or_cannot_hold_is_refused_with_its_place(value: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        dumps(value)


def test_the_place_is_that_of_the_argument() -> None:
    with pytest.raises(TypeError, match=r"args\[0\]\['a'\] has a key of type int"):
        dump_arguments(({"a": {1: 2}},), {})
    with pytest.raises(TypeError, match=r"kwargs\['when'\] is of type datetime"):
        dump_arguments((), {"when": datetime(2026, 1, 1, tzinfo=UTC)})
    with pytest.raises(TypeError, match=r"result\[1\] is of type ValueError"):
        dump_result([1, ValueError("no")])
    with pytest.raises(TypeError, match=r"args\[0\]\[...\] is of type set"):
        dump_arguments(({"somebody@example.org": {1}},), {})


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (Size.SMALL, "small"),
        ({Size.SMALL: 1}, {"small": 1}),
        (Point(1), [1]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (2**2000, 2**2000),
        (0.1 + 0.2, 0.1 + 0.2),
        (5e-324, 5e-324),
        ({"NUL \x00": "\x00"}, {"NUL \x00": "\x00"}),
    ],
)
def test_what_comes_back_is_equal_or_as_the_documents_say(value: Any, becomes: Any) -> None:
    assert loads(dumps(value)) == becomes
    assert json.loads(dump_result(value)) == becomes


def test_what_refers_to_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="Circular"):
        dumps(value)


def test_what_is_nested_too_deep_for_who_reads_it_is_refused() -> None:
    for make in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}):
        value: Any = 1
        for _ in range(MAX_DEPTH - 1):
            value = make(value)
        assert dumps(value)
        with pytest.raises(ValueError, match="deep"):
            dumps(make(make(value)))


class Evil:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was run",)


@pytest.mark.parametrize("value", [pickle.dumps(Evil()), pickle.dumps({"a": 1}, protocol=0), b"", b"\xff", "{"])
def test_what_is_no_json_is_refused_and_not_run(value: bytes | str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- of several kinds
        loads(value)


def test_an_error_is_described_in_what_the_table_can_hold() -> None:
    assert describe(ValueError()) == "ValueError"
    assert describe(KeyError("a")) == "KeyError: 'a'"
    assert describe(ValueError("a\x00b \ud800")) == "ValueError: a\N{REPLACEMENT CHARACTER}b ?"
    assert len(describe(ValueError("x" * 9999))) == LONGEST_ERROR
    assert json.loads(dumps(ValueError("x" * 9999))) == describe(ValueError("x" * 9999))
