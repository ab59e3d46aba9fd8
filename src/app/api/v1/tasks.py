"""Background jobs."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.status import HTTP_201_CREATED

from app.api.dependencies import (
    CurrentUser,
    IdempotencyKey,
    JobDep,
    JobFilter,
    JobFollowerDep,
    JobToReplay,
    ManagedJob,
    OptionalUser,
    PagingDep,
    ReadingSessionDep,
    SessionDep,
    TaskMessage,
    never_cached,
)
from app.api.job_events import TooManyStreams
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import SIGN_IN_OPTIONAL, problems
from app.core.schemas import Page
from app.core.security import InvalidToken
from app.core.utils import queue
from app.crud.crud_job import crud_jobs
from app.models.job import (
    JobCreated,
    JobDetails,
    JobHasEnded,
    JobNotFound,
    JobNotReplayable,
    JobRead,
    as_seen_by,
)

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[Depends(never_cached)])


@router.post(
    "/task",
    status_code=HTTP_201_CREATED,
    openapi_extra=SIGN_IN_OPTIONAL,
    responses=problems(InvalidToken, queue.IdempotencyKeyReused),
)
async def create_task(owner: OptionalUser, message: TaskMessage, key: IdempotencyKey) -> JobCreated:
    """Enqueue the sample task. A signed-in user's task can be read by that user and superusers only."""
    job = await queue.enqueue_now(
        "sample_background_task", message, _owner_id=owner.id if owner else None, _idempotency_key=key
    )
    return JobCreated(id=job.job_id)


@router.get("", responses=problems(Unauthorized))
async def read_tasks(
    viewer: CurrentUser, wanted: JobFilter, paging: PagingDep, db: ReadingSessionDep
) -> Page[JobDetails | JobRead]:
    """List your own tasks, the newest first, possibly in one status or of one function only. Superusers see all."""
    owner_id = None if viewer.is_superuser else viewer.id
    page = await crud_jobs.page_of_jobs(db, paging, owner_id=owner_id, status=wanted.status, function=wanted.function)
    return paging.page_of([as_seen_by(viewer, job) for job in page.data], page.total_count)


@router.get("/task/{task_id}", openapi_extra=SIGN_IN_OPTIONAL, responses=problems(InvalidToken, JobNotFound))
async def read_task(viewer: OptionalUser, job: JobDep) -> JobDetails | JobRead:
    """Read how a task is doing, and its result when it is done. Superusers see all of it."""
    return as_seen_by(viewer, job)


@router.get(
    "/task/{task_id}/events",
    response_class=EventSourceResponse,
    openapi_extra=SIGN_IN_OPTIONAL,
    responses=problems(InvalidToken, JobNotFound, TooManyStreams),
)
async def follow_task(follower: JobFollowerDep) -> AsyncIterator[ServerSentEvent]:
    """Follow a task: an event `progress` whenever it changes, and `end` when it has ended (server-sent events)."""
    async for event in follower.events():
        yield event


@router.post("/task/{task_id}/cancel", responses=problems(Unauthorized, Forbidden, JobNotFound, JobHasEnded))
async def cancel_task(viewer: CurrentUser, job: ManagedJob, db: SessionDep) -> JobDetails | JobRead:
    """Cancel a task of yours. One that runs is stopped within a second or two, and what it did is rolled back."""
    if not await queue.request_cancel(db, job.id):
        raise JobHasEnded
    return as_seen_by(viewer, await crud_jobs.get_present(db, job.id))


@router.post("/task/{task_id}/replay", responses=problems(Unauthorized, Forbidden, JobNotFound, JobNotReplayable))
async def replay_task(job: JobToReplay, db: SessionDep) -> JobDetails:
    """Have a dead or cancelled task done after all, from its first attempt on. Superusers only."""
    if not await queue.replay(db, job.id):
        raise JobNotReplayable
    return JobDetails.model_validate(await crud_jobs.get_present(db, job.id))
