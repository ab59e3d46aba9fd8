"""The methods and request headers that the routes of an application declare."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import unwrap
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import _get_flat_fields_from_params, _get_param_aliases
from fastapi.security import APIKeyHeader

from app.core.mounts import all_routes


@dataclass(slots=True)
class DeclaredRequests:
    """
    Attributes:
        methods: such as `PATCH`.
        headers: the names of `Header()` parameters and of `APIKeyHeader` schemes, spelled as `X-My-Key`.
    """

    methods: set[str] = field(default_factory=set)
    headers: set[str] = field(default_factory=set)


def declared_requests(app: FastAPI) -> DeclaredRequests:
    """Reads the routes of this application and those of mounted ones."""
    declared = DeclaredRequests()
    for _, route in all_routes(app):
        declared.methods.update(getattr(route, "methods", None) or ())
        dependant = getattr(route, "dependant", None)
        if isinstance(dependant, Dependant):
            declared.headers.update(name.title() for name in _headers_of(dependant))
    return declared


def _headers_of(dependant: Dependant) -> Iterator[str]:
    scheme: Any = unwrap(dependant.call) if dependant.call is not None else None
    if isinstance(scheme, APIKeyHeader):
        yield scheme.model.name
    for parameter in dependant.header_params:
        converts = getattr(parameter.field_info, "convert_underscores", True)
        for header in _get_flat_fields_from_params([parameter]):  # a model's fields, or the parameter itself
            converts = getattr(header.field_info, "convert_underscores", converts)
            for _, name in _get_param_aliases(header, convert_underscores=converts):
                yield name
    for other in dependant.dependencies:
        yield from _headers_of(other)
