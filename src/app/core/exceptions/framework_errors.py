"""Recognises the errors that Starlette and FastAPI answer in plain text by themselves, to make problems of them.

They come as responses, not as exceptions, from inside of classes that applications use as they are: files, mounted
routes, middleware. Each is recognised by its status, its exact text and what in the request leads to it, so that a
text of the application's own is left alone.
"""

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Message, Scope

from app.core.exceptions.http_exceptions import NotFound, Problem
from app.core.exceptions.problem_response import problem_response

_PLAIN_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_MAX_TEXT: Final = 200  # bytes; the longest that is known lists what a preflight asked for
_RANGE_TEXTS: Final = frozenset(
    {
        b"Malformed range header.",
        b"Only support bytes range",
        b"Range header: range must be requested",
        b"Range header: start must be less than end",
    }
)


class InvalidRange(Problem):
    status = 400
    text = "The Range header is malformed."


class RangeNotSatisfiable(Problem):
    status = 416
    text = "The file is shorter than the requested range."


class InvalidHost(Problem):
    status = 400
    text = "This host is not served here."


class PreflightRefused(Problem):
    status = 400
    text = "The origin, the method or a header is not allowed."


def can_be_the_frameworks(answer: Sequence[Message]) -> bool:
    """Whether the messages of an answer so far look like one of Starlette's errors, and the rest of it has to be seen.

    The text can come in several messages: middleware of the application may pass it on in parts.
    """
    start, *parts = answer
    if start["status"] not in {400, 404, 416} or _PLAIN_TEXT not in start["headers"]:
        return False
    is_text = all(part["type"] == "http.response.body" for part in parts)
    return is_text and len(_text_of(parts)) <= _MAX_TEXT and (not parts or parts[-1].get("more_body", False))


def problem_instead_of(scope: Scope, answer: Sequence[Message]) -> Response | None:
    """The problem document to send instead, with the other headers kept; None when the answer is not Starlette's."""
    start, *parts = answer
    if parts[-1]["type"] != "http.response.body" or parts[-1].get("more_body", False):
        return None
    headers = Headers(raw=start["headers"])
    error = _error_of(scope, start["status"], headers, _text_of(parts))
    if error is None:
        return None
    return problem_response(
        scope["state"]["request_id"],
        error.status_code,
        kind=error.problem_type(),
        detail=error.detail,
        headers=headers,
    )


def _text_of(parts: Sequence[Message]) -> bytes:
    return b"".join(bytes(part.get("body", b"")) for part in parts)


def _error_of(scope: Scope, status: int, headers: Headers, text: bytes) -> Problem | None:
    asked = Headers(scope=scope)

    def says(*known: bytes) -> bool:
        if scope["method"] == "HEAD":  # Its text was left out; the length of it is still told.
            return headers.get("content-length") in {str(len(each)) for each in known}
        return text in known

    if status == 416 and says(b"") and "range" in asked and headers.get("content-range", "").startswith("bytes */"):
        return RangeNotSatisfiable()
    if status == 400 and "range" in asked and says(*_RANGE_TEXTS):  # starlette.responses.FileResponse
        return InvalidRange()
    if status == 400 and says(b"Invalid host header"):  # TrustedHostMiddleware, HTTPSRedirectMiddleware
        return InvalidHost()
    if status == 400 and text.startswith(b"Disallowed CORS ") and "access-control-request-method" in asked:
        return PreflightRefused(f"{text.decode()}.")
    if status == 404 and says(b"Not Found") and isinstance(scope.get("endpoint"), BaseRoute):  # a mounted route
        return NotFound()
    return None
