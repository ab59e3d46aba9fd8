"""What a cached route's answer depends on, and the answer itself, made as FastAPI makes it."""

from dataclasses import dataclass
from inspect import unwrap
from typing import Any
from weakref import ref

from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import _get_flat_fields_from_params, _get_param_aliases, _get_param_model
from fastapi.routing import serialize_response
from fastapi.security import APIKeyCookie, APIKeyHeader
from fastapi.security.base import SecurityBase
from starlette.requests import Request
from starlette.responses import Response

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
    if response.status_code in {204, 304} or response.status_code < 200:
        response.body = b""
    return response


def credentials(request: Request, more: set[str]) -> list[bytes]:
    """All that can tell callers apart: the values of the headers that hold credentials."""
    wanted = {name.encode() for name in (*CREDENTIALS, *more)}
    return [name + b"=" + value for name, value in request.scope["headers"] if name in wanted]
