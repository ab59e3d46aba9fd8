"""Logging: one configuration for our own lines, uvicorn's, ARQ's and everybody else's, called by entry points."""

import contextlib
import io
import logging
import logging.config
import re
import sys
import time
from collections.abc import MutableMapping
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any, TextIO

import structlog

from app.core.config import EnvironmentOption
from app.core.log_format import (
    BoundLogger,
    Formatter,
    accept_any_extra,
    add_extra,
    as_json,
    for_terminals,
    format_arguments,
)

LOG_FILE = Path(__file__).parents[1] / "logs" / "app.log"
LARGEST_LOG_BYTES = 10_000_000


USER_ID = "user_id"  # in a request's state, once it is known who asks
TRACE_ID = "trace_id"  # in a request's state, where it is another than the request's id

request_log = structlog.stdlib.get_logger("slipway.request")
_direct_lines: TextIO | None = None  # where a request's line goes without the detour through structlog and logging


def log_request(
    request_id: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    *,
    route: str | None = None,
    user_id: int | None = None,
    trace_id: str | None = None,
) -> None:
    """Writes the line of a request, once it is answered.

    Where lines are JSON it is put together here: it is the one that every request writes, and 3 microseconds against
    the 22 that it takes through structlog and logging.

    Args:
        request_id, method, path, status: the path without its query, where there can be secrets.
        seconds: how long it took.
        route: the template of the path, if there is such a route.
        user_id: who asked, if that was looked up.
        trace_id: the trace's, where that is another than the request's.
    """
    milliseconds = round(seconds * 1000, 1)
    if _direct_lines is None:
        known = {"route": route, "user_id": user_id, "trace_id": trace_id}
        known = {name: value for name, value in known.items() if value is not None}
        request_log.info("request", method=method, path=path, status=status, milliseconds=milliseconds, **known)
        return
    now = _now()
    known_route = "" if route is None else f' "route": {_quoted(route)},'
    known_user = "" if user_id is None else f' "user_id": {user_id},'
    known_trace = "" if trace_id is None else f' "trace_id": "{trace_id}",'
    line = (
        f'{{"method": {_quoted(method)}, "path": {_quoted(path)},{known_route}{known_user}{known_trace}'
        f' "status": {status}, "milliseconds": {milliseconds},'
        f' "event": "request", "request_id": {_quoted(request_id)}, "level": "info", "logger": "slipway.request",'
        f' "timestamp": "{now}"}}\n'
    )
    with contextlib.suppress(OSError, ValueError):  # Whoever reads the log has gone: no reason to fail a request.
        _direct_lines.write(line)
        _direct_lines.flush()


_second = (0, "")  # the last one that was asked for, and how it is written


def _now() -> str:
    """The time in ISO 8601. The second is put into words once: that is most of the work."""
    global _second
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    known = _second  # another thread may change it meanwhile
    if known[0] != second:
        known = _second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{known[1]}.{nanoseconds // 1000:06}Z"


def note_user(state: MutableMapping[str, Any], user_id: int) -> None:
    """Has the lines of a request say from now on who asks. `state` is the request's."""
    state[USER_ID] = user_id
    structlog.contextvars.bind_contextvars(user_id=user_id)


def configure_logging(environment: EnvironmentOption = EnvironmentOption.PRODUCTION) -> None:
    """Lines for people on standard output and in `logs/app.log` in `local`; JSON on standard output elsewhere.

    Elsewhere there is no file: containers collect standard output. When the file cannot be written, one line says so.
    """
    global _direct_lines
    local = environment is EnvironmentOption.LOCAL
    _direct_lines = None if local else sys.stdout
    if isinstance(sys.stdout, io.TextIOWrapper):  # What the terminal's encoding lacks is no reason to lose a line.
        sys.stdout.reconfigure(errors="backslashreplace")
    accept_any_extra()
    logging.captureWarnings(True)  # They are lines as well.
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        add_extra,
        format_arguments,
        _without_colours,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if local else "iso", utc=not local),
        # Tracebacks as text: the structured form lists local variables, and those hold secrets.
        structlog.processors.format_exc_info,
        _without_row_values,
    ]
    handlers: dict[str, dict[str, Any]] = {
        "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "lines"}
    }
    problem = _prepare_file(LOG_FILE) if local else None
    if local and problem is None:
        handlers["file"] = {
            "class": "logging.FileHandler",
            "filename": str(LOG_FILE),
            "encoding": "utf-8",
            "errors": "backslashreplace",
            "formatter": "lines",
        }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "lines": {
                    "()": Formatter,
                    "foreign_pre_chain": shared,
                    "processors": _rendering(local),
                }
            },
            "filters": {"job_values": {"()": _WithoutJobValues}, "handshakes": {"()": _WithoutHandshakes}},
            "handlers": handlers,
            "root": {"level": "INFO", "handlers": list(handlers)},
            "loggers": {
                # Ours has the request id; uvicorn's would say everything a second time.
                "uvicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
                "uvicorn": {"handlers": [], "propagate": True},
                "uvicorn.error": {"handlers": [], "propagate": True, "filters": ["handshakes"]},
                "arq": {"handlers": [], "propagate": True},
                "arq.worker": {"filters": ["job_values"]},
                # It reports every schema comparison and version lookup.
                "alembic": {"level": "WARNING"},
                # They write down whole addresses, and in a query there can be secrets.
                "httpx": {"level": "WARNING"},
                "httpx2": {"level": "WARNING"},
            },
        }
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    if problem is not None:
        logging.getLogger(__name__).warning("Log lines do not go to %s: %s.", LOG_FILE, problem.strerror)


def _prepare_file(file: Path) -> OSError | None:
    """Put a large file aside; the answer is why the file cannot be written, if so.

    Only at the start of a process: the others that write to it go on in the one that was put aside.
    """
    try:
        file.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # There is none, or another process has just put it aside.
            if file.stat().st_size > LARGEST_LOG_BYTES:
                file.replace(file.with_name(f"{file.name}.1"))
        file.open("ab").close()
    except OSError as error:
        return error
    return None


def _without_colours(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    event.pop("color_message", None)  # uvicorn says everything twice, once for terminals
    return event


# PostgreSQL's "DETAIL:  Failing row contains (...)": e-mail addresses, hashes. Ends where SQLAlchemy or Python goes on.
_DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\[SQL|\n\n(?:The above|During)|\Z)", re.DOTALL)
# Pydantic's "[type=..., input_value={'password': ...}, input_type=dict]", of which it shortens the value.
_INPUT = re.compile(r"\binput_value=[^\n]{0,1000}, input_type=")


def _without_row_values(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_values(text) if isinstance(text, str) else text for name, text in event.items()}


def _without_values(text: str) -> str:
    text = _DETAIL.sub("", text) if "\nDETAIL:" in text else text
    return _INPUT.sub("input_type=", text) if "input_value=" in text else text


class _WithoutJobValues(logging.Filter):
    """Cuts what a job was given, and what it gave back, out of ARQ's lines: e-mail addresses, what people wrote."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in _LINES_WITH_VALUES and isinstance(record.args, tuple):
            record.args = (*record.args[:2], "...", *record.args[3:])
        return True


_LINES_WITH_VALUES = {"%6.2fs → %s(%s)%s", "%6.2fs ← %s ● %s"}


class _WithoutHandshakes(logging.Filter):
    """Drops uvicorn's lines about handshakes of WebSockets: their addresses have queries, which can hold secrets.

    Our line of the request says the same. The error is written for every handshake that gets an HTTP answer.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != _REFUSED_HANDSHAKE and not str(record.msg).startswith(_HANDSHAKE)


_HANDSHAKE = '%s - "WebSocket %s"'
_REFUSED_HANDSHAKE = "ASGI callable returned without completing handshake."


def _rendering(local: bool) -> list[Any]:
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if local:
        plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
        return [without_meta, for_terminals, plain]
    return [without_meta, as_json]
