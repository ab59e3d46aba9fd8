"""Makes what an error carries fit for a problem document: any detail, any members, any headers."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog
from fastapi.encoders import jsonable_encoder

log = structlog.stdlib.get_logger("slipway.problem")

STANDARD = ("type", "title", "status", "detail", "request_id")
_OURS = frozenset({"content-length", "content-type", "transfer-encoding"})  # of the body, which is ours
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


def text_and_members(detail: Any) -> tuple[str | None, dict[str, Any]]:
    """The text and the extension members that the `detail` of an `HTTPException` stands for.

    A dict becomes extension members, its text `detail` the text. A member that would replace another standard one is
    kept as `detail_status`, for example. A list becomes the member `errors`. Numbers and truth values become text.

    Returns: None as the text when the detail has none, or cannot be said in JSON.
    """
    if detail is None or isinstance(detail, str):
        return detail, {}
    value = jsonable(detail)
    if isinstance(value, list):
        return None, {"errors": value}
    if isinstance(value, dict):
        text = value.get("detail")
        if isinstance(text, str):
            value = {name: member for name, member in value.items() if name != "detail"}
        members = {f"detail_{name}" if name in STANDARD else name: member for name, member in value.items()}
        return text if isinstance(text, str) else None, members
    return value if isinstance(value, str) or value is None else json.dumps(value), {}


def jsonable(value: Any) -> Any:
    """The value as JSON has it, by FastAPI's rules; null for NaN and infinities.

    What has no JSON form is null, and is logged by its type: an error that cannot be told in full is still told.
    """
    try:
        encoded = _finite(jsonable_encoder(value))
        json.dumps(encoded)
    except (TypeError, ValueError, RecursionError) as error:
        log.warning("detail of an error is not JSON", type=type(value).__name__, why=type(error).__name__)
        return None
    return encoded


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return value


def raw_headers(headers: Mapping[Any, Any] | None) -> list[tuple[bytes, bytes]]:
    """The headers of an error as ASGI has them.

    A list gives one header per value; None gives none. Those of the body are left out, and so is a name or a value
    that HTTP does not allow: the server would break the connection off.
    """
    found = []
    for name, value in _pairs(headers or {}):
        name, value = _text(name).lower(), _text(value)
        if name in _OURS:
            continue
        try:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError
            found.append((name.encode("latin-1"), value.encode("latin-1")))
        except ValueError:
            log.warning("header of an error is not valid", header=name if _NAME.fullmatch(name) else None)
    return found


def _pairs(headers: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    # Starlette's headers can have a name twice, and so can a list of pairs.
    pairs = getattr(headers, "multi_items", None) or getattr(headers, "items", None)
    for name, value in pairs() if pairs is not None else headers:
        values: Iterable[Any] = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        yield from ((name, each) for each in values if each is not None)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
