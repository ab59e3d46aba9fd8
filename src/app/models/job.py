"""A background job, as its owner and superusers see it. The table is the queue's own: `app.core.utils.queue.table`."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.core.exceptions.http_exceptions import Conflict, NotFound
from app.core.schemas import ResponseModel
from app.core.utils.queue import DRAWN_ID, Job, JobStatus
from app.models.user import User


class JobNotFound(NotFound):
    text = "There is no such task, or its result has expired."


class JobHasEnded(Conflict):
    text = "The task has ended already."


class JobNotReplayable(Conflict):
    text = "Only a task that is dead or cancelled can be replayed."


class JobCreated(BaseModel):
    id: str


class JobProgress(ResponseModel):
    """What a job last said of itself: so much done, of how much, in whatever unit."""

    done: float
    total: float | None = None
    message: str | None = None


class JobRead(ResponseModel):
    """How a job is doing.

    Attributes:
        run_after: it does not start, or start again, before this.
        attempt: how many of its attempts have begun.
        success, result: once it has ended; of a job that failed the result is its error.
        error: why the last attempt failed.
    """

    id: str
    function: str
    status: JobStatus
    enqueued_at: datetime = Field(validation_alias="created_at")
    run_after: datetime
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    success: bool | None
    result: Any = Field(validation_alias="outcome")
    error: str | None
    progress: JobProgress | None


class JobDetails(JobRead):
    """All of it, for superusers: what it was called with, whose it is, and who had it last."""

    queue: str
    args: list[Any]
    keywords: dict[str, Any] = Field(serialization_alias="kwargs")
    owner_id: int | None
    idempotency_key: str | None
    cancel_requested: bool
    worker: str | None


def as_seen_by(viewer: User | None, job: Job) -> JobRead:
    """What the viewer is shown of a job that they may see."""
    shape = JobDetails if viewer is not None and viewer.is_superuser else JobRead
    return shape.model_validate(job)


def may_see(viewer: User | None, job: Job) -> bool:
    """Whether the viewer owns the job, or is a superuser, or nobody owns it and its id cannot be guessed."""
    if viewer is not None and viewer.is_superuser:
        return True
    if job.owner_id is None:
        return DRAWN_ID.fullmatch(job.id) is not None
    return viewer is not None and viewer.id == job.owner_id
