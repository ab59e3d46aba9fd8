"""Jobs, as they are listed, and removed when they are old. The queue itself writes them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, or_
from sqlalchemy.orm import load_only
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.schemas import Page
from app.core.utils.queue import Job, JobState, JobStatus
from app.crud.crud_base import CRUDBase
from app.crud.helper import Paging
from app.models.job import JobNotFound


class CRUDJob(CRUDBase[Job]):
    model = Job
    not_found = JobNotFound

    async def page_of_jobs(
        self,
        db: AsyncSession,
        paging: Paging,
        *,
        owner_id: int | None = None,
        status: JobStatus | None = None,
        function: str | None = None,
    ) -> Page[Job]:
        """One page of jobs, the newest first, possibly of one owner, in one status, or of one function only."""
        where: list[ColumnElement[bool]] = [not_expired()]
        if owner_id is not None:
            where.append(col(Job.owner_id) == owner_id)
        if status is not None:
            where.append(in_status(status))
        if function is not None:
            where.append(col(Job.function) == function)
        return await self.page(db, paging, *where, order_by=[col(Job.created_at).desc()])

    async def running(self, db: AsyncSession, most: int) -> Sequence[Job]:
        """The jobs that workers have, by worker and start; without what they are called with."""
        columns = (Job.id, Job.function, Job.attempt, Job.started_at, Job.worker, Job.progress, Job.cancel_requested)
        wanted = select(Job).where(Job.state == JobState.RUNNING).options(load_only(*columns))  # type: ignore[arg-type]
        return (await db.exec(wanted.order_by(col(Job.worker), col(Job.started_at)).limit(most))).all()

    async def purge(self, db: AsyncSession, *, ended_before: datetime, died_before: datetime, most: int) -> int:
        """Removes jobs that succeeded or were cancelled, or died, before these moments. Says how many.

        Those whose function says for how long they are kept go when that is over.
        """
        usual = and_(
            col(Job.expires_at).is_(None),
            or_(
                and_(col(Job.state).in_([JobState.SUCCEEDED, JobState.CANCELLED]), col(Job.finished_at) < ended_before),
                and_(col(Job.state) == JobState.DEAD, col(Job.finished_at) < died_before),
            ),
        )
        old = select(Job.id).where(or_(usual, col(Job.expires_at) < func.now())).limit(most)
        return (await db.exec(delete(Job).where(col(Job.id).in_(old)))).rowcount


def not_expired() -> ColumnElement[bool]:
    """All but what waits for housekeeping to remove it, which no list has."""
    return or_(col(Job.expires_at).is_(None), col(Job.expires_at) > func.now())


def in_status(status: JobStatus) -> ColumnElement[bool]:
    """The jobs whose `Job.status` is this."""
    state = col(Job.state)
    if status is JobStatus.DEFERRED:
        return and_(state == JobState.QUEUED, col(Job.run_after) > func.now())
    if status is JobStatus.QUEUED:
        return and_(state == JobState.QUEUED, col(Job.run_after) <= func.now())
    return state == _STATES[status]


_STATES = {
    JobStatus.IN_PROGRESS: JobState.RUNNING,
    JobStatus.COMPLETE: JobState.SUCCEEDED,
    JobStatus.DEAD: JobState.DEAD,
    JobStatus.CANCELLED: JobState.CANCELLED,
}

crud_jobs = CRUDJob()
