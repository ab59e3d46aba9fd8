"""What the decorator knows of one handler at import, and what it does for one that changes something."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import Signature, iscoroutinefunction
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.core.db.database import around_commits
from app.core.db.outbox import Targets
from app.core.exceptions.cache_exceptions import InvalidRequestError
from app.core.route_inputs import InputsOf
from app.core.utils.cache.keys import Template, encoded
from app.core.utils.cache.metrics import Meter
from app.core.utils.cache.opened import Cache

Endpoint = Callable[..., Any]


@dataclass(slots=True)
class Plan:
    """What the decorator does with one handler: all that can be found out at import.

    Attributes:
        key_prefix: the template, as it was given.
        fixed_id: the id, where it is the same for every call.
    """

    key_prefix: str
    fixed_id: object
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
    client_max_age: int | None
    jitter: float
    meter: Meter
    is_coroutine: bool = field(init=False)
    request_name: str | None = field(init=False)
    response_name: str | None = field(init=False)
    inputs_of: InputsOf = field(default_factory=InputsOf)

    def __post_init__(self) -> None:
        self.is_coroutine = iscoroutinefunction(self.handler)
        self.request_name = _name_of_type(self.own, HTTPConnection)
        self.response_name = _name_of_type(self.own, Response)

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

    def fresh_milliseconds(self) -> int:
        """For how long an answer that is stored now is fresh; 1 at least."""
        cut = self.jitter * random.random() if self.jitter else 0  # noqa: S311 -- no secret
        return max(1, round(self.fresh * 1000 * (1 - cut)))

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


def _name_of_type(own: Signature, kind: type) -> str | None:
    for name, parameter in own.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, type) and issubclass(annotation, kind):
            return name
    return None
