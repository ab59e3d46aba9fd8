"""The `cache` decorator: keeps what a GET answers, and drops it when another method has changed it."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, Signature, isasyncgenfunction, isgeneratorfunction, signature
from math import isfinite
from typing import Any, Final

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from starlette.requests import Request
from starlette.responses import Response

from app.core.db.replica import may_lag
from app.core.exceptions.cache_exceptions import InvalidRequestError
from app.core.mounts import all_routes
from app.core.route_table import route_of
from app.core.settings.http import MAX_AGE, is_max_age
from app.core.utils.cache.keys import Template, id_source
from app.core.utils.cache.metrics import Meter
from app.core.utils.cache.opened import cache_of
from app.core.utils.cache.plan import Endpoint, Plan
from app.core.utils.cache.reading import Reading

_READING: Final = {"GET", "HEAD"}
_REQUEST, _RESPONSE = "_cache_request", "_cache_response"  # injected where a handler does not ask for them
_PLAN, _WRAPPED_BY = "__cached__", "__cached_by__"


def cache(
    key_prefix: str,
    resource_id_name: str | None = None,
    expiration: float = 3600,
    resource_id_type: type | tuple[type, ...] = int,
    to_invalidate_extra: Mapping[str, str] | None = None,
    pattern_to_invalidate_extra: Sequence[str] | None = None,
    *,
    resource_id: object = None,
    private: bool | None = None,
    vary: Sequence[str] = (),
    unless: str | None = None,
    stale_while_revalidate: float = 0,
    lease: float = 5,
    allow_no_cache: bool = False,
    client_max_age: int | None = None,
    jitter: float = 0,
) -> Callable[[Endpoint], Callable[..., Awaitable[Any]]]:
    """Caches what a GET handler answers; with another method, drops it once the change is committed.

    Stands under the router's decorator. The key in Redis/Valkey is `{key_prefix}:{resource id}`; under it lie all
    variants of the answer: by path and query, by the headers and cookies that the route declares, and, where it is
    private, by caller. Dependencies, and so authorisation, run before the cache is asked.

    Args:
        key_prefix: may name parameters of the handler in braces, such as `{username}_posts`.
        resource_id_name: the parameter that holds the id of the resource.
        expiration: seconds for which an answer is fresh.
        resource_id_type: without `resource_id_name`, the type by which that parameter is found.
        to_invalidate_extra: prefixes and ids of further keys to drop, both with braces. Not with GET.
        pattern_to_invalidate_extra: patterns of further keys to drop, with braces and at least one `*`. Not with GET.
            Each goes through all keys of the server; in a cluster, twice.
        resource_id: a fixed id instead, for what has none: a list, say.
        private: whether each caller has an answer of their own. By default, when the route has a security scheme
            among its dependencies, and so knows who asks.
        vary: names of headers on which the answer depends, and which the route does not declare.
        unless: the name of a parameter; when it is true, the answer is neither looked up nor stored.
        stale_while_revalidate: seconds after `expiration` in which an answer is still served, while one request
            computes a new one.
        lease: seconds after which, when the one who computes an answer has not stored it, another one does.
        allow_no_cache: whether `Cache-Control: no-cache` in a request has the answer computed anew.
        client_max_age: seconds for which browsers and shared caches may keep an anonymous answer, in the place of
            CLIENT_CACHE_MAX_AGE. With 0 they ask each time whether what they have is still right.
        jitter: the part of `expiration`, below 1, that is cut off at random, so that answers which are stored together
            do not expire together.

    Raises: CacheIdentificationInferenceError or InvalidRequestError for what cannot work, at import.
    """
    _require_seconds("expiration", expiration)
    _require_seconds("lease", lease)
    _require_seconds("stale_while_revalidate", stale_while_revalidate, least=0)
    if not (isinstance(jitter, int | float) and 0 <= jitter < 1):
        raise InvalidRequestError(f"jitter must be a part of expiration, 0 or more and below 1, not {jitter!r}.")
    if client_max_age is not None and not is_max_age(client_max_age):
        raise InvalidRequestError(
            f"client_max_age must be a whole number of seconds, 0 to {MAX_AGE}, not {client_max_age!r}."
        )

    def decorate(handler: Endpoint) -> Callable[..., Awaitable[Any]]:
        own = _signature_of(handler)
        if isgeneratorfunction(handler) or isasyncgenfunction(handler):
            raise InvalidRequestError(f"{handler.__name__}: an answer that is streamed cannot be cached.")
        if unless is not None and unless not in own.parameters:
            raise InvalidRequestError(f"unless names {unless!r}, which is no parameter of the handler.")
        plan = Plan(
            key_prefix=key_prefix,
            fixed_id=resource_id,
            handler=handler,
            own=own,
            prefix=Template(key_prefix, own, "key_prefix"),
            id_of=id_source(own, resource_id_name, resource_id_type, resource_id),
            extra=[
                (Template(prefix, own, "to_invalidate_extra"), Template(an_id, own, "to_invalidate_extra"))
                for prefix, an_id in (to_invalidate_extra or {}).items()
            ],
            patterns=[_pattern(text, own) for text in pattern_to_invalidate_extra or ()],
            fresh=expiration,
            stale=stale_while_revalidate,
            lease=lease,
            private=private,
            vary=tuple(name.lower() for name in vary),
            unless=unless,
            allow_no_cache=allow_no_cache,
            client_max_age=client_max_age,
            jitter=jitter,
            meter=Meter(key_prefix),
        )
        return _wrapped(plan)

    return decorate


def check_cached_routes(app: FastAPI) -> None:
    """Looks at how an app uses the decorator, as far as that can be seen before the first request.

    Raises: InvalidRequestError for a decorator above the router's, for a GET that is to invalidate, and for one that
    reads on a replica.
    """
    routes = [route for _, route in all_routes(app)]
    used = {route.endpoint for route in routes}
    for route in routes:
        if getattr(route.endpoint, _WRAPPED_BY, route.endpoint) not in used:
            raise InvalidRequestError(f"{route.path}: put @cache below the router's decorator, next to the handler.")
        if (plan := reading_plan(route)) is not None:
            plan.refuse_to_invalidate()
            if _may_lag(getattr(route, "dependant", None)):
                raise InvalidRequestError(
                    f"{route.path}: what is cached has to be read on the primary, with reading() or SessionDep."
                )


def reading_plan(route: Any) -> Plan | None:
    """What is known of a route whose answers are cached; None for any other route."""
    plan: Plan | None = getattr(getattr(route, "endpoint", None), _PLAN, None)
    return plan if plan is not None and _READING & set(route.methods or ()) else None


def _may_lag(dependant: Dependant | None) -> bool:
    return dependant is not None and (may_lag(dependant.call) or any(map(_may_lag, dependant.dependencies)))


def _wrapped(plan: Plan) -> Callable[..., Awaitable[Any]]:
    """What FastAPI gets instead of the handler."""

    @wraps(plan.handler)
    async def endpoint(*positional: Any, **arguments: Any) -> Any:
        if positional:
            arguments = {**plan.own.bind_partial(*positional).arguments, **arguments}
        request: Request | None = _injected(arguments, plan.request_name, _REQUEST)
        injected: Response | None = _injected(arguments, plan.response_name, _RESPONSE)
        route = route_of(request.scope) if request is not None else None
        if request is None or route is None or (cache := cache_of(request)) is None:
            return await plan.call(arguments)  # By hand, as in a test of the handler; or without a cache.
        if request.method in _READING:
            return await Reading(plan, cache, route, request, injected or Response(), arguments).answer()
        return await plan.write(cache, arguments)

    vars(endpoint).pop(_WRAPPED_BY, None)  # Copied, when the handler is cached in another way as well.
    vars(endpoint).update({"__signature__": _signature_with_ours(plan), _PLAN: plan})
    setattr(plan.handler, _WRAPPED_BY, endpoint)
    return endpoint


def _injected(arguments: dict[str, Any], own_name: str | None, our_name: str) -> Any:
    return arguments.get(own_name) if own_name else arguments.pop(our_name, None)


def _signature_with_ours(plan: Plan) -> Signature:
    """The handler's, with the request and a response added."""
    parameters = list(plan.own.parameters.values())
    rest = parameters.pop() if parameters and parameters[-1].kind is Parameter.VAR_KEYWORD else None
    if plan.request_name is None:
        parameters.append(Parameter(_REQUEST, Parameter.KEYWORD_ONLY, annotation=Request))
    if plan.response_name is None:
        parameters.append(Parameter(_RESPONSE, Parameter.KEYWORD_ONLY, annotation=Response))
    return plan.own.replace(parameters=[*parameters, *([rest] if rest else [])])


def _require_seconds(name: str, value: object, least: float = 0.001) -> None:
    if not (isinstance(value, int | float) and isfinite(value) and value >= least):
        raise InvalidRequestError(f"{name} must be a number of seconds, {least:g} or more, not {value!r}.")


def _signature_of(handler: Endpoint) -> Signature:
    try:
        return signature(handler, eval_str=True)
    except NameError:  # A name for type checkers only.
        return signature(handler)


def _pattern(text: str, own: Signature) -> Template:
    # Values can be empty: what is fixed before the `*` keeps the pattern from meaning every key of the server.
    if not isinstance(text, str) or "*" not in text or not re.sub(r"{.*?}", "", text.partition("*")[0]):
        raise InvalidRequestError(
            f"pattern_to_invalidate_extra {text!r} must have a `*`, and something fixed before it. For one key there "
            "is to_invalidate_extra."
        )
    return Template(text, own, "pattern_to_invalidate_extra")
