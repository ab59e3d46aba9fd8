"""What a route reads of a request, as far as its declarations show."""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import unwrap
from typing import Any, Final, TypeVar
from weakref import ref

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import _get_flat_fields_from_params, _get_param_aliases, _get_param_model
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery
from fastapi.security.base import SecurityBase
from starlette.requests import Request

CREDENTIALS: Final = ("authorization", "cookie")
_SAME_FOR_ALL: Final = "__same_for_all_callers__"

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def same_for_all_callers(dependency: CallableT) -> CallableT:
    """Marks a dependency that takes the whole request, and tells callers apart only by what it declares.

    Without it, `ClientCacheMiddleware` takes the answers of its routes for private.
    """
    setattr(dependency, _SAME_FOR_ALL, True)
    return dependency


def is_same_for_all_callers(dependency: object) -> bool:
    """Whether a dependency, or a mounted application, is marked so."""
    return hasattr(dependency, _SAME_FOR_ALL)


@dataclass(slots=True)
class Inputs:
    """What a route reads of a request, apart from its path and query.

    Attributes:
        headers: the declared ones, in lower case, and those that hold credentials.
        key_headers: those of the headers that a security scheme reads.
        key_queries: the names of the query parameters that a security scheme reads.
        cookies: whether it declares any.
        unknown: whether it reads more than can be told apart here: a body, or any header there is.
        signed_in: whether a security scheme is among its dependencies, so that it knows who asks.
        readers: what takes the whole request, and so could read anything of it: dependencies and the handler.
    """

    headers: set[str] = field(default_factory=set)
    key_headers: set[str] = field(default_factory=set)
    key_queries: set[str] = field(default_factory=set)
    cookies: bool = False
    unknown: bool = False
    signed_in: bool = False
    readers: list[Callable[..., Any]] = field(default_factory=list)


class InputsOf:
    """Finds a route's inputs, once per route."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], Inputs]] = {}

    def __call__(self, route: Any) -> Inputs:
        """The inputs of this route."""
        known = self._known.get(id(route))
        if known is None or known[0]() is not route:
            known = self._known[id(route)] = (ref(route), inputs_of(route.dependant))
        return known[1]


def inputs_of(dependant: Dependant) -> Inputs:
    """The inputs of a route with these dependencies."""
    found = Inputs()
    _collect(dependant, found)
    return found


def _collect(dependant: Dependant, found: Inputs) -> None:
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
            found.key_headers.add(scheme.model.name.lower())
        if isinstance(scheme, APIKeyQuery):
            found.key_queries.add(scheme.model.name)
        found.cookies = found.cookies or isinstance(scheme, APIKeyCookie)
    if dependant.call is not None and _takes_request(dependant) and not _reads_what_it_declares(scheme):
        found.readers.append(dependant.call)
    for other in dependant.dependencies:
        _collect(other, found)


def _takes_request(dependant: Dependant) -> bool:
    names = (dependant.request_param_name, dependant.http_connection_param_name, dependant.websocket_param_name)
    return any(name is not None for name in names)


def _reads_what_it_declares(scheme: object) -> bool:
    """Whether this is one of FastAPI's security schemes, with their own way to find a credential."""
    call: Any = getattr(type(scheme), "__call__", None)  # noqa: B004 -- the method itself, to see where it is from
    return isinstance(scheme, SecurityBase) and getattr(call, "__module__", "").startswith("fastapi.security.")


def credentials(request: Request, more: set[str]) -> list[bytes]:
    """All that can tell callers apart: the values of the headers that hold credentials."""
    wanted = {name.encode() for name in (*CREDENTIALS, *more)}
    return [name + b"=" + value for name, value in request.scope["headers"] if name in wanted]
