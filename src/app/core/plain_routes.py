"""Answers plain routes without FastAPI's general way to a handler.

Plain is what has no parameters but those in its path, and no dependency that is left after the answer. FastAPI reads
query, headers and cookies of every request for each dependency, to find that none is wanted, and prepares for files
and exits. Here the dependencies are called one after the other, in the same order, as was found out once. That saves
27 microseconds of the 61 of a ping, and 33 of a cached hit (docs/benchmarks.md has how they are measured).

What FastAPI has to say is left to it: what is not valid, and dependencies that a test overrides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant, _is_async_gen_callable, _is_coroutine_callable, _is_gen_callable
from fastapi.dependencies.utils import _get_param_aliases, _get_param_model
from fastapi.routing import APIRoute, serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.requests import Request
from starlette.responses import Response

Values = list[dict[str, Any]]  # of each call, what it gets from the path


class _NotPlainError(Exception):
    """FastAPI has to do it."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A dependency, or the handler.

    Attributes:
        path: name, alias and field of its parameters in the path.
        given: the names of those that are dependencies, and the places of these among the calls.
        requests: the names of those that are the request.
        response: the name of the one that is the response whose headers are added to the answer's.
    """

    function: Callable[..., Any]
    path: tuple[tuple[str, str, Any], ...]
    given: tuple[tuple[str, int], ...]
    requests: tuple[str, ...]
    response: str | None


class PlainRoute:
    """One route; all that its requests need of it is found out once."""

    def __init__(self, route: Any, calls: list[_Call]) -> None:
        self._route = route
        self._calls = calls
        self._wants_response = any(call.response is not None for call in calls)
        self._reads_path = any(call.path for call in calls)

    @classmethod
    def of(cls, route: Any) -> "PlainRoute | None":
        """
        Args:
            route: one that was included, with all that its including routers add.

        Returns: None when it is not plain.
        """
        calls: list[_Call] = []
        try:
            _require(type(route.original_route) is APIRoute, route.max_body_size is None, route.body_field is None)
            _require(not route.is_sse_stream, not route.is_json_stream)
            _add(route.dependant, calls, {})
        except _NotPlainError:
            return None
        return cls(route, calls)

    def values(self, path_params: Mapping[str, Any]) -> Values | None:
        """What the calls get from the path. None when some of it is not valid: FastAPI knows how to say that."""
        if not self._reads_path:
            return [{} for _ in self._calls]
        values = []
        for call in self._calls:
            mine = {}
            for name, alias, field in call.path:
                if alias not in path_params:  # A dependency of several routes, some of which lack it.
                    return None
                mine[name], faults = field.validate(path_params[alias], {}, loc=())
                if faults:
                    return None
            values.append(mine)
        return values

    async def answer(self, request: Request, values: Values) -> Response:
        """The answer, as FastAPI would make it. Raises what the dependencies and the handler raise."""
        injected = _empty_response() if self._wants_response else None
        result = await self._result(request, values, injected)
        if isinstance(result, Response):
            return result
        answer = await shaped(self._route, result, injected.status_code if injected else None, is_coroutine=True)
        if injected is not None:
            answer.raw_headers.extend(injected.raw_headers)
        return answer

    async def _result(self, request: Request, values: Values, injected: Response | None) -> Any:
        """Of the handler, once all that it depends on has been called."""
        results: list[Any] = []
        for call, arguments in zip(self._calls, values, strict=True):
            for name, place in call.given:
                arguments[name] = results[place]
            for name in call.requests:
                arguments[name] = request
            if call.response is not None:
                arguments[call.response] = injected
            results.append(await call.function(**arguments))
        return results[-1]


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise _NotPlainError


def _add(dependant: Dependant, calls: list[_Call], places: dict[Any, int]) -> int:
    """Adds a dependency to the calls, after its own; its place among them. The same one is called once."""
    given = [(other.name, _add(other, calls, places)) for other in dependant.dependencies]
    function, key = dependant.call, (dependant.call, dependant.scope)
    _require(
        dependant.use_cache,
        not (dependant.query_params or dependant.header_params or dependant.cookie_params or dependant.body_params),
        not (dependant.own_oauth_scopes or dependant.parent_oauth_scopes or dependant.security_scopes_param_name),
        dependant.concurrency is None,
        dependant.background_tasks_param_name is None,
        dependant.websocket_param_name is None,
    )
    if function is None or _is_gen_callable(function) or _is_async_gen_callable(function):
        raise _NotPlainError  # It has an exit, or the answer is a stream.
    _require(_is_coroutine_callable(function))
    if key not in places:
        requests = (dependant.http_connection_param_name, dependant.request_param_name)
        path = tuple(_in_path(field) for field in dependant.path_params)
        named = tuple((name, place) for name, place in given if name is not None)
        wanted = tuple(name for name in requests if name is not None)
        places[key] = len(calls)
        calls.append(_Call(function, path, named, wanted, dependant.response_param_name))
    return places[key]


def _in_path(field: Any) -> tuple[str, str, Any]:
    aliases = _get_param_aliases(field)
    _require(_get_param_model(field) is None, len(aliases) == 1)
    return field.name, aliases[0][1], field


def _empty_response() -> Response:
    """One to set headers and a status on, as FastAPI makes it: without those of a body."""
    response = Response.__new__(Response)
    response.body, response.raw_headers, response.background = b"", [], None
    response.status_code = None  # type: ignore[assignment]  # until a handler sets one
    return response


async def shaped(route: Any, result: Any, status: int | None, *, is_coroutine: bool) -> Response:
    """What FastAPI makes of a handler's result: its response model decides what is in it.

    Args:
        route: the route.
        result: what the handler returned.
        status: the one that the handler set on the injected response.
        is_coroutine: whether the handler is one; another's result is validated in a thread, as FastAPI does.
    """
    if isinstance(result, Response):
        return result
    default_class = isinstance(route.response_class, DefaultPlaceholder)
    to_bytes = default_class and route.response_field is not None
    content = await serialize_response(
        field=route.response_field,
        response_content=result,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        is_coroutine=is_coroutine,
        dump_json=to_bytes,
    )
    response_class = route.response_class.value if default_class else route.response_class
    more: dict[str, Any] = {"status_code": code} if (code := status or route.status_code) else {}
    response: Response = (
        Response(content, media_type="application/json", **more) if to_bytes else response_class(content, **more)
    )
    if not is_body_allowed_for_status_code(response.status_code):
        response.body = b""
    return response
