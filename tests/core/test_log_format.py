"""Log lines of an application: whatever it logs is one line of JSON, and nothing is raised at it."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx2
import pytest
import structlog
from fastapi import APIRouter

from app.core import log_format
from app.core.config import EnvironmentOption, Settings
from app.core.logger import configure_logging
from app.core.setup import create_application
from tests.conftest import client_of
from tests.core.test_logger import restored_logging  # noqa: F401 -- a fixture

KEY = UUID("0af76519-16cd-43dd-8448-eb211c80319c")


class WithoutText:
    """An object that fails when it is asked for its text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class BrokenError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Changing(dict[str, int]):
    """A dictionary that another thread changes while it is read."""

    def items(self) -> Any:
        raise RuntimeError("dictionary changed size during iteration")


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {"name": "ada"}
    value["self"] = [value]
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was logged since the last call. The first one, in the test, configures: pytest's own handlers go by that."""
    configured = False

    def written() -> list[dict[str, Any]]:
        nonlocal configured
        if not configured:
            configure_logging(EnvironmentOption.PRODUCTION)
            configured = True
        shown = capsys.readouterr()
        assert shown.err == ""
        return [json.loads(line, parse_constant=pytest.fail) for line in shown.out.splitlines()]

    return written


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("user %s", (7,), "user 7"),
        ("%s of %d", ("a", 3), "a of 3"),
        ("%(name)s", ({"name": "ada"},), "ada"),
        ("100 %", (), "100 %"),
        ("user %d", ("ada",), "user %d [ada]"),
        ("%s and %s", ("one",), "%s and %s [one]"),
        ("none", ("one", 2), "none [one, 2]"),
        ("user %s", (WithoutText(),), "user %s [<WithoutText: its text cannot be had>]"),
        ("%(other)s", ({"name": "ada"},), "%(other)s {'name': 'ada'}"),
        ("50 % of %s", ("x",), "50 % of %s [x]"),
    ],
)
def test_arguments_are_put_into_the_text(lines: Lines, text: str, arguments: tuple[Any, ...], expected: str) -> None:
    lines()
    structlog.stdlib.get_logger("ours").info(text, *arguments)
    logging.getLogger("theirs").info(text, *arguments)
    assert [line["event"] for line in lines()] == [expected, expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({KEY: 1}, {str(KEY): 1}),
        ({1: {(2, 3): "x"}}, {"1": {"(2, 3)": "x"}}),
        ({WithoutText(): 1}, {"<WithoutText: its text cannot be had>": 1}),
        (circular(), {"name": "ada", "self": ["<circular>"]}),
        (float("nan"), "nan"),
        ([float("inf"), -float("inf"), 1.5], ["inf", "-inf", 1.5]),
        (b"\x00\xff", "b'\\x00\\xff'"),
        ({1, 2}, "{1, 2}"),
        (WithoutText(), "<WithoutText: its text cannot be had>"),
        ([WithoutText(), 1], ["<WithoutText: its text cannot be had>", 1]),
        ("\ud800", "\ud800"),
        ('a\nb\r\u2028{"event": "forged"}', 'a\nb\r\u2028{"event": "forged"}'),
        ([10**6000], ["<int: its text cannot be had>"]),
        (2**70, 2**70),
        (UUID(int=0), "UUID('00000000-0000-0000-0000-000000000000')"),
        (Changing(a=1), "{'a': 1}"),
        ({KEY: Changing(a=1)}, {str(KEY): "{'a': 1}"}),
    ],
)
def test_a_value_of_any_kind_is_a_line(lines: Lines, value: Any, expected: Any) -> None:
    lines()
    structlog.stdlib.get_logger("ours").info("x", value=value)
    logging.getLogger("theirs").info("x", extra={"value": value})
    ours, theirs = lines()
    assert ours["value"] == theirs["value"] == expected


def test_values_in_one_another_end_somewhere(lines: Lines) -> None:
    lines()
    structlog.stdlib.get_logger("ours").info("x", value=deep(100_000))
    (line,) = lines()
    assert "<too deep>" in json.dumps(line["value"])


def test_a_line_of_megabytes_is_cut(lines: Lines) -> None:
    lines()
    values = {"text": "x" * 3_000_000, "items": list(range(1_000_000)), "short": "kept"}
    structlog.stdlib.get_logger("ours").info("x", **values)
    logging.getLogger("theirs").info("begin %s end", "x" * 3_000_000)
    ours, theirs = lines()
    assert ours["short"] == "kept"
    assert ours["items"][-1] == "<999900 more>"
    assert "2991808 characters left out" in ours["text"]
    assert theirs["event"].startswith("begin ")
    assert theirs["event"].endswith(" end")
    assert max(len(json.dumps(line)) for line in (ours, theirs)) < log_format.MAX_LINE


@pytest.mark.parametrize("name", ["message", "name", "args", "exc_info", "levelname", "taskName", "asctime"])
def test_extra_may_have_the_names_of_a_record(lines: Lines, name: str) -> None:
    lines()
    logging.getLogger("theirs").warning("hello %s", "you", extra={name: "given"})
    (line,) = lines()
    assert (line["event"], line["logger"], line["level"]) == ("hello you", "theirs", "warning")
    assert line[f"extra_{name}"] == "given"


@pytest.mark.parametrize("name", ["event", "level", "logger", "timestamp", "_record", "_name", "_from_structlog"])
def test_extra_does_not_replace_what_a_line_has(lines: Lines, name: str) -> None:
    lines()
    logging.getLogger("theirs").warning("hello", extra={name: "given"})
    (line,) = lines()
    assert (line["event"], line["logger"], line["level"]) == ("hello", "theirs", "warning")
    assert line["timestamp"].endswith("Z")


def test_extra_that_is_no_dictionary(lines: Lines) -> None:
    lines()
    logging.getLogger("theirs").warning("hello", extra="given")  # type: ignore[arg-type]  # the mistake
    logging.getLogger("theirs").warning("hello", extra={1: 2})  # type: ignore[dict-item]  # the mistake
    first, second = lines()
    assert (first["extra"], second["1"]) == ("given", 2)


@pytest.mark.parametrize("name", ["event", "self", "method_name", "level", "logger", "positional_args", "_record"])
def test_values_may_have_any_names(lines: Lines, name: str) -> None:
    lines()
    structlog.stdlib.get_logger("ours").warning("hello %s", "you", **{name: "given"})
    structlog.stdlib.get_logger("ours").bind(answer=42).warning("hello you", **{name: ("given",)})
    first, second = lines()
    assert (first["event"], first["level"], first["logger"]) == ("hello you", "warning", "ours")
    assert second["answer"] == 42


def test_the_text_may_be_given_by_its_name(lines: Lines) -> None:
    lines()
    structlog.stdlib.get_logger("ours").info(event="hello")
    (line,) = lines()
    assert line["event"] == "hello"


def test_errors_without_text_and_outside_of_except(lines: Lines) -> None:
    lines()
    ours, theirs = structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")
    try:
        raise BrokenError
    except BrokenError as error:
        ours.exception("crash %s", error)
        theirs.exception("crash %s", error)
        ours.info("crash", error=error)
        kept = error
    ours.exception("outside")
    theirs.exception("outside")
    ours.error("kept", exc_info=kept)
    theirs.error("kept", exc_info=kept)
    ours.error("wrong", exc_info="yes")
    found = lines()
    assert [line["event"].partition(" ")[0] for line in found] == [
        *("crash", "crash", "crash", "outside", "outside", "kept", "kept", "wrong")
    ]
    assert all("BrokenError" in found[number]["exception"] for number in (0, 1, 5, 6))


def test_an_event_that_is_no_text(lines: Lines) -> None:
    lines()
    events: tuple[Any, ...] = (42, None, ["a"], {"a": float("nan")}, WithoutText(), KEY)
    for event in events:
        structlog.stdlib.get_logger("ours").info(event)
        logging.getLogger("theirs").info(event)
    assert len(lines()) == 12


def test_a_processor_that_fails_loses_no_line(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    lines()

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    structlog.configure(processors=[fail, *structlog.get_config()["processors"]])
    structlog.stdlib.get_logger("ours").warning("hello", answer=42)
    (handler,) = logging.getLogger().handlers
    monkeypatch.setattr(handler.formatter, "processors", [fail])
    logging.getLogger("theirs").warning("hello %s", "you")
    ours, theirs = lines()[:2]
    assert (ours["event"], ours["answer"], ours["level"], ours["log_error"]) == (
        *("hello", 42, "warning", "ZeroDivisionError"),
    )
    assert (theirs["event"], theirs["log_error"]) == ("hello you", "ZeroDivisionError")


def test_warnings_are_lines(lines: Lines) -> None:
    lines()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("careful\nnow", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines()
    assert line["logger"] == "py.warnings"
    assert "UserWarning: careful\nnow" in line["event"]


def test_what_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    configure_logging(EnvironmentOption.LOCAL)
    logging.getLogger("theirs").info("caf\u00e9 \ud800")
    sys.stdout.flush()
    assert b"caf\\xe9 \\ud800" in written.getvalue()


@pytest.mark.parametrize(
    "text",
    ["\n2026-01-01 [error] forged", "\x1b[2Jcleared", "\rforged", "\u2028forged", "\x9b2J", "\x00", "\ud800"],
)
def test_local_lines_cannot_be_forged(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logging(EnvironmentOption.LOCAL)
    structlog.stdlib.get_logger("ours").info("hello", value=text)
    logging.getLogger("theirs").info("hello%s", text)
    shown = capsys.readouterr()
    assert shown.err == ""
    for line in shown.out.split("\n"):
        assert "hello" in line or line == "" or line.startswith("    ")
        assert not set(line) & {"\x1b", "\r", "\u2028", "\x9b", "\x00"}


@pytest.mark.anyio
async def test_a_handler_that_logs_badly_is_answered(settings: Settings, lines: Lines) -> None:
    lines()
    router = APIRouter()
    log = structlog.stdlib.get_logger("shop")

    @router.get("/speak")
    async def speak() -> None:
        log.info("user %s", KEY)
        log.info("stock", by_id={KEY: float("nan")}, all=circular())
        logging.getLogger("shop").info("user %d", "ada", extra={"message": "hi"})

    async with client_of(create_application(router, settings)) as client:
        answer: httpx2.Response = await client.get("http://test/speak")
    assert answer.status_code == 200
    spoken = [line for line in lines() if line["logger"] == "shop"]
    assert [line["event"] for line in spoken] == [f"user {KEY}", "stock", "user %d [ada]"]
    assert len({line["request_id"] for line in spoken}) == 1
