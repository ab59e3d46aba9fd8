"""ARQ's own ways, as the founding document shows them: `queue.pool.enqueue_job` and `ArqJob`."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.jobs import JobDef, JobResult, JobStatus, ResultNotFound
from arq.worker import JobExecutionFailed
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.utils import queue
from app.core.utils.queue import ArqJob, Job, JobState
from app.core.worker import worker as worker_module
from app.core.worker.options import job
from app.core.worker.testing import drain_jobs
from tests.durable_jobs import Context, Holding, all_done, create_done, happens, run, sent, working

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


async def create_job(db: AsyncSession, state: JobState, **values: Any) -> ArqJob:
    """A handle to a committed job in this state."""
    ended = {"finished_at": utc_now()} if state in {"succeeded", "dead", "cancelled"} else {}
    row = Job(**{"id": "one", "queue": "arq:queue", "function": "work", "state": state} | ended | values)
    db.add(row)
    await db.commit()
    return ArqJob(row.id, queue.pool)


async def enqueue(*args: Any, **options: Any) -> ArqJob:
    handle = await queue.pool.enqueue_job("work", *args, **options)
    assert isinstance(handle, ArqJob)
    return handle


# ---- Enqueueing ----


async def test_the_founding_documents_example_works(db: AsyncSession) -> None:
    async def sample_background_task(ctx: Context, name: str) -> str:
        return f"Task {name} is complete!"

    enqueued = await queue.pool.enqueue_job("sample_background_task", "hello")
    assert enqueued is not None
    handle = ArqJob(enqueued.job_id, queue.pool)
    await drain_jobs([job(sample_background_task, name="sample_background_task")])
    info = await handle.info()
    assert isinstance(info, JobResult)
    assert (info.result, info.success, info.args) == ("Task hello is complete!", True, ("hello",))


async def test_a_job_is_in_the_table_and_sent_at_once(db: AsyncSession) -> None:
    handle = await enqueue(1, two=2, _queue_name="other", _defer_by=60)
    row = await queue.find(handle.job_id)
    assert row is not None
    assert (row.queue, row.args, row.keywords, row.run_after - row.created_at) == (
        "other",
        [1],
        {"two": 2},
        timedelta(seconds=60),
    )
    assert set(await sent("other")) == {handle.job_id}
    assert await sent() == {}


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
async def test_an_id_is_taken_for_as_long_as_its_job_has_not_ended(db: AsyncSession, state: JobState) -> None:
    await create_job(db, state, created_at=utc_now() - 1000 * HOUR)
    assert await queue.pool.enqueue_job("work", _job_id="one") is None


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_an_id_is_free_again_an_hour_after_the_end_of_its_job(db: AsyncSession, state: JobState) -> None:
    await create_job(db, state, finished_at=utc_now() - HOUR + timedelta(minutes=1))
    assert await queue.pool.enqueue_job("work", _job_id="one") is None
    await run("UPDATE job SET finished_at = finished_at - interval '2 minutes'")
    handle = await queue.pool.enqueue_job("work", "again", _job_id="one")
    assert handle is not None
    row = await queue.find("one")
    assert row is not None
    assert (row.state, row.args, row.finished_at) == ("queued", ["again"], None)


async def test_of_many_at_once_with_one_id_one_is_enqueued(db: AsyncSession) -> None:
    handles = await asyncio.gather(*(queue.pool.enqueue_job("work", _job_id="one") for _ in range(20)))
    assert [handle is not None for handle in handles].count(True) == 1


async def test_an_idempotency_key_answers_with_the_earlier_job(db: AsyncSession) -> None:
    first = await enqueue(_idempotency_key="key")
    assert (await enqueue(_idempotency_key="key")).job_id == first.job_id


# ---- What a handle tells ----


async def test_of_an_unknown_job_a_handle_knows_nothing(db: AsyncSession) -> None:
    for job_id in "unknown", "", "NUL \x00", "x" * 1000:
        handle = ArqJob(job_id, queue.pool)
        assert await handle.status() is JobStatus.not_found
        assert await handle.info() is None
        assert await handle.result_info() is None
        with pytest.raises(ResultNotFound):
            await handle.result()
        assert await handle.abort() is False


async def test_a_job_that_waits(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.QUEUED, args=[1], keywords={"two": 2}, attempt=1)
    assert await handle.status() is JobStatus.queued
    info = await handle.info()
    assert type(info) is JobDef
    assert (info.function, info.args, info.kwargs, info.job_try, info.job_id) == ("work", (1,), {"two": 2}, 1, "one")
    assert info.score is not None
    assert abs(info.score / 1000 - utc_now().timestamp()) < 30
    assert await handle.result_info() is None
    with pytest.raises(TimeoutError):
        await handle.result(0.05, poll_delay=0.01)


async def test_a_job_that_is_deferred(db: AsyncSession) -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)
    handle = await create_job(db, JobState.QUEUED, run_after=at)
    assert await handle.status() is JobStatus.deferred
    info = await handle.info()
    assert info is not None
    assert info.score == int(at.timestamp() * 1000)


async def test_a_job_that_runs(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.RUNNING, started_at=utc_now())
    assert await handle.status() is JobStatus.in_progress
    info = await handle.info()
    assert type(info) is JobDef
    assert info.score is None
    assert await handle.result_info() is None


async def test_a_job_that_succeeded(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.SUCCEEDED, result={"a": 1}, started_at=utc_now(), attempt=2)
    assert await handle.status() is JobStatus.complete
    info = await handle.info()
    assert isinstance(info, JobResult)
    assert (info.success, info.result, info.job_try, info.queue_name) == (True, {"a": 1}, 2, "arq:queue")
    assert info.start_time <= info.finish_time
    assert await handle.result_info() == info
    assert await handle.result() == {"a": 1}


async def test_a_job_that_is_dead(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.DEAD, error="ValueError: no luck")
    assert await handle.status() is JobStatus.complete
    info = await handle.result_info()
    assert info is not None
    assert (info.success, info.result) == (False, "ValueError: no luck")
    with pytest.raises(JobExecutionFailed, match="ValueError: no luck"):
        await handle.result()


async def test_a_job_that_was_cancelled(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.CANCELLED)
    assert await handle.status() is JobStatus.complete
    info = await handle.result_info()
    assert info is not None
    assert info.success is False
    with pytest.raises(asyncio.CancelledError):
        await handle.result()


async def test_a_job_that_has_expired_is_unknown(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.SUCCEEDED, expires_at=utc_now() - timedelta(seconds=1))
    assert await handle.status() is JobStatus.not_found
    assert await handle.info() is None


async def test_a_result_can_be_waited_for(db: AsyncSession) -> None:
    async def work(ctx: Context) -> str:
        return "done"

    handle = await enqueue(_defer_by=0.05)
    async with working(job(work, name="work")):
        assert await handle.result(20, poll_delay=0.01) == "done"


# ---- Aborting ----


async def test_a_job_that_waits_is_aborted_at_once(db: AsyncSession) -> None:
    handle = await enqueue()
    assert await handle.abort() is True
    assert await handle.status() is JobStatus.complete


async def test_a_job_that_runs_is_aborted_by_its_worker(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    await create_done()
    held = Holding()
    handle = await queue.pool.enqueue_job("hold")
    assert handle is not None
    async with working(held.function):
        await happens(held.begun)
        assert await handle.abort(timeout=20, poll_delay=0.01) is True
    assert await all_done() == []


async def test_a_job_that_runs_without_a_worker_is_waited_for_as_long_as_one_likes(db: AsyncSession) -> None:
    handle = await create_job(db, JobState.RUNNING)
    with pytest.raises(TimeoutError):
        await handle.abort(timeout=0.05, poll_delay=0.01)
    row = await queue.find("one")
    assert row is not None
    assert row.cancel_requested


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD])
async def test_a_job_that_has_ended_cannot_be_aborted(db: AsyncSession, state: JobState) -> None:
    handle = await create_job(db, state)
    assert await handle.abort() is False
    row = await queue.find("one")
    assert row is not None
    assert (row.state, row.cancel_requested) == (state, False)


async def test_the_pool_tells_what_waits_and_what_has_ended(db: AsyncSession) -> None:
    later, first, ended = [await queue.enqueue_now("do", number) for number in range(3)]
    await run("UPDATE job SET run_after = now() + interval '1 hour' WHERE id = :id", id=later.job_id)
    await run("UPDATE job SET state = 'dead', error = 'no', finished_at = now() WHERE id = :id", id=ended.job_id)
    assert [waiting.job_id for waiting in await queue.pool.queued_jobs()] == [first.job_id, later.job_id]
    assert await queue.pool.queued_jobs(queue_name=queue.LONG_QUEUE) == []
    (result,) = await queue.pool.all_job_results()
    assert (result.job_id, result.success, result.result) == (ended.job_id, False, "no")
