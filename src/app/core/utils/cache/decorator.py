"""The `cache` decorator: keeps what a GET answers, and drops it when another method has changed it."""

import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from inspect import (
    Parameter,
    Signature,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from math import isfinite
from time import perf_counter
from typing import Any, Final

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from app.core.db.database import around_commits
from app.core.db.outbox import Targets
from app.core.exceptions.cache_exceptions import InvalidRequestError
from app.core.utils.cache.entry import Entry, RawHeaders
from app.core.utils.cache.keys import Template, encoded, id_source, variant_of
from app.core.utils.cache.metrics import Meter
from app.core.utils.cache.opened import Cache, cache_of
from app.core.utils.cache.route import CREDENTIALS, InputsOf, credentials, route_of, shaped
from app.core.utils.cache.store import RECENTLY, Held, Lease
from app.core.utils.redis_link import LinkError

LARGEST_BODY: Final = 524_288  # bytes; a larger answer is not stored, since it would hold up the others
JITTER: Final = 0.1  # the part of an expiration that is cut off at random, so that not all expires at once

_READING: Final = {"GET", "HEAD"}
STARTED: Final = "slipway.started"  # in a request's scope: when it came in, on `perf_counter`
CALLER: Final = "slipway.caller"
_REQUEST, _RESPONSE = "_cache_request", "_cache_response"  # injected where a handler does not ask for them
_PLAN, _WRAPPED_BY = "__cached__", "__cached_by__"

Endpoint = Callable[..., Any]


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
) -> Callable[[Endpoint], Callable[..., Awaitable[Any]]]:
    """Caches what a GET handler answers; with another method, drops it once the change is committed.

    Stands under the router's decorator. The key in Redis/Valkey is `{key_prefix}:{resource id}`; under it lie all
    variants of the answer: by path and query, by the headers and cookies that the route declares, and, where it is
    private, by caller. Dependencies, and so authorisation, run before the cache is asked.

    Args:
        key_prefix: may name parameters of the handler in braces, such as `{username}_posts`.
        resource_id_name: the parameter that holds the id of the resource.
        expiration: seconds for which an answer is fresh; up to a tenth less, at random.
        resource_id_type: without `resource_id_name`, the type by which that parameter is found.
        to_invalidate_extra: prefixes and ids of further keys to drop, both with braces. Not with GET.
        pattern_to_invalidate_extra: patterns of further keys to drop, with braces and at least one `*`. Not with GET.
            Each goes through all keys of the server.
        resource_id: a fixed id instead, for what has none: a list, say.
        private: whether each caller has an answer of their own. By default, when the route has a security scheme
            among its dependencies, and so knows who asks.
        vary: names of headers on which the answer depends, and which the route does not declare.
        unless: the name of a parameter; when it is true, the answer is neither looked up nor stored.
        stale_while_revalidate: seconds after `expiration` in which an answer is still served, while one request
            computes a new one.
        lease: seconds after which, when the one who computes an answer has not stored it, another one does.
        allow_no_cache: whether `Cache-Control: no-cache` in a request has the answer computed anew.

    Raises: CacheIdentificationInferenceError or InvalidRequestError for what cannot work, at import.
    """
    _require_seconds("expiration", expiration)
    _require_seconds("lease", lease)
    _require_seconds("stale_while_revalidate", stale_while_revalidate, least=0)

    def decorate(handler: Endpoint) -> Callable[..., Awaitable[Any]]:
        own = _signature_of(handler)
        if isgeneratorfunction(handler) or isasyncgenfunction(handler):
            raise InvalidRequestError(f"{handler.__name__}: an answer that is streamed cannot be cached.")
        if unless is not None and unless not in own.parameters:
            raise InvalidRequestError(f"unless names {unless!r}, which is no parameter of the handler.")
        return _Plan(
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
            meter=Meter(key_prefix),
        ).wrapped()

    return decorate


def identify_caller(request: HTTPConnection, *parts: object) -> None:
    """Says who asks, for private routes: for a sign-in dependency that has found it out.

    Who is somebody else with other rights (a role, a plan) has these among the parts; and the login, where an answer
    depends on it.
    """
    request.scope[CALLER] = repr(parts).encode("utf-8", "surrogatepass")


def check_cached_routes(app: FastAPI) -> None:
    """Looks at how an app uses the decorator, as far as that can be seen before the first request.

    Raises: InvalidRequestError for a decorator above the router's, and for a GET that is to invalidate.
    """
    routes = list(iter_route_contexts(app.routes))
    used = {route.endpoint for route in routes}
    for route in routes:
        if getattr(route.endpoint, _WRAPPED_BY, route.endpoint) not in used:
            raise InvalidRequestError(f"{route.path}: put @cache below the router's decorator, next to the handler.")
        plan: _Plan | None = getattr(route.endpoint, _PLAN, None)
        if plan is not None and _READING & set(route.methods or ()):
            plan.refuse_to_invalidate()


@dataclass(slots=True)
class _Plan:
    """What the decorator does with one handler: all that can be found out at import."""

    handler: Endpoint
    own: Signature
    prefix: Template
    id_of: Callable[[Mapping[str, Any]], object]
    extra: list[tuple[Template, Template]]
    patterns: list[Template]
    fresh: float
    stale: float
    lease: float
    private: bool | None
    vary: tuple[str, ...]
    unless: str | None
    allow_no_cache: bool
    meter: Meter
    is_coroutine: bool = field(init=False)
    request_name: str | None = field(init=False)
    response_name: str | None = field(init=False)
    inputs_of: InputsOf = field(default_factory=InputsOf)

    def __post_init__(self) -> None:
        self.is_coroutine = iscoroutinefunction(self.handler)
        self.request_name = _name_of_type(self.own, HTTPConnection)
        self.response_name = _name_of_type(self.own, Response)

    def wrapped(self) -> Callable[..., Awaitable[Any]]:
        """What FastAPI gets instead of the handler."""

        @wraps(self.handler)
        async def endpoint(*positional: Any, **arguments: Any) -> Any:
            if positional:
                arguments = {**self.own.bind_partial(*positional).arguments, **arguments}
            request: Request | None = self._injected(arguments, self.request_name, _REQUEST)
            injected: Response | None = self._injected(arguments, self.response_name, _RESPONSE)
            route = route_of(request.scope) if request is not None else None
            if request is None or route is None or (cache := cache_of(request)) is None:
                return await self.call(arguments)  # By hand, as in a test of the handler; or without a cache.
            if request.method in _READING:
                return await _Reading(self, cache, route, request, injected or Response(), arguments).answer()
            return await self.write(cache, arguments)

        vars(endpoint).pop(_WRAPPED_BY, None)  # Copied, when the handler is cached in another way as well.
        vars(endpoint).update({"__signature__": self._signature(), _PLAN: self})
        setattr(self.handler, _WRAPPED_BY, endpoint)
        return endpoint

    @staticmethod
    def _injected(arguments: dict[str, Any], own_name: str | None, our_name: str) -> Any:
        return arguments.get(own_name) if own_name else arguments.pop(our_name, None)

    async def call(self, arguments: dict[str, Any]) -> Any:
        """Calls the handler, in a thread when it is a plain function."""
        if self.is_coroutine:
            return await self.handler(**arguments)
        return await run_in_threadpool(self.handler, **arguments)

    async def write(self, cache: Cache, arguments: dict[str, Any]) -> Any:
        """Calls a handler that changes something. What that makes wrong is dropped when it is committed."""
        targets = self.targets(arguments)
        with around_commits(partial(cache.invalidator.around, targets=targets)) as watched:
            try:
                return await self.call(arguments)
            finally:
                if not watched.transactions:  # It has changed something else than our database, if not all it wanted.
                    await cache.invalidator.now(targets)

    def key(self, arguments: Mapping[str, Any]) -> str:
        """The resource's key: `{prefix}:{id}`."""
        return f"{self.prefix.fill(arguments)}:{encoded(self.id_of(arguments))}"

    def targets(self, arguments: Mapping[str, Any]) -> Targets:
        """All that a change makes wrong."""
        extra = (f"{prefix.fill(arguments)}:{an_id.fill(arguments)}" for prefix, an_id in self.extra)
        return Targets((self.key(arguments), *extra), tuple(pattern.fill(arguments) for pattern in self.patterns))

    def refuse_to_invalidate(self) -> None:
        """Raises: InvalidRequestError when there is something to drop besides the resource: not with GET."""
        if self.extra or self.patterns:
            raise InvalidRequestError(
                f"{self.handler.__name__}: to_invalidate_extra and pattern_to_invalidate_extra do not work with GET, "
                "which changes nothing."
            )

    def _signature(self) -> Signature:
        """The handler's, with the request and a response added."""
        parameters = list(self.own.parameters.values())
        rest = parameters.pop() if parameters and parameters[-1].kind is Parameter.VAR_KEYWORD else None
        if self.request_name is None:
            parameters.append(Parameter(_REQUEST, Parameter.KEYWORD_ONLY, annotation=Request))
        if self.response_name is None:
            parameters.append(Parameter(_RESPONSE, Parameter.KEYWORD_ONLY, annotation=Response))
        return self.own.replace(parameters=[*parameters, *([rest] if rest else [])])


class _Reading:
    """One request to a cached GET."""

    def __init__(
        self, plan: _Plan, cache: Cache, route: Any, request: Request, injected: Response, arguments: dict[str, Any]
    ) -> None:
        self.plan = plan
        self.cache = cache
        self.route = route
        self.request = request
        self.injected = injected
        self.arguments = arguments
        self.given = list(injected.headers.raw)  # by dependencies, for this answer alone
        self.inputs = plan.inputs_of(route)
        self.private = self.inputs.signed_in if plan.private is None else plan.private
        # When it came in. Where nobody has noted it, it could have been long ago.
        self.started: float = request.scope.get(STARTED, perf_counter() - RECENTLY + 1)

    async def answer(self) -> Response:
        """The answer: from the cache, or computed."""
        plan, meter = self.plan, self.plan.meter
        plan.refuse_to_invalidate()
        skipped = self.inputs.unknown or (plan.unless is not None and self.arguments[plan.unless])
        if skipped or not self.cache.usable or not self._tells_callers_apart():
            return await self._compute(None, b"BYPASS")
        try:
            found, state = await self._look_up(plan.key(self.arguments), self._variant())
        except LinkError:
            found, state = None, b"BYPASS"
        if isinstance(found, Entry):
            (meter.hit if state == b"HIT" else meter.stale).inc()
            return self._answer_of(found, state)
        return await self._compute(found, state)

    async def _look_up(self, key: str, variant: bytes) -> tuple[Entry | Lease | None, bytes]:
        """What is stored; or the lease to compute it; or neither, when it is not to be stored."""
        plan, store = self.plan, self.cache.store
        stored = await store.get(key, variant)
        entry = Entry.load(stored)
        now = _milliseconds()
        if entry is not None and not (plan.allow_no_cache and self._asks_anew()):
            if now < entry.soft:
                return entry, b"HIT"
        else:
            entry = None
        taken = await store.take(key, variant, plan.lease, stored)
        if (taken is None or isinstance(taken, Held)) and entry is not None and now < entry.hard:
            return entry, b"STALE"
        if isinstance(taken, Held):
            plan.meter.waits.inc()
            taken = await store.wait(key, variant, plan.lease, stored, started=self.started)
        if isinstance(taken, bytes):
            entry = Entry.load(taken)
            return entry, b"HIT" if entry else b"BYPASS"
        return taken, b"MISS"

    async def _compute(self, lease: Lease | None, state: bytes) -> Response:
        plan, store = self.plan, self.cache.store
        (plan.meter.miss if state == b"MISS" else plan.meter.bypass).inc()
        started = perf_counter()
        try:
            result = await plan.call(self.arguments)
            response = await shaped(self.route, result, self.injected.status_code, is_coroutine=plan.is_coroutine)
        except BaseException as error:
            if lease is not None:  # An error would be one for each that waits: none of them has to wait for it.
                store.give_back(lease, uncoordinated=isinstance(error, Exception))
            raise
        plan.meter.computation.observe(perf_counter() - started)
        added = [pair for pair in self.injected.headers.raw if pair not in self.given]
        if not self._may_be_stored(response, added):
            if lease is not None:
                store.give_back(lease, uncoordinated=True)
            told = {name for name, _ in (*response.raw_headers, *self.injected.headers.raw)} & {b"cache-control"}
            more = [*self.injected.headers.raw, (b"x-cache", b"BYPASS")]
            response.raw_headers += [*more, *(pair for pair in self._about_caching() if pair[0] not in told)]
            return response
        fresh = int(plan.fresh * 1000 * (1 - JITTER * random.random()))  # noqa: S311 -- no secret
        entry = Entry.of(response, added, _milliseconds(), fresh, int(plan.stale * 1000))
        if lease is not None:
            await self._store(lease, entry)
        answer = self._answer_of(entry, state)
        answer.background = response.background
        return answer

    async def _store(self, lease: Lease, entry: Entry) -> None:
        store, value = self.cache.store, entry.dump()
        try:
            stored = store.covers(lease, self.started)
            if stored:
                stored = await store.store(lease, value, (entry.hard - entry.created) / 1000)
            elif STARTED in self.request.scope:
                await store.share(lease, value, self.started)
            else:  # Nobody knows who is older.
                await store.give_up(lease)
        except LinkError:
            return  # The next request tries again.
        if not stored:
            self.plan.meter.refused_fills.inc()

    def _answer_of(self, entry: Entry, state: bytes) -> Response:
        if_none_match = self.request.headers.get("if-none-match")
        return entry.answer(state, _milliseconds(), if_none_match, [*self.given, *self._about_caching()])

    def _about_caching(self) -> RawHeaders:
        """What caches between us and the caller have to know."""
        told: list[tuple[bytes, bytes]] = []
        names = {name for name in self._distinguished() if "_" not in name}  # `user_agent` stands for `user-agent`
        if self.private or self.inputs.signed_in:  # Even where it is shared, `unless` can have let another answer out.
            names |= set(CREDENTIALS)
            if self._caller() and not any(name == b"cache-control" for name, _ in self.given):
                told.append((b"cache-control", b"private, no-store"))
        if names:
            told.append((b"vary", ", ".join(sorted(name.title() for name in names)).encode()))
        return told

    def _may_be_stored(self, response: Response, added: RawHeaders) -> bool:
        of_answer = Headers(raw=[*response.raw_headers, *added])
        everything = Headers(raw=[*response.raw_headers, *self.injected.headers.raw])
        policy = ",".join(everything.getlist("cache-control")).lower()
        return (
            isinstance(getattr(response, "body", None), bytes)
            and len(response.body) <= LARGEST_BODY
            and 200 <= response.status_code < 300
            and response.status_code != 206
            and "set-cookie" not in of_answer  # A dependency's is for this answer alone, and not kept with it.
            and "no-store" not in policy
            and (self.private or "private" not in policy)
            and self._names(everything.getlist("vary")) <= self._distinguished()
            and not self._holds_our_address(response, added)
        )

    def _holds_our_address(self, response: Response, added: RawHeaders) -> bool:
        """Whether there is an address in it that was made of the `Host` header: that is the caller's to choose."""
        if "host" in self._distinguished():
            return False
        address = b"//" + self.request.base_url.netloc.encode("utf-8", "surrogatepass")
        values = (value for _, value in (*response.raw_headers, *added))
        return address in bytes(response.body) or any(address in value for value in values)

    # ---- Which variant ----

    def _variant(self) -> bytes:
        scope = self.request.scope
        parts = [scope["path"].encode("utf-8", "surrogatepass"), scope["query_string"]]
        wanted = {name.encode() for name in (*self.inputs.headers, *self.plan.vary)}
        if self.inputs.cookies:
            wanted.add(b"cookie")
        if wanted:
            parts += [name + b"=" + value for name, value in scope["headers"] if name in wanted]
        if self.private:
            parts += [b"private", *self._caller()]
        return variant_of(parts)

    def _caller(self) -> list[bytes]:
        """Who asks: what authentication has found out, or else all that could tell one caller from another."""
        known = self.request.scope.get(CALLER)
        return [known] if known is not None else credentials(self.request, self.inputs.headers)

    def _tells_callers_apart(self) -> bool:
        """Whether a route that calls itself private has anything to know callers by; where it has a scheme, it has."""
        return bool(self.plan.private is not True or self.inputs.signed_in or self.plan.vary or self._caller())

    def _distinguished(self) -> set[str]:
        """The headers that distinguish variants."""
        private = CREDENTIALS if self.private else ()
        return {*self.inputs.headers, *self.plan.vary, *private, *({"cookie"} if self.inputs.cookies else ())}

    @staticmethod
    def _names(lines: Iterable[str]) -> set[str]:
        return {name.strip().lower() for line in lines for name in line.split(",") if name.strip()}

    def _asks_anew(self) -> bool:
        return "no-cache" in self._names(self.request.headers.getlist("cache-control"))


def _require_seconds(name: str, value: object, least: float = 0.001) -> None:
    if not (isinstance(value, int | float) and isfinite(value) and value >= least):
        raise InvalidRequestError(f"{name} must be a number of seconds, {least:g} or more, not {value!r}.")


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


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


def _name_of_type(own: Signature, kind: type) -> str | None:
    for name, parameter in own.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, type) and issubclass(annotation, kind):
            return name
    return None
