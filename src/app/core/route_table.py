"""Finds the route of a request at once.

FastAPI tries the routes of every included router one after the other, and again at each level of inclusion. With some
50 routes in two levels that is some 95 microseconds a request, more than all of a bare one; here it is 3.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, _IncludedRouter, iter_route_contexts
from fastapi.telemetry._api import _route_selected
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette._utils import get_route_path
from starlette.convertors import FloatConvertor, IntegerConvertor, StringConvertor, UUIDConvertor
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, NoMatchFound, WebSocketRoute
from starlette.types import Receive, Scope, Send

from app.core.body_limit import SCOPE_KEY, check_body_size
from app.core.exceptions.http_exceptions import NotFound
from app.core.plain_routes import PlainRoute


def _convert(self: IntegerConvertor, value: str) -> int:
    """Reads a number in a path. Raises: NotFound for one that is too long for Python to read, above 4300 digits."""
    try:
        return int(value)
    except ValueError:
        raise NotFound from None


IntegerConvertor.convert = _convert  # type: ignore[method-assign]  # Also of mounted applications' routes.

_WITHOUT_SLASHES = (StringConvertor, IntegerConvertor, FloatConvertor, UUIDConvertor)


class RouteTable(BaseRoute):
    """The included routes by method and number of slashes, in their order. What is not among them is left to others."""

    def __init__(self, app: FastAPI) -> None:
        """Takes in the routes that the app has now, up to the first that does not fit in: a mount, or `{rest:path}`."""
        self._app = app
        self._routes: dict[tuple[str, int], list[Any]] = {}
        self._plain: dict[int, PlainRoute] = {}
        if _limits_forms(app.router):
            return  # It is for the including router to apply them.
        for route in iter_route_contexts(app.routes):
            included: Any = route._effective_route
            if isinstance(route.original_route, WebSocketRoute):
                continue  # It answers no request that is looked for here.
            if not _is_found_as_usual(route.original_route) or included is route.original_route:
                break
            if any(type(convertor) not in _WITHOUT_SLASHES for convertor in included.param_convertors.values()):
                break
            if (plain := PlainRoute.of(included)) is not None:
                self._plain[id(included)] = plain
            for method in included.methods:
                self._routes.setdefault((method, included.path_format.count("/")), []).append(included)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """The first route that fits, as FastAPI would find it."""
        if scope["type"] == "http":
            path = get_route_path(scope)
            for route in self._routes.get((scope["method"], path.count("/")), ()):
                if found := route.path_regex.match(path):
                    convertors = route.param_convertors
                    values = {name: convertors[name].convert(value) for name, value in found.groupdict().items()}
                    return Match.FULL, {
                        "endpoint": route.endpoint,
                        "path_params": {**scope.get("path_params", {}), **values},
                        "route": route.original_route,
                        "fastapi": {"effective_route_context": route},
                    }
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request to the route that `matches` has found."""
        route = scope["fastapi"]["effective_route_context"]
        if SCOPE_KEY in scope:
            check_body_size(scope, route.max_body_size)
        plain = self._plain.get(id(route))
        if (
            plain is not None
            and not self._app.dependency_overrides
            and "fastapi.telemetry" not in scope
            and (values := plain.values(scope["path_params"])) is not None
        ):
            request = Request(scope, receive, send)

            async def answer(scope: Scope, receive: Receive, send: Send) -> None:
                await (await plain.answer(request, values))(scope, receive, send)

            # Here, as FastAPI does: a handler of errors gets this request, whose body may have been read.
            await wrap_app_handling_exceptions(answer, request)(scope, receive, send)
            return
        _route_selected(scope=scope, path=route.path_format)  # names the trace's span
        await route.app(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        """Left to the routes themselves."""
        raise NoMatchFound(name, path_params)


def _is_found_as_usual(route: BaseRoute) -> bool:
    """Whether it is one of FastAPI's, which matches and handles as FastAPI does: a subclass may do so by itself."""
    kind = type(route)
    return issubclass(kind, APIRoute) and kind.matches is APIRoute.matches and kind.handle is APIRoute.handle


def _limits_forms(router: APIRouter) -> bool:
    included = [route for route in router.routes if isinstance(route, _IncludedRouter)]
    return any(route.include_context.form_limits or _limits_forms(route.original_router) for route in included)


def add_route_table(app: FastAPI) -> None:
    """Puts a table of the app's routes before them."""
    app.router.routes.insert(0, RouteTable(app))


def route_of(scope: Scope) -> Any | None:
    """The route that was found, with all that its including routers add, or None where FastAPI does not route."""
    route = scope.get("fastapi", {}).get("effective_route_context")
    if route is None or route.starlette_route is not None:  # of a WebSocket or a mount, which the scope names itself
        route = scope.get("route")
    return route if hasattr(route, "dependant") else None


def path_of(app: FastAPI, endpoint: Callable[..., Any]) -> str | None:
    """The template of the path, with all prefixes, of this handler's first route; None where the app has none."""
    return next((route.path for route in iter_route_contexts(app.routes) if route.endpoint is endpoint), None)
