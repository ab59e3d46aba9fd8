"""What the app talks to, and whether it is well: for `/ready`, and for who asks nothing but `/metrics`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from app.core.db.schema_version import SchemaBehind

CHECK_SECONDS: Final = 2.0  # that a check may take

State = Literal["up", "down", "behind"]

log = structlog.stdlib.get_logger("slipway.health")


@dataclass(frozen=True, slots=True)
class Dependency:
    """A service the app talks to.

    Attributes:
        name: what `/ready` calls it.
        check: returns when it is well, raises when it is not.
        required: whether the app is of no use without it. Others being away only degrades it.
    """

    name: str
    check: Callable[[], Awaitable[object]]
    required: bool = False


async def states_of(dependencies: Sequence[Dependency], seconds: float = CHECK_SECONDS) -> dict[str, State]:
    """How they are, by their names. All are asked at once; what has not answered after these seconds is down."""
    found = await asyncio.gather(*(_state_of(dependency, seconds) for dependency in dependencies))
    return {dependency.name: state for dependency, state in zip(dependencies, found, strict=True)}


async def _state_of(dependency: Dependency, seconds: float) -> State:
    try:
        async with asyncio.timeout(seconds):
            await dependency.check()
    except SchemaBehind as behind:
        log.warning("schema behind", reason=str(behind))
        return "behind"
    except Exception as error:  # whatever it is, the dependency is not well
        log.warning("dependency down", check=dependency.name, error=repr(error.__cause__ or error))
        return "down"
    return "up"
