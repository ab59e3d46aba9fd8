"""One attempt at one job: what its function does, and that it is done, are one transaction."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic, perf_counter
from typing import Any, Final

import structlog
from arq.cron import CronJob
from arq.worker import Function, Retry, Worker
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.contextvars import bound_contextvars

from app.core.db.database import after_commit, begin_request, transaction
from app.core.db.outages import TransactionAborted, is_aborted
from app.core.db.schema_version import explain_schema_error
from app.core.exceptions.http_exceptions import Problem
from app.core.tracing import attempt_span
from app.core.utils.queue import JobState
from app.core.utils.queue.metrics import ATTEMPTS, SECONDS, WAITED
from app.core.utils.queue.reporting import Reporter
from app.core.utils.queue.sending import send
from app.core.utils.queue.serialization import describe, dump_result
from app.core.worker.claims import Claimed, LeaseLost, end, put_back, still_runs, succeed
from app.core.worker.opened import OwnSession
from app.core.worker.options import GiveUp, pause_before_retry

ENDED: Final = (JobState.DEAD.value, JobState.CANCELLED.value)
AGAIN: Final = ("retried", "put_back")
COMMIT_SECONDS: Final = 30.0  # that the end of a job and its commit may take
HOOK_SECONDS: Final = 30.0  # that a hook may take
WRITE_SECONDS: Final = 5.0  # in which it is tried to write down how an attempt ended; its lease sees to it later
WRITE_PAUSE: Final = 0.5  # seconds

log = structlog.stdlib.get_logger("slipway.worker")


class Attempt:
    """An attempt, from its claim to its end. `task` runs it, and never fails."""

    def __init__(self, job: Claimed, function: Function | CronJob, worker: Worker, session: OwnSession) -> None:
        """
        Args:
            job: what to do.
            function: what does it.
            worker: whose options, hooks and context it goes by.
            session: opens a session of the worker's own.
        """
        self.job = job
        self.task: asyncio.Task[None] | None = None
        self._function = function
        self._worker = worker
        self._session = session
        self._reporter = Reporter(job.id, job.runs, session)
        self._ctx = worker.ctx | {
            "job_id": job.id,
            "job_try": job.attempt,
            "enqueue_time": job.created_at,
            "score": int(job.run_after.timestamp() * 1000),
            "progress": self._reporter,
        }
        self._told: JobState | LeaseLost | None = None
        self._is_ending = False
        self._is_committed = False

    def start(self, when_done: Callable[["Attempt"], None]) -> asyncio.Task[None]:
        """Begins. `when_done` is called at the end, whatever that was."""
        self.task = asyncio.create_task(self._run(), name=f"job {self.job.id}")
        self.task.add_done_callback(lambda _: when_done(self))
        return self.task

    def cancel(self) -> None:
        """Ends it as cancelled."""
        self._tell(JobState.CANCELLED)

    def lose(self) -> None:
        """Ends it without a trace: somebody else has the job."""
        self._tell(LeaseLost(self.job.id))

    def _tell(self, why: JobState | LeaseLost) -> None:
        if self._told is None and not self._is_ending and self.task is not None:
            self._told = why
            self.task.cancel()

    async def _run(self) -> None:
        job = self.job
        WAITED.labels(job.queue).observe(max(0.0, (job.started_at - job.run_after).total_seconds()))
        with (
            bound_contextvars(job_id=job.id, function=job.function, attempt=job.attempt),
            attempt_span(job.function, job.id, job.queue, job.attempt, job.traceparent) as span,
        ):
            began = perf_counter()
            try:
                result = await self._attempt()
            except BaseException as error:  # Not even sys.exit() of a job ends its worker.
                result = "succeeded" if self._is_committed else await self._settle(error)
                if result in {"dead", "retried"}:
                    span.failed(error)
            seconds = perf_counter() - began
            self._count(result, seconds)
            span.note(job__result=result)
            # Arguments and results are not for a log: there can be addresses in them.
            log.info("job ended", result=result, seconds=round(seconds, 3))
            await self._run_hook(self._worker.after_job_end)

    def _count(self, result: str, seconds: float) -> None:
        ATTEMPTS.labels(self.job.function, result).inc()
        SECONDS.labels(self.job.function).observe(seconds)
        self._worker.jobs_complete += result == "succeeded"  # ARQ's, for its own lines.
        self._worker.jobs_failed += result in ENDED
        self._worker.jobs_retried += result in AGAIN

    # ---- What it does ----

    async def _attempt(self) -> str:
        if self.job.is_too_late:
            raise GiveUp("It was not to be started this late.")
        log.info("job started")
        begin_request()  # What is open around a worker, in a test, is not this job's.
        async with asyncio.timeout(self._seconds) as limit, transaction() as db:
            self._ctx["db"] = db
            result = await self._call(db)
            written = _as_json(result)
            self._is_ending = True
            after_commit(db, self._note_commit)  # Here: the job may have committed, or rolled back, by itself.
            limit.reschedule(asyncio.get_running_loop().time() + COMMIT_SECONDS)
            await self._succeed(db, written)
        return "succeeded"

    async def _call(self, db: AsyncSession) -> Any:
        if self._worker.on_job_start is not None:
            await self._worker.on_job_start(self._ctx)
        try:
            return await self._function.coroutine(self._ctx, *self.job.args, **self.job.keywords)
        except Problem:
            await db.rollback()  # Some want what they have changed to be kept when they are answered; a job does not.
            raise
        finally:
            await self._run_hook(self._worker.on_job_end)

    async def _succeed(self, db: AsyncSession, result: str) -> None:
        try:
            await succeed(db, self.job, result, self._reporter.unwritten, self._keep, forever=self._forever)
        except LeaseLost:
            # A job that erases its own owner has erased its row: seen from outside of its transaction, it is there.
            async with self._session() as outside:
                if not await still_runs(outside, self.job):
                    raise
        except SQLAlchemyError as error:
            # It caught an error that had aborted its transaction: what it wrote is gone, so it has not succeeded.
            if is_aborted(error):
                raise TransactionAborted from error
            raise

    async def _note_commit(self) -> None:
        self._is_committed = True

    async def _run_hook(self, hook: Callable[[dict[Any, Any]], Awaitable[Any]] | None) -> None:
        if hook is None:
            return
        try:
            async with asyncio.timeout(HOOK_SECONDS):
                await hook(self._ctx)
        except Exception:
            log.exception("hook failed")

    @property
    def _seconds(self) -> float | None:
        own = self._function.timeout_s
        return self._worker.job_timeout_s if own is None else own

    @property
    def _max_tries(self) -> int:
        if not self._worker.retry_jobs:
            return 1
        own = self._function.max_tries
        return self._worker.max_tries if own is None else own

    @property
    def _forever(self) -> bool:
        return bool(self._function.keep_result_forever)

    @property
    def _keep(self) -> timedelta | None:
        """The row of a cron job says that its tick is done: it stays, whatever ARQ's default is."""
        seconds = self._function.keep_result_s
        if seconds is None or isinstance(self._function, CronJob):
            return None
        return timedelta(seconds=seconds)

    # ---- How it failed ----

    async def _settle(self, error: BaseException) -> str:
        """Writes down how it failed. Says what becomes of it."""
        self._is_ending = True
        writing = asyncio.create_task(self._write_down(error))
        while not writing.done():  # However often it is cancelled, a job must not be left without an end.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(writing)
        return writing.result()

    async def _write_down(self, error: BaseException) -> str:
        if (reason := await explain_schema_error(error)) is not None:
            log.error("schema error", reason=reason)
        deadline = monotonic() + WRITE_SECONDS
        while True:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    return await self._decide(error)
            except LeaseLost:
                log.warning("job lost to another worker")
                return "lost"
            except Exception as failure:
                if monotonic() > deadline:  # Its lease ends, and it is done again.
                    log.warning("end of the job not written down", why=repr(failure.__cause__ or failure))
                    return "lost"
            await asyncio.sleep(WRITE_PAUSE)

    async def _decide(self, error: BaseException) -> str:
        if isinstance(self._told, LeaseLost) or isinstance(error, LeaseLost):
            raise LeaseLost(self.job.id)
        if self._told is JobState.CANCELLED:
            return await self._end(JobState.CANCELLED, None)
        if isinstance(error, asyncio.CancelledError) and self._is_stopping:
            return await self._again("put_back", 0, None, counts=False)
        if isinstance(error, GiveUp) or self.job.attempt >= self._max_tries:
            log.exception("job is dead", exc_info=error)
            return await self._end(JobState.DEAD, describe(error))
        if isinstance(error, Retry):
            return await self._again("retried", (error.defer_score or 0) / 1000, describe(error))
        log.warning("attempt failed", exc_info=error)
        return await self._again("retried", pause_before_retry(self._function, self.job.attempt), describe(error))

    @property
    def _is_stopping(self) -> bool:
        task = self.task
        return task is not None and task.cancelling() > 0

    async def _end(self, state: JobState, error: str | None) -> str:
        async with self._session() as db:
            await end(db, self.job, state, error, self._reporter.unwritten)
        return state.value

    async def _again(self, result: str, pause: float, error: str | None, *, counts: bool = True) -> str:
        async with self._session() as db:
            due = await put_back(db, self.job, pause, error, counts=counts)
        if due is None:
            return JobState.CANCELLED.value
        await send(self.job.queue, self.job.id, due)
        return result


def _as_json(result: Any) -> str:
    try:
        return dump_result(result)
    except (TypeError, ValueError) as error:
        raise GiveUp(f"Its result cannot be written as JSON: {error}") from error
