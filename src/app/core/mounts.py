"""Applications that are mounted in another one: their routes, and what they share with it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, Router, compile_path
from starlette.types import ASGIApp, Scope

from app.core.connection import application_of
from app.core.exceptions.problem_response import add_handlers
from app.core.route_table import route_of

log = structlog.stdlib.get_logger("slipway.mounts")

_MAX_LAYERS = 50  # of middleware around a mounted application
_REST = "/{path}"  # at the end of a mount's path: what is left for the mounted application


def all_routes(app: FastAPI) -> Iterator[tuple[str, Any]]:
    """Every route that is reached through this application, with the template of its whole path.

    The routes of mounted applications are among them where these are Starlette's or FastAPI's. The context of a route
    is FastAPI's, with what the including routers add.
    """
    yield from _routes(app.routes, "", (app,))


def mounted_applications(app: FastAPI) -> Iterator[tuple[str, Starlette | Router]]:
    """Every application that is mounted in this one or in one of those, with the template of where it is."""
    yield from _applications(app.routes, "", (app,))


def template_of(scope: Scope) -> str | None:
    """The template of the path of the route that was found, mounts included; None where FastAPI does not route."""
    route = route_of(scope)
    if route is None:
        return None
    template: str = route.path_format
    if "app_root_path" not in scope:  # which the first mount sets
        return template
    return _template_of_mount(application_of(scope), scope["root_path"][len(scope["app_root_path"]) :]) + template


def share_errors(app: FastAPI) -> None:
    """Has mounted applications answer errors as this one does, where they have no handlers of their own.

    Their unexpected errors reach this application's middleware instead of becoming an answer in plain text.

    Raises: ValueError for one with `debug=True`, which answers with tracebacks.
    """
    for path, mounted in mounted_applications(app):
        if isinstance(mounted, Starlette):
            if mounted.debug:
                raise ValueError(
                    f"The application mounted at {path} has debug=True: an answer with a traceback shows secrets. "
                    "Leave it out: the log has the traceback under the answer's request id."
                )
            before = dict(mounted.exception_handlers)
            add_handlers(mounted, getattr(app, "engine_handlers", {}))
            if not before.keys() & {500, Exception}:
                mounted.exception_handlers[Exception] = raise_again
            if mounted.exception_handlers != before:
                mounted.middleware_stack = None  # It is built again, with these.


def warn_of_open_documentation(app: FastAPI) -> None:
    """Logs each mounted application whose documentation FastAPI shows to everyone."""
    for path, mounted in mounted_applications(app):
        if isinstance(mounted, FastAPI) and mounted.openapi_url is not None:
            log.warning(
                "documentation of a mounted application is open to all",
                path=f"{path}{mounted.openapi_url}",
                remedy="FastAPI(openapi_url=None)",
            )


async def raise_again(request: Request, error: Exception) -> Response:
    """Leaves an unexpected error to the application around this one."""
    raise error


def _routes(routes: Sequence[BaseRoute], prefix: str, around: tuple[object, ...]) -> Iterator[tuple[str, Any]]:
    for context in iter_route_contexts(routes):
        route = context._effective_route
        if isinstance(route, Mount | Host):
            inner = _application_in(route.app)
            if inner is not None and inner not in around:
                yield from _routes(inner.routes, prefix + _path_of(route, "path_format"), (*around, inner))
        else:
            yield f"{prefix}{context.path_format or ''}", context


def _applications(
    routes: Sequence[BaseRoute], prefix: str, around: tuple[object, ...]
) -> Iterator[tuple[str, Starlette | Router]]:
    for context in iter_route_contexts(routes):
        route = context._effective_route
        if isinstance(route, Mount | Host):
            inner = _application_in(route.app)
            if inner is not None and inner not in around:
                path = prefix + _path_of(route, "path")
                yield path, inner
                yield from _applications(inner.routes, path, (*around, inner))


def _application_in(app: ASGIApp) -> Starlette | Router | None:
    """The application within its middleware, which has it as `app` by convention."""
    found: Any = app
    for _ in range(_MAX_LAYERS):
        if found is None or isinstance(found, Starlette | Router):
            return found
        found = getattr(found, "app", None)
    return None


def _path_of(route: Mount | Host, attribute: str) -> str:
    return str(getattr(route, attribute)).removesuffix(_REST) if isinstance(route, Mount) else ""


def _template_of_mount(app: FastAPI, path: str) -> str:
    """The template of the mounts that lead to this path; the path itself where none of them has parameters."""
    for pattern, template in getattr(app, "mount_templates", ()):
        if pattern.fullmatch(path):
            return str(template)
    return path


def mount_templates(app: FastAPI) -> list[tuple[re.Pattern[str], str]]:
    """The mounts with parameters in their paths: what they match, and their templates."""
    compiled = [compile_path(path)[:2] for path, _ in mounted_applications(app) if "{" in path]
    return [(pattern, template) for pattern, template in compiled]
