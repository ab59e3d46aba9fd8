"""Whether the process lives, and whether it can be of use."""

import asyncio
from typing import Literal

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.api.dependencies import DependenciesDep, DrainDep, never_cached
from app.core.db.schema_version import SchemaBehind
from app.core.exceptions.http_exceptions import ServiceUnavailable
from app.core.openapi import problems
from app.core.setup import Dependency

log = structlog.stdlib.get_logger("slipway.health")

CHECK_TIMEOUT = 2.0  # seconds


router = APIRouter(tags=["health"], dependencies=[Depends(never_cached)])

State = Literal["up", "down", "behind"]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "degraded"]
    dependencies: dict[str, State]


class Stopping(ServiceUnavailable):
    text = "The server is stopping."


class NotReady(ServiceUnavailable):
    text = "Something this service cannot do without is not available."


@router.get("/health")
async def health() -> Health:
    """Liveness: the process answers. Asks nothing of anybody else."""
    return Health()


@router.get("/ready", responses=problems(NotReady, Stopping))
async def ready(dependencies: DependenciesDep, drain: DrainDep) -> Readiness:
    """Readiness: everything this service cannot do without is there. What it can do without only degrades it."""
    if drain.begun:
        raise Stopping
    found = await asyncio.gather(*map(_state_of, dependencies))
    states = {dependency.name: state for dependency, state in zip(dependencies, found, strict=True)}
    if any(states[dependency.name] != "up" for dependency in dependencies if dependency.required):
        raise NotReady(dependencies=states)
    return Readiness(status="ready" if set(found) <= {"up"} else "degraded", dependencies=states)


async def _state_of(dependency: Dependency) -> State:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await dependency.check()
    except SchemaBehind:
        return "behind"
    except Exception as error:  # whatever it is, the dependency is not well
        log.warning("dependency down", check=dependency.name, error=repr(error.__cause__ or error))
        return "down"
    return "up"
