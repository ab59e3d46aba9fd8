"""How a log line is written: whatever is logged, one line comes out, and nothing is raised at the caller.

The usual line takes the short way (`json.dumps` at once). What that does not take (keys that are no text, circular
values, NaN, objects whose `repr` fails, values of megabytes) is first turned into plain values.
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

MAX_LINE: Final = 262_144  # characters of a line in JSON
MAX_TEXT: Final = 8_192  # characters that are kept of one text in a line that is too long
MAX_ITEMS: Final = 100  # items that are kept of one collection in such a line
MAX_DEPTH: Final = 20  # collections in one another
MAX_BITS: Final = 10_000  # of a number that is written as one: Python refuses to write longer ones

Event = dict[str, Any]

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OF_STRUCTLOG: Final = frozenset(("_logger", "_name", "_record", "_from_structlog"))
# Printed as they are, they move the cursor of a terminal, change its colours, or begin what looks like another line.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"} | {
    ord("\n"): "\n    ",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


# ---- Processors of structlog ----


def format_arguments(_: Any, __: str, event: Event) -> Event:
    """Put the positional arguments into the text, as the standard library does: `log.info("user %s", id)`."""
    arguments = event.pop("positional_args", None)
    if arguments:
        event["event"] = _formatted(event.get("event"), arguments)
    return event


def add_extra(_: Any, __: str, event: Event) -> Event:
    """Add what a line of the standard library has in `extra`, under another name where that one is taken."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord) and not event.get("_from_structlog"):
        for name, value in record.__dict__.items():
            if name not in _STANDARD and name not in _OF_STRUCTLOG:
                event[f"extra_{name}" if name in event or name in ("exc_info", "timestamp") else name] = value
    return event


def as_json(_: Any, __: str, event: Event) -> str:
    """Return the line in JSON: one object, without line breaks."""
    try:
        line = json.dumps(event, default=_described, allow_nan=False)
    except Exception:  # Objects of the application are asked for their text, and can raise anything.
        line = json.dumps(_plain(event))
    return line if len(line) <= MAX_LINE else json.dumps(_plain(event, MAX_TEXT))


def for_terminals(_: Any, __: str, event: Event) -> Event:
    """Make control characters visible, and indent further lines, so that none can be taken for a line of its own.

    Tracebacks stay as they are.
    """
    return {
        name: value if name in ("exception", "stack", "_record", "_from_structlog") else _visible(value)
        for name, value in event.items()
    }


# ---- Where the two ways of logging come in ----


class Formatter(structlog.stdlib.ProcessorFormatter):
    """structlog's, which formats a line of any arguments."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A line that the processors cannot make has its text, its level and its logger."""
        try:
            if not isinstance(record.msg, dict):
                record = _with_message(record)
            return super().format(record)
        except Exception as error:
            event = record.msg if isinstance(record.msg, dict) else {"event": record.msg}
            known = {"level": record.levelname.lower(), "logger": record.name, "log_error": type(error).__name__}
            return json.dumps(_plain({**event, **known}, MAX_TEXT))


class BoundLogger(structlog.stdlib.BoundLogger):
    """structlog's, which raises nothing at the caller."""

    def _process_event(self, method_name: str, event: str | None, event_kw: Event) -> Any:
        try:
            return super()._process_event(method_name, event, event_kw)
        except structlog.DropEvent:
            raise
        except Exception as error:
            known = {"level": method_name, "logger": self._logger.name, "log_error": type(error).__name__}
            line = {**self._context, **event_kw, "event": event, **known}
            return structlog.stdlib.ProcessorFormatter.wrap_for_formatter(self._logger, method_name, line)


def _with_any_names(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `BoundLogger` whose own parameters are no names that a value cannot have."""

    @functools.wraps(method)
    def write(self: BoundLogger, event: Any = None, /, *args: Any, **values: Any) -> Any:
        if event is None:
            event = values.pop("event", None)
        for name in _PARAMETERS & values.keys():
            values[f"extra_{name}"] = values.pop(name)
        return method(self, event, *args, **values)

    return write


_PARAMETERS: Final = {"event", "self", "method_name", *_OF_STRUCTLOG}
for _method in ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception"):
    setattr(BoundLogger, _method, _with_any_names(getattr(BoundLogger, _method)))


def accept_any_extra() -> None:
    """Have `extra` of the standard library take any names: it raises KeyError at the caller for those of a record."""
    make_record: Callable[..., logging.LogRecord] = logging.Logger.makeRecord
    if getattr(make_record, "takes_any_extra", False):
        return

    def make(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        values = list(args)
        extra = values[_EXTRA] if len(values) > _EXTRA else kwargs.get("extra")
        if extra:
            given = dict(extra) if isinstance(extra, Mapping) else {"extra": extra}
            safe = {f"extra_{name}" if name in _STANDARD else str(name): value for name, value in given.items()}
            if len(values) > _EXTRA:
                values[_EXTRA] = safe
            else:
                kwargs["extra"] = safe
        return make_record(self, *values, **kwargs)

    make.takes_any_extra = True  # type: ignore[attr-defined]
    logging.Logger.makeRecord = make  # type: ignore[method-assign]


_EXTRA: Final = 8  # which argument of `Logger.makeRecord` it is, without `self`


# ---- Values ----


def _with_message(record: logging.LogRecord) -> logging.LogRecord:
    """The record with its text in place of text and arguments; a copy, since others format it as well."""
    try:
        text = record.getMessage()
    except Exception:
        text = _formatted(record.msg, record.args or ())
    copy = logging.makeLogRecord(record.__dict__)
    copy.msg, copy.args = text, ()
    return copy


def _formatted(text: Any, arguments: Any) -> str:
    if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], Mapping) and arguments[0]:
        arguments = arguments[0]
    try:
        return str(str(text) % arguments)
    except Exception:  # The number or the type does not fit, or an argument has no text.
        return f"{_text(text)} {_text(arguments)}" if arguments else _text(text)


def _described(value: Any) -> Any:
    """The text of what JSON has no form for, by structlog's own rule."""
    own = getattr(value, "__structlog__", None)
    return own() if own is not None else repr(value)


def _text(value: Any) -> str:
    """The value as text. Objects whose text cannot be had are called by their type."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:
        return f"<{type(value).__name__}: its text cannot be had>"


def _plain(value: Any, limit: int | None = None, within: tuple[int, ...] = ()) -> Any:
    """Return the value in what JSON takes.

    Args:
        value: anything.
        limit: how many characters of a text are kept, and whether only `MAX_ITEMS` of a collection are.
        within: the collections that it is in, by their identity.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, int) and value.bit_length() < MAX_BITS:
        return value
    if isinstance(value, str):
        return _cut(str.__str__(value), limit)
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return _cut(_text(value), limit)
    if id(value) in within:
        return "<circular>"
    if len(within) == MAX_DEPTH:
        return "<too deep>"
    try:
        return _plain_collection(value, limit, (*within, id(value)))
    except Exception:  # Another thread changes it, or it is a class of the application.
        return _cut(_text(value), limit)


def _plain_collection(value: Any, limit: int | None, within: tuple[int, ...]) -> Any:
    items = list(value.items()) if isinstance(value, Mapping) else list(value)
    most = MAX_ITEMS if limit else len(items)
    left_out = f"<{len(items) - most} more>" if len(items) > most else None
    if isinstance(value, Mapping):
        shown = {_key(key): _plain(item, limit, within) for key, item in items[:most]}
        return shown | ({left_out: None} if left_out else {})
    return [_plain(item, limit, within) for item in items[:most]] + ([left_out] if left_out else [])


def _key(key: Any) -> str:
    try:
        return key if type(key) is str else str(key)
    except Exception:
        return _text(key)


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} <{len(text) - limit} characters left out> {text[-half:]}"


def _visible(value: Any) -> str:
    return _text(value).translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()
