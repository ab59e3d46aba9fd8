"""The request headers by which an app knows who asks."""

from collections.abc import Iterator
from inspect import unwrap
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from fastapi.security import APIKeyHeader

ALWAYS = frozenset({b"authorization", b"cookie"})


def credential_headers(app: FastAPI) -> set[bytes]:
    """Those that always are such, and those of the app's security schemes, such as an `X-API-Key`; in lower case."""
    routes = (getattr(route, "dependant", None) for route in iter_route_contexts(app.routes))
    return {*ALWAYS, *(name for dependant in routes if dependant is not None for name in _names(dependant))}


def _names(dependant: Dependant) -> Iterator[bytes]:
    scheme: Any = unwrap(dependant.call) if dependant.call is not None else None
    if isinstance(scheme, APIKeyHeader):
        yield scheme.model.name.lower().encode()
    for other in dependant.dependencies:
        yield from _names(other)
