"""How long browsers and shared caches may keep a route's answers, and whether they may at all."""

from dataclasses import dataclass, field
from typing import Any, Final
from weakref import ref

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.harmless_headers import HARMLESS
from app.core.route_inputs import CREDENTIALS, Inputs, inputs_of, is_same_for_all_callers
from app.core.route_table import route_of
from app.core.settings.base import SettingsError
from app.core.settings.http import MAX_AGE, is_max_age
from app.core.utils.cache import reading_plan


class ClientMaxAge:
    """A dependency that declares for how long the answers of its routes may be kept."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    async def __call__(self) -> None:
        """Does nothing: the middleware reads the declaration."""


def client_max_age(seconds: int) -> ClientMaxAge:
    """Says for how long anonymous answers of a route may be kept outside, in the place of CLIENT_CACHE_MAX_AGE.

    With 0, caches ask each time whether what they have is still right (`public, no-cache`). Answers get an `ETag`, so
    that this costs no second transfer. For a route or a whole router; what stands nearer to the handler wins:

        @router.get("/prices", dependencies=[Depends(client_max_age(0))])

    Args:
        seconds: 0 to a year.

    Raises: ValueError for anything else.
    """
    if not is_max_age(seconds):
        raise ValueError(f"client_max_age takes a whole number of seconds, 0 to {MAX_AGE}, not {seconds!r}.")
    return ClientMaxAge(seconds)


@dataclass(frozen=True, slots=True)
class ClientCachePolicy:
    """What is known of a route's answers before the first request.

    Attributes:
        is_shareable: whether only what is declared can tell callers apart.
        max_age: seconds that the route itself has declared.
        vary: the request headers that the answer depends on, those of credentials included; in lower case.
        key_headers: headers that are credentials here, and harmless elsewhere.
        key_queries: query parameters that are credentials.
        vary_line: `vary` as an answer has it.
    """

    is_shareable: bool
    max_age: int | None = None
    vary: frozenset[bytes] = frozenset(name.encode() for name in CREDENTIALS)
    key_headers: frozenset[bytes] = frozenset()
    key_queries: frozenset[str] = frozenset()
    vary_line: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vary_line", b", ".join(name.title() for name in sorted(self.vary)))


_PRIVATE: Final = ClientCachePolicy(is_shareable=False)
_SHAREABLE: Final = ClientCachePolicy(is_shareable=True)


class ClientCachePolicies:
    """Finds the policy of a request's route, once per route."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], ClientCachePolicy]] = {}

    def of(self, scope: Scope) -> ClientCachePolicy:
        """The policy of the route that was found. What is unknown, such as a mounted application's, is private."""
        route = route_of(scope)
        if route is None:
            mounted = scope.get("endpoint")
            return _SHAREABLE if type(mounted) is StaticFiles or is_same_for_all_callers(mounted) else _PRIVATE
        known = self._known.get(id(route))
        if known is None or known[0]() is not route:
            known = self._known[id(route)] = (ref(route), policy_of(route))
        return known[1]


def policy_of(route: Any) -> ClientCachePolicy:
    """The policy of a route, with all that its including routers add."""
    inputs = inputs_of(route.dependant)
    plan = reading_plan(route)
    headers = {*inputs.headers, *(plan.vary if plan is not None else ())}
    max_age = plan.client_max_age if plan is not None else None
    return ClientCachePolicy(
        is_shareable=not inputs.unknown and not any(_can_tell_callers_apart(route, inputs)),
        max_age=_declared(route.dependant) if max_age is None else max_age,
        vary=frozenset(name.encode() for name in {*headers, *CREDENTIALS} if "_" not in name),
        key_headers=frozenset(name.encode() for name in inputs.key_headers) & HARMLESS,
        key_queries=frozenset(inputs.key_queries),
    )


def _can_tell_callers_apart(route: Any, inputs: Inputs) -> list[bool]:
    """Of each that takes the whole request. A cached handler answers all callers, unless it is private, with one."""
    plan = reading_plan(route)
    shared = route.endpoint if plan is not None and not plan.private else None
    return [reader is not shared and not is_same_for_all_callers(reader) for reader in inputs.readers]


def _declared(dependant: Dependant) -> int | None:
    found = dependant.call.seconds if isinstance(dependant.call, ClientMaxAge) else None
    for other in dependant.dependencies:
        nearer = _declared(other)
        found = found if nearer is None else nearer
    return found


def refuse_max_age_without_middleware(app: FastAPI) -> None:
    """Raises: SettingsError when a route declares an age, and the settings have nothing that would say it."""
    for route in iter_route_contexts(app.routes):
        if getattr(route, "dependant", None) is not None and policy_of(route).max_age is not None:
            raise SettingsError(
                f"{route.path} says client_max_age: `class Settings` has to inherit ClientSideCacheSettings."
            )
