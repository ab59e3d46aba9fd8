"""How errors look to the caller: every one, the framework's own included, as RFC 9457 problem details."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.core.exceptions.http_exceptions import Problem

MEDIA_TYPE = "application/problem+json"
log = structlog.stdlib.get_logger("slipway.problem")

MOST_FAULTS = 20
LONGEST_NAME = 100


class ProblemResponse(Response):
    """A problem document. Its JSON is ASCII, so that no echoed field name, not even a lone surrogate, can break it."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def add_problem_handlers(app: FastAPI) -> None:
    """Registers the handlers for everything an endpoint, a dependency or the framework raises on purpose.

    What nobody expected is answered by the error middleware.
    """
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


def problem_response(
    request_id: str,
    status: int,
    *,
    kind: str = "about:blank",
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> ProblemResponse:
    """A problem document as an answer; `members` are its extension members."""
    phrase = HTTPStatus(status).phrase
    document = {
        "type": kind,
        "title": phrase,
        "status": status,
        "detail": detail or phrase,
        "request_id": request_id,
        **(members or {}),
    }
    return ProblemResponse(document, status, headers)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for nothing else
    return answer_to(request, error)


def answer_to(request: Request, error: HTTPException) -> Response:
    """The problem document for an error; one that is our own fault is logged with its cause."""
    problem = error if isinstance(error, Problem) else None
    if error.status_code >= 500:  # The caller is told to come back; what is wrong is for the log.
        log.warning("refused", problem=type(error).__name__, cause=repr(error.__cause__))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(request)) or headers.get("Allow", "GET, HEAD")
    return problem_response(
        request_id_of(request),
        error.status_code,
        kind=problem.problem_type() if problem else "about:blank",
        detail=str(error.detail),
        headers=headers,
        members=problem.members if problem else None,
    )


def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for nothing else
    # Neither the input nor the context is echoed: they can hold a password, or what JSON cannot say.
    faults = [
        {"loc": [_shortened(part) for part in fault["loc"]], "msg": fault["msg"], "type": fault["type"]}
        for fault in error.errors()[:MOST_FAULTS]
    ]
    return problem_response(
        request_id_of(request),
        422,
        kind="urn:problem-type:invalid-request",
        detail="The request is not valid.",
        members={"errors": faults},
    )


def _shortened(part: int | str) -> int | str:
    """A place in the request; the name of an unknown field is the caller's and can be of any length."""
    return part if isinstance(part, int) else part[:LONGEST_NAME]


def allowed_methods(request: Request) -> list[str]:
    """What the requested path answers to (RFC 9110, section 10.2.1). The router names its first match's only."""
    path = get_route_path(request.scope)
    routes = (route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, Route))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def request_id_of(request: Request) -> str:
    """The id the request context middleware gave this request."""
    return str(request.scope["state"]["request_id"])
