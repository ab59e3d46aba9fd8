"""Whether the process lives, and whether it can be of use."""

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.api.dependencies import DependenciesDep, DrainDep, never_cached
from app.core.exceptions.http_exceptions import ServiceUnavailable
from app.core.openapi import problems
from app.core.readiness import State, states_of

router = APIRouter(tags=["health"], dependencies=[Depends(never_cached)])


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
    states = await states_of(dependencies)
    if any(states[dependency.name] != "up" for dependency in dependencies if dependency.required):
        raise NotReady(dependencies=states)
    return Readiness(status="ready" if set(states.values()) <= {"up"} else "degraded", dependencies=states)
