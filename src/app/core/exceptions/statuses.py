"""HTTP status codes, those without a registered name included."""

import sys
from http import HTTPStatus
from typing import Any

_WITHOUT_BODY = frozenset({204, 205, 304})


def phrase_of(status: int) -> str:
    """The registered reason phrase, such as `Not Found`; `Status 499` for a code that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def ends_a_request(status: Any) -> bool:
    """Whether an answer can have this status. 1xx only announces another answer, for which the client would wait."""
    return isinstance(status, int) and 200 <= status <= 999


def allows_body(status: int) -> bool:
    """Whether an answer with this status has a body (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5)."""
    return status not in _WITHOUT_BODY


def let_uvicorn_send(status: int) -> None:
    """Adds a code above 599 to uvicorn's table of status lines; without it uvicorn closes the connection."""
    if status > 599 and (server := sys.modules.get("uvicorn.protocols.http.httptools_impl")) is not None:
        server.STATUS_LINE.setdefault(status, b"HTTP/1.1 %d \r\n" % status)
