"""Logs: lines for people locally, JSON elsewhere, and the same for our own lines and everybody else's."""

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import OptionalUser
from app.core import logger
from app.core.config import EnvironmentOption, Settings
from app.core.logger import configure_logging
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.queue import JobState
from app.core.worker.options import job
from app.core.worker.testing import drain_jobs
from tests.conftest import client_of
from tests.helper import create_user, signed_in


@pytest.fixture(autouse=True)
def restored_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logger, "LOG_FILE", tmp_path / "logs" / "app.log")
    monkeypatch.setattr(logger, "_direct_lines", None)
    root = logging.getLogger()
    before, ours = (root.handlers[:], root.level), structlog.get_config()
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before
    structlog.configure(**ours)
    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and "log" in vars(module):
            vars(module.log).pop("bind", None)  # Loggers keep how they were configured when they were first used.


@pytest.mark.parametrize("environment", [EnvironmentOption.PRODUCTION, EnvironmentOption.LOCAL])
def test_row_values_are_cut_from_errors(environment: EnvironmentOption, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(environment)
    row = "DETAIL:  Failing row contains (1, ada@example.com,\n\n$argon2id$)."
    try:
        try:
            raise LookupError(f"violates a check\n{row}")
        except LookupError as cause:
            raise ValueError(f"violates a check\n{row}\n[SQL: INSERT ...]") from cause
    except ValueError:
        structlog.stdlib.get_logger("ours").exception("crash")
        logging.getLogger("theirs").exception("crash")
    shown = capsys.readouterr().out
    assert shown.count("LookupError: violates a check") == shown.count("ValueError: violates a check") == 2
    assert "[SQL: INSERT ...]" in shown
    assert "ada@example.com" not in shown
    assert "argon2id" not in shown


class Form(BaseModel):
    name: int
    password: int


@pytest.mark.parametrize("environment", [EnvironmentOption.PRODUCTION, EnvironmentOption.LOCAL])
@pytest.mark.parametrize(
    "values",
    [
        {"name": 1, "password": "hunter2"},
        {"name": 1, "passwort": "hunter2"},
        {"name": "hunter2", "password": "hunter2\n\r"},
        {"name": "hunter2", "password": ", input_type=str] hunter2"},
        ["hunter2"],
        "hunter2",
    ],
    ids=str,
)
def test_values_are_cut_from_errors_of_models(
    environment: EnvironmentOption, values: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that validates by itself fails with an error whose text has the values."""
    configure_logging(environment)
    try:
        Form.model_validate(values)
    except ValidationError as error:
        structlog.stdlib.get_logger("ours").exception("crash", cause=repr(error))
        logging.getLogger("theirs").exception("crash")
        logging.getLogger("theirs").error("crash: %s", error)
    shown = capsys.readouterr().out
    assert shown.count("for Form") == 4
    assert shown.count("input_type=") >= 4
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "known", [{}, {"route": '/{a"b}', "user_id": 7, "trace_id": "0af7651916cd43dd8448eb211c80319c"}, {"user_id": 7}]
)
def test_a_requests_line_is_what_logging_would_have_made_of_it(
    known: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(EnvironmentOption.PRODUCTION)
    structlog.contextvars.bind_contextvars(request_id="abc")
    path = '/a"b\\\n\ud800/\u00e4'
    structlog.stdlib.get_logger("slipway.request").info(
        "request", method="GET", path=path, status=200, milliseconds=1.5, **known
    )
    logger.log_request("abc", "GET", path, 200, 0.0015, **known)
    structlog.contextvars.clear_contextvars()
    slow, fast = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(slow.pop("timestamp")) == len(fast.pop("timestamp"))
    assert fast == slow


def test_a_requests_time_goes_on_from_second_to_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging(EnvironmentOption.PRODUCTION)
    for nanoseconds in (1_790_000_000_000_001_000, 1_790_000_000_999_999_999, 1_790_000_001_000_000_000, 0):
        monkeypatch.setattr("app.core.logger.time.time_ns", lambda now=nanoseconds: now)
        logger.log_request("abc", "GET", "/", 200, 0.001)
    assert [json.loads(line)["timestamp"] for line in capsys.readouterr().out.splitlines()] == [
        "2026-09-21T14:13:20.000001Z",
        "2026-09-21T14:13:20.999999Z",
        "2026-09-21T14:13:21.000000Z",
        "1970-01-01T00:00:00.000000Z",
    ]


async def lines_of(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], *requests: tuple[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """What is logged in production while this is asked for, one after the other."""
    configure_logging(EnvironmentOption.PRODUCTION)
    capsys.readouterr()
    for path, headers in requests:
        await client.get(str(client.base_url.join(path)), headers=headers)
    written = capsys.readouterr().out
    assert SECRET not in written
    return [json.loads(line) for line in written.splitlines()]


SECRET = "hunter2-hunter2"


@pytest.mark.anyio
async def test_a_requests_line_has_its_route_and_who_asked(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    user = await create_user(db)
    await db.commit()
    me = signed_in(user, settings)
    lines = await lines_of(
        client,
        capsys,
        (f"user/{user.username}?token={SECRET}", me),
        ("health", {"Cookie": SECRET}),
        ("user/me/", {"Authorization": f"Bearer {SECRET}"}),
        ("no/such/route", me),
    )
    shown = [(line.get("route"), line.get("user_id"), line["status"]) for line in lines if line["event"] == "request"]
    assert shown == [
        ("/api/v1/user/{username}", user.id, 200),
        ("/api/v1/health", None, 200),
        ("/api/v1/user/me/", None, 401),
        (None, None, 404),
    ]
    assert me["Authorization"].removeprefix("Bearer ") not in json.dumps(lines)


@pytest.mark.anyio
async def test_every_line_of_a_request_says_who_asks_and_none_of_the_next_ones(
    app: FastAPI, db: AsyncSession, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    router = APIRouter()

    @router.get("/speak")
    async def speak(user: OptionalUser) -> None:
        logging.getLogger("theirs").warning("somebody asks")

    user = await create_user(db)
    await db.commit()
    async with client_of(create_application(router, settings)) as client:
        lines = await lines_of(client, capsys, ("/speak", signed_in(user, settings)), ("/speak", {}))
    spoken, _, spoken_later, _ = lines
    assert (spoken["event"], spoken["user_id"]) == ("somebody asks", user.id)
    assert spoken_later["event"] == "somebody asks"
    assert "user_id" not in spoken_later
    assert spoken["request_id"] != spoken_later["request_id"]


def test_a_log_that_cannot_be_written_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(logger, "_direct_lines", closed)
    logger.log_request("abc", "GET", "/", 200, 0.1)


def test_outside_of_local_every_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(EnvironmentOption.PRODUCTION)
    structlog.contextvars.bind_contextvars(request_id="abc")
    structlog.stdlib.get_logger("ours").info("hello", answer=42)
    logging.getLogger("theirs").warning("careful %s", "now")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        structlog.stdlib.get_logger("ours").exception("crash")
    structlog.contextvars.clear_contextvars()

    ours, theirs, crash = map(json.loads, capsys.readouterr().out.splitlines())
    assert {
        "event": "hello",
        "answer": 42,
        "request_id": "abc",
        "level": "info",
        "logger": "ours",
    }.items() <= ours.items()
    assert {"event": "careful now", "level": "warning", "logger": "theirs"}.items() <= theirs.items()
    assert "ZeroDivisionError" in crash["exception"]
    assert not logger.LOG_FILE.exists()


def test_local_lines_are_for_people_and_go_to_the_file_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(EnvironmentOption.LOCAL)
    logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\x1b[1mstarted"})
    shown = capsys.readouterr().out
    assert "started" in shown
    assert "\x1b" not in shown
    assert logger.LOG_FILE.read_text() == shown


def test_uvicorns_own_access_lines_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(EnvironmentOption.PRODUCTION)
    logging.getLogger("uvicorn.access").info("GET / 200")
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app.log").mkdir()  # Like a file of somebody else's, for root too.
    monkeypatch.setattr(logger, "LOG_FILE", tmp_path / "app.log")
    configure_logging(EnvironmentOption.LOCAL)
    logging.getLogger("theirs").info("hello")
    shown = capfd.readouterr()
    assert shown.err == ""
    first, second = shown.out.splitlines()
    assert f"Log lines do not go to {tmp_path / 'app.log'}: Is a directory." in first
    assert "hello" in second


def test_a_large_file_is_put_aside_once_and_no_line_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "LARGEST_LOG_BYTES", 100)
    logger.LOG_FILE.parent.mkdir()
    with logger.LOG_FILE.open("a") as other_process:
        print("x" * 100, file=other_process, flush=True)
        for line in ("first", "second"):
            configure_logging(EnvironmentOption.LOCAL)
            logging.getLogger("theirs").info(line)
        print("last words", file=other_process, flush=True)
    assert "last words" in logger.LOG_FILE.with_name("app.log.1").read_text()
    ours = logger.LOG_FILE.read_text()
    assert "first" in ours
    assert "second" in ours


@pytest.mark.anyio
async def test_what_a_job_is_given_and_gives_back_is_in_no_line(
    app: FastAPI, db: AsyncSession, capsys: pytest.CaptureFixture[str]
) -> None:
    async def send(ctx: dict[Any, Any], to: str, *, again: bool = True, fails: bool = False) -> str:
        if fails:
            raise ConnectionError("no such host")
        if again:
            await queue.enqueue(ctx["db"], "send", to, again=False)
        return f"sent to {to}"

    configure_logging(EnvironmentOption.PRODUCTION)
    logging.getLogger().setLevel(logging.DEBUG)
    await queue.enqueue(db, "send", "ada@example.com")
    await queue.enqueue(db, "send", "ada@example.com", fails=True)
    await db.commit()
    jobs = await drain_jobs([job(send, name="send", max_tries=2)], allow_dead=True)

    assert Counter(job.state for job in jobs) == {JobState.SUCCEEDED: 2, JobState.DEAD: 1}
    written = capsys.readouterr().out
    lines = [json.loads(line) for line in written.splitlines()]
    events = Counter(line["event"] for line in lines if line.get("function") == "send")
    assert events == {"job started": 4, "attempt failed": 1, "job is dead": 1, "job ended": 4}
    assert "ConnectionError: no such host" in written
    assert "ada@example.com" not in written
