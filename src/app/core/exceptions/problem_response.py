"""How errors look to the caller: every one, the framework's own included, as RFC 9457 problem details."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from asyncpg.exceptions import InterfaceError, PostgresError
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError, ValidationException, WebSocketRequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import SQLAlchemyError, StatementError
from starlette._utils import get_route_path, is_async_callable
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ExceptionHandler

from app.core.db.data_errors import hide_values, problem_of
from app.core.exceptions.http_exceptions import BadRequest, Problem
from app.core.exceptions.problem_members import jsonable, raw_headers, text_and_members
from app.core.exceptions.statuses import allows_body, ends_a_request, let_uvicorn_send, phrase_of

MEDIA_TYPE = "application/problem+json"
log = structlog.stdlib.get_logger("slipway.problem")

MOST_FAULTS = 20
LONGEST_NAME = 100
_FASTAPIS = (
    None,
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)
INTERNAL = "Something went wrong here."


class ProblemResponse(Response):
    """A problem document. Its JSON is ASCII, so that no echoed field name, not even a lone surrogate, can break it."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def add_handlers(app: Starlette, handlers: Mapping[type[Exception], ExceptionHandler]) -> None:
    """Registers handlers of errors. They replace FastAPI's own, and none of the application's."""
    for error, handler in handlers.items():
        if app.exception_handlers.get(error) in _FASTAPIS:
            app.exception_handlers[error] = handler


def problem_response(
    request_id: str,
    status: int,
    *,
    kind: str = "about:blank",
    detail: str | None = None,
    headers: Mapping[str, Any] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """A problem document as an answer.

    Args:
        request_id: the id of the request, in the document.
        status: 200 to 999. One that allows no body, such as 204, gets none.
        kind: the `type` of the problem.
        detail: the text for the caller; by default the status's phrase.
        headers: of the answer; a list as a value gives one header per item.
        members: extension members, any of JSON's. A `type`, `title`, `detail` or `instance` replaces the standard one.
    """
    let_uvicorn_send(status)
    if not allows_body(status):
        response = Response(status_code=status)
    else:
        phrase = phrase_of(status)
        document = {"type": kind, "title": phrase, "status": status, "detail": detail or phrase}
        document |= {"request_id": request_id, **{name: jsonable(value) for name, value in (members or {}).items()}}
        response = ProblemResponse(document | {"status": status, "request_id": request_id}, status)
    response.raw_headers.extend(raw_headers(headers))
    return response


def _on_http_exception(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for nothing else
    return answer_to(request, error)


def answer_to(request: HTTPConnection, error: HTTPException) -> Response:
    """The problem document for an error; one that is our own fault is logged with its cause."""
    problem = error if isinstance(error, Problem) else None
    status = error.status_code
    if not ends_a_request(status):
        log.error("no answer can have this status", status=status, problem=type(error).__name__)
        return problem_response(request_id_of(request), 500, detail=INTERNAL)
    if status >= 500:  # The caller is told to come back; what is wrong is for the log.
        log.warning("refused", problem=type(error).__name__, cause=repr(error.__cause__))
    text, members = text_and_members(error.detail)
    response = problem_response(
        request_id_of(request),
        status,
        kind=problem.problem_type() if problem else "about:blank",
        detail=text,
        headers=error.headers,
        members=members | problem.members if problem else members,
    )
    if status == 405:
        response.headers["Allow"] = ", ".join(allowed_methods(request)) or response.headers.get("Allow", "GET, HEAD")
    return response


def _on_validation_error(request: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, ValidationException)  # noqa: S101 -- registered for nothing else
    faults = error.errors()
    listed = list(faults) if isinstance(faults, Iterable) and not isinstance(faults, str | Mapping) else [faults]
    return problem_response(
        request_id_of(request),
        422,
        kind="urn:problem-type:invalid-request",
        detail="The request is not valid.",
        members={"errors": [_fault(fault) for fault in listed[:MOST_FAULTS]]},
    )


def _on_disconnect(request: HTTPConnection, _: Exception) -> Response:
    """Nobody reads this answer. It is the status of the log and the metrics: a client that leaves is no error here."""
    return answer_to(request, BadRequest("The request was not completed."))


def _fault(fault: Any) -> dict[str, Any]:
    """One fault, as Pydantic describes it, or as a handler that raises the error itself may.

    Neither the input nor the context is echoed: they can hold a password, or what JSON cannot say.
    """
    if not isinstance(fault, Mapping):
        fault = {"msg": fault} if isinstance(fault, str) else {}
    loc = fault.get("loc", ())
    parts = loc if isinstance(loc, list | tuple) else (loc,)
    return {
        "loc": [_shortened(part) for part in parts],
        "msg": str(fault.get("msg", "Invalid value.")),
        "type": str(fault.get("type", "value_error")),
    }


async def _on_database_error(request: HTTPConnection, error: Exception) -> Response:
    """Answers what the request's data has caused. Everything else is an error of ours."""
    own = request.app.exception_handlers.get(SQLAlchemyError)  # A handler of the application, for a wider class.
    if own is not None and isinstance(error, SQLAlchemyError):
        answer: Response = await (
            own(request, error) if is_async_callable(own) else run_in_threadpool(own, request, error)
        )
        return answer
    problem = problem_of(error)
    if problem is None:
        raise error
    hide_values(error)  # Of an error that did not come from an engine of ours.
    log.info("refused by the database", problem=type(problem).__name__, error=str(error).partition("\n[SQL")[0])
    return answer_to(request, problem)


def _shortened(part: object) -> int | str:
    """A place in the request; the name of an unknown field is the caller's and can be of any length."""
    return part if isinstance(part, int) else str(part)[:LONGEST_NAME]


def allowed_methods(request: HTTPConnection) -> list[str]:
    """What the requested path answers to (RFC 9110, section 10.2.1). The router names its first match's only."""
    path = get_route_path(request.scope)
    routes = (route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, Route))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def request_id_of(request: HTTPConnection) -> str:
    """The id the request context middleware gave this request."""
    return str(request.scope["state"]["request_id"])


# For everything that a route, a dependency or the framework raises on purpose, of requests and WebSockets. The error
# middleware answers unexpected errors.
PROBLEM_HANDLERS: Final[Mapping[type[Exception], Any]] = {
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
    WebSocketRequestValidationError: _on_validation_error,
    ClientDisconnect: _on_disconnect,
    **dict.fromkeys((StatementError, PostgresError, InterfaceError), _on_database_error),
}
