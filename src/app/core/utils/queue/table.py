"""The table of jobs, which is the truth about them: Redis/Valkey only carries their ids to the workers."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import JSON, Index, Text, text
from sqlmodel import Field, SQLModel

from app.core.db.models import utc_now

DEFAULT_QUEUE: Final = "arq:queue"
LONG_QUEUE: Final = "arq:queue:long"
LONGEST_ID: Final = 128
LONGEST_NAME: Final = 128
LONGEST_KEY: Final = 300
LONGEST_TRACEPARENT: Final = 55


class JobState(StrEnum):
    """Where a job is: it waits, also for its next attempt; a worker has it; or it has ended in one of three ways."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"


class JobStatus(StrEnum):
    """The same to whoever asks, in ARQ's words where it has them."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    DEAD = "dead"
    CANCELLED = "cancelled"


_STATUS: Final = {
    JobState.RUNNING: JobStatus.IN_PROGRESS,
    JobState.SUCCEEDED: JobStatus.COMPLETE,
    JobState.DEAD: JobStatus.DEAD,
    JobState.CANCELLED: JobStatus.CANCELLED,
}
ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED})


class Job(SQLModel, table=True):
    """A job, from the transaction that asked for it until some days after its end.

    Attributes:
        args, keywords: what the function is called with. Plain `json` columns, since `jsonb` cannot hold every string.
        owner_id: who may read it; nobody in particular, if it is empty.
        idempotency_key: a second job with the same one is not made.
        attempt: how many of its function's tries have begun; one that a stopping worker put back does not count.
        runs: how often it was started. It only grows: a worker that comes back late does not write over a later run.
        run_after: not before this.
        start_before: not after this.
        sent_at: when the drain sent it. Whoever enqueues sends as well, without noting it here.
        lease_until: until when its worker has it, unless that renews it.
        expires_at: when the row goes, where its function says so; others go some days after their end.
        progress: what the job last said of itself: done, total, message.
        traceparent: the span of whoever has enqueued it, as in W3C Trace Context, while that was traced.
    """

    __tablename__ = "job"
    # For the drain, for the reconciler, for the look for lost workers, and for housekeeping. The first three stay small
    # however many jobs there were.
    __table_args__ = (
        Index("ix_job_unsent", "run_after", postgresql_where=text("state = 'queued' AND sent_at IS NULL")),
        Index("ix_job_queued", "queue", "run_after", "id", postgresql_where=text("state = 'queued'")),
        Index("ix_job_running", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "ix_job_ended",
            "state",
            "finished_at",
            postgresql_include=["run_after", "started_at"],  # for statistics, without a look at the rows
            postgresql_where=text("finished_at IS NOT NULL"),
        ),
        Index("ix_job_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
        Index("ix_job_owner_id_created_at", "owner_id", "created_at"),
        Index("ix_job_created_at", "created_at"),
        Index("ix_job_function_created_at", "function", "created_at"),
    )

    id: str = Field(primary_key=True, max_length=LONGEST_ID)
    queue: str = Field(max_length=LONGEST_NAME)
    function: str = Field(max_length=LONGEST_NAME)
    args: list[Any] = Field(default_factory=list, sa_type=JSON)
    keywords: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    owner_id: int | None = Field(default=None, foreign_key="user.id", ondelete="CASCADE")
    idempotency_key: str | None = Field(default=None, max_length=LONGEST_KEY, unique=True)
    state: str = Field(default=JobState.QUEUED, max_length=10, sa_column_kwargs={"server_default": text("'queued'")})
    attempt: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    runs: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    cancel_requested: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    created_at: datetime = Field(default_factory=utc_now)
    run_after: datetime = Field(default_factory=utc_now)
    start_before: datetime | None = None
    sent_at: datetime | None = None
    started_at: datetime | None = None
    lease_until: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    worker: str | None = Field(default=None, max_length=LONGEST_NAME)
    progress: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    result: Any = Field(default=None, sa_type=JSON, nullable=True)
    error: str | None = Field(default=None, sa_type=Text)
    traceparent: str | None = Field(default=None, max_length=LONGEST_TRACEPARENT)

    @property
    def status(self) -> JobStatus:
        """Where it is, to whoever asks."""
        if self.state == JobState.QUEUED:
            return JobStatus.DEFERRED if self.run_after > utc_now() else JobStatus.QUEUED
        return _STATUS[JobState(self.state)]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it by itself."""
        return self.state in ENDED

    @property
    def success(self) -> bool | None:
        """How it has ended, once it has."""
        return self.state == JobState.SUCCEEDED if self.has_ended else None

    @property
    def outcome(self) -> Any:
        """Its result; of one that failed, its error."""
        return self.result if self.state == JobState.SUCCEEDED else self.error if self.has_ended else None
