"""JSON, and nothing that could be run."""

import json
import pickle
from typing import Any

import pytest

from app.core.utils.queue import dumps, loads
from app.core.utils.queue.serialization import DEEPEST, LONGEST_ERROR, describe


@pytest.mark.parametrize("value", [None, 0, -0.5, 2**70, "", "NUL \x00", "ä€😀", "\\u0000", [], {"a": [{"b": None}]}])
def test_what_json_can_hold_comes_back(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(dumps(value).decode()) == value


def test_a_tuple_comes_back_as_a_list() -> None:
    assert loads(dumps((1, (2,)))) == [1, [2]]


def test_half_of_a_surrogate_pair_is_a_question_mark() -> None:
    assert loads(dumps({"\ud800": "a \udfff"})) == {"?": "a ?"}


def test_an_exception_is_its_text() -> None:
    assert loads(dumps({"r": ValueError("no luck")})) == {"r": "ValueError: no luck"}


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), float("nan"), float("inf"), {(1,): 2}])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        dumps([value])


def test_what_refers_to_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="Circular"):
        dumps(value)


def test_what_is_nested_too_deep_for_who_reads_it_is_refused() -> None:
    for make in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}):
        value: Any = 1
        for _ in range(DEEPEST - 1):
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
