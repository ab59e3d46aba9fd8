"""Background jobs."""

from uuid import uuid4

from fastapi import APIRouter, Depends
from starlette.status import HTTP_201_CREATED

from app.api.dependencies import JobDep, OptionalUser, TaskMessage, never_cached
from app.core.openapi import SIGN_IN_OPTIONAL, problems
from app.core.security import InvalidToken
from app.core.utils import queue
from app.models.job import JobCreated, JobNotFound, JobRead, job_id_for

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[Depends(never_cached)])


@router.post("/task", status_code=HTTP_201_CREATED, openapi_extra=SIGN_IN_OPTIONAL, responses=problems(InvalidToken))
async def create_task(owner: OptionalUser, message: TaskMessage) -> JobCreated:
    """Enqueue the sample task. A signed-in user's task can be read by that user and superusers only."""
    job_id = job_id_for(owner, uuid4())
    async with queue.bounded():
        await queue.pool.enqueue_job("sample_background_task", message, _job_id=job_id)
    return JobCreated(id=job_id)


@router.get("/task/{task_id}", openapi_extra=SIGN_IN_OPTIONAL, responses=problems(InvalidToken, JobNotFound))
async def read_task(job: JobDep) -> JobRead:
    """Read how a task is doing, and its result when it is done."""
    return job
