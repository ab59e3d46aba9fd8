"""What a cached route's answer depends on."""

from dataclasses import dataclass
from inspect import unwrap
from typing import Any
from weakref import ref

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import _get_flat_fields_from_params, _get_param_aliases, _get_param_model
from fastapi.security import APIKeyCookie, APIKeyHeader
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from app.core.credential_headers import ALWAYS

CREDENTIALS = tuple(name.decode() for name in ALWAYS)


@dataclass(slots=True)
class Inputs:
    """What a route reads of a request, apart from its path and query.

    Attributes:
        headers: the declared ones, in lower case, and those that hold credentials.
        cookies: whether it declares any.
        unknown: whether it reads more than can be told apart here: a body, or any header there is.
        signed_in: whether a security scheme is among its dependencies, so that it knows who asks.
    """

    headers: set[str]
    cookies: bool = False
    unknown: bool = False
    signed_in: bool = False


class InputsOf:
    """Finds a route's inputs, once per route."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], Inputs]] = {}

    def __call__(self, route: Any) -> Inputs:
        """The inputs of this route."""
        known = self._known.get(id(route))
        if known is None or known[0]() is not route:
            known = self._known[id(route)] = (ref(route), _inputs(route.dependant, Inputs(set())))
        return known[1]


def _inputs(dependant: Dependant, found: Inputs) -> Inputs:
    for header in _get_flat_fields_from_params(dependant.header_params):  # A model of headers has one field for each.
        names = {alias.lower() for alias, _ in _get_param_aliases(header)} | {header.name}
        found.headers |= names | {name.replace("_", "-") for name in names}
    # A model can also take whatever headers there are.
    models = filter(None, map(_get_param_model, dependant.header_params))
    found.unknown = found.unknown or any(model.model_config.get("extra") == "allow" for model in models)
    found.cookies = found.cookies or bool(dependant.cookie_params)
    found.unknown = found.unknown or bool(dependant.body_params)
    scheme: Any = unwrap(dependant.call) if dependant.call is not None else None
    if isinstance(scheme, SecurityBase):
        found.signed_in = True
        if isinstance(scheme, APIKeyHeader):
            found.headers.add(scheme.model.name.lower())
        found.cookies = found.cookies or isinstance(scheme, APIKeyCookie)
    for other in dependant.dependencies:
        _inputs(other, found)
    return found


def credentials(request: Request, more: set[str]) -> list[bytes]:
    """All that can tell callers apart: the values of the headers that hold credentials."""
    wanted = {name.encode() for name in (*CREDENTIALS, *more)}
    return [name + b"=" + value for name, value in request.scope["headers"] if name in wanted]
