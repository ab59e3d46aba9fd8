"""A background job, as its owner sees it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from app.core.exceptions.http_exceptions import NotFound
from app.core.schemas import ResponseModel
from app.models.user import User


class JobNotFound(NotFound):
    text = "There is no such task, or its result has expired."


class JobCreated(BaseModel):
    id: str


class JobRead(ResponseModel):
    """How a job is doing.

    Attributes:
        status: deferred, queued, in_progress or complete.
        attempt: which try this is, from 1.
        success, result: once it is complete; of a failed job the result is its error.
    """

    id: str
    function: str
    status: str
    enqueued_at: datetime
    attempt: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    success: bool | None = None
    result: Any = None


def job_id_for(owner: User | None, unique: UUID) -> str:
    """An id that says whose job it is: an id cannot be invented, since its job would not exist."""
    return unique.hex if owner is None else f"{owner.id}-{unique.hex}"


def may_see(viewer: User | None, job_id: str) -> bool:
    """Whether the viewer owns the job, or is a superuser, or nobody owns it."""
    owner, separator, _ = job_id.rpartition("-")
    if not separator:
        return True
    return viewer is not None and (viewer.is_superuser or owner == str(viewer.id))
