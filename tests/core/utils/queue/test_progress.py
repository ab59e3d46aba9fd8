"""What a job says of itself can be read while it runs, costs little, and never fails."""

import asyncio
from typing import Any

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.engine import DatabaseUnavailable
from app.core.utils import queue
from app.core.utils.queue import reporting
from app.core.worker.options import GiveUp, job
from app.core.worker.testing import drain_jobs
from tests.durable_jobs import Context, enqueued, job_of, run
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio


async def after(function: Any) -> Any:
    """The progress of a job of this function, when that has ended."""
    job_id = await enqueued("it")
    await drain_jobs([job(function, name="it", max_tries=1)], allow_dead=True)
    return (await job_of(job_id)).progress


def unavailable() -> Any:
    """A database that is away."""
    raise DatabaseUnavailable


async def test_a_report_can_be_read_while_the_job_runs(db: AsyncSession) -> None:
    seen = []

    async def work(ctx: Context) -> None:
        await queue.progress(ctx, 1, 4, "first")
        seen.append((await job_of(ctx["job_id"])).progress)

    await after(work)
    assert seen == [{"done": 1, "total": 4, "message": "first"}]


async def test_reports_are_written_now_and_then_and_the_last_one_is_kept(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "LEAST_PAUSE", 60)
    seen = []

    async def work(ctx: Context) -> None:
        for done in range(1000):
            await queue.progress(ctx, done + 1, 1000)
        seen.append((await job_of(ctx["job_id"])).progress)

    with counted_statements() as statements:
        assert await after(work) == {"done": 1000, "total": 1000, "message": None}
    assert seen == [{"done": 1, "total": 1000, "message": None}]
    assert len([statement for statement in statements if statement.startswith("UPDATE job SET progress")]) == 1


async def test_after_a_pause_a_report_is_written_again(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "LEAST_PAUSE", 0)
    seen = []

    async def work(ctx: Context) -> None:
        for done in range(3):
            await queue.progress(ctx, done)
            seen.append((await job_of(ctx["job_id"])).progress)

    await after(work)
    assert [said["done"] for said in seen if said is not None] == [0, 1, 2]


async def test_the_last_report_of_a_job_that_dies_is_kept(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "LEAST_PAUSE", 60)

    async def work(ctx: Context) -> None:
        await queue.progress(ctx, 1)
        await queue.progress(ctx, 2)
        raise GiveUp

    assert await after(work) == {"done": 2, "total": None, "message": None}


async def test_of_reports_that_are_made_at_once_the_last_one_is_kept(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "LEAST_PAUSE", 60)

    async def work(ctx: Context) -> None:
        await asyncio.gather(*(queue.progress(ctx, done, 5) for done in range(1, 6)))

    assert await after(work) == {"done": 5, "total": 5, "message": None}


async def test_without_a_worker_a_report_is_nothing() -> None:
    await queue.progress({}, 1, 2, "nobody hears it")


async def test_a_report_while_the_database_is_away_is_kept_for_later(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(ctx: Context) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ctx["progress"], "_session", unavailable)
            await queue.progress(ctx, 1)

    assert await after(work) == {"done": 1, "total": None, "message": None}


@pytest.mark.parametrize("done", [float("nan"), float("inf")])
async def test_a_report_that_json_cannot_hold_does_not_fail_the_job(db: AsyncSession, done: float) -> None:
    async def work(ctx: Context) -> None:
        await queue.progress(ctx, done, 1)

    job_id = await enqueued("it")
    await drain_jobs([job(work, name="it", max_tries=1)])
    assert (await job_of(job_id)).state == "succeeded"


async def test_a_message_is_a_line_that_the_table_can_hold(db: AsyncSession) -> None:
    async def work(ctx: Context) -> None:
        await queue.progress(ctx, 1, message="NUL \x00, half \ud800, " + "x" * 1000)

    said = await after(work)
    assert said["message"].startswith("NUL \x00, half ?, xxx")
    assert len(said["message"]) == reporting.LONGEST_MESSAGE


async def test_a_run_that_is_over_says_nothing_any_more(db: AsyncSession) -> None:
    job_id = await enqueued("it")
    await run("UPDATE job SET state = 'running', runs = 2 WHERE id = :id", id=job_id)
    await reporting.Reporter(job_id, 1).report(1, None, None)
    assert (await job_of(job_id)).progress is None
    await reporting.Reporter(job_id, 2).report(1, None, None)
    assert (await job_of(job_id)).progress is not None
