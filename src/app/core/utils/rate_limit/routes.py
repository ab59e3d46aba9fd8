"""Which routes are limited, and so can be named by a rule."""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute

from app.core.mounts import all_routes
from app.core.route_inputs import same_for_all_callers

_LIMITS: Final = "__rate_limits__"

DependencyT = TypeVar("DependencyT", bound=Callable[..., Any])


def limits_routes(dependency: DependencyT) -> DependencyT:
    """Marks a dependency as one that counts requests: routes that have it are those that rules can name."""
    setattr(dependency, _LIMITS, True)
    return same_for_all_callers(dependency)


def limited_paths(app: FastAPI) -> list[str]:
    """Return what a rule can name, sorted by template.

    These are the documented templates of the limited routes with all prefixes, such as `/api/v1/user/{username}`, as
    OpenAPI spells them, and each template with one of its methods, such as `GET /api/v1/user/{username}`.
    """
    found = {
        (template, method)
        for template, context in _documented(app)
        if is_limited(context.dependant)
        for method in ("", *(context.methods or {"GET"}))  # The handshake of a WebSocket is a GET.
    }
    return [f"{method} {template}" if method else template for template, method in sorted(found)]


def _documented(app: FastAPI) -> Iterator[tuple[str, Any]]:
    for template, context in all_routes(app):
        route = context.original_route
        if isinstance(route, APIWebSocketRoute) or (isinstance(route, APIRoute) and context.include_in_schema):
            yield template, context


def is_limited(dependant: Dependant) -> bool:
    """Whether a dependency that counts requests is among these."""
    return any(hasattr(other.call, _LIMITS) or is_limited(other) for other in dependant.dependencies)
