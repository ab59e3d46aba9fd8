"""Jobs by the clock: once per tick, however many workers there are."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest
from arq import cron
from arq.cron import CronJob
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.engine import DatabaseUnavailable
from app.core.utils import queue
from app.core.worker import crons as crons_module
from app.core.worker import worker as worker_module
from app.core.worker.crons import Crons
from tests.durable_jobs import Context, all_done, create_done, do, run, sent, until, working

pytestmark = pytest.mark.anyio


async def tick(ctx: Context) -> None:
    """What is done by the clock."""
    await do(ctx, str(ctx["job_id"]))


def by_the_clock(**options: Any) -> CronJob:
    """A cron job that is due each second. Each worker has one of its own."""
    return cron(tick, **{"second": set(range(60))} | options)


def due(job: CronJob, at: datetime) -> Crons:
    """The cron jobs of a worker, the next tick of which is at this moment."""
    job.next_run = at
    return Crons([job], queue.DEFAULT_QUEUE, UTC)


async def ids() -> list[str]:
    return sorted((await run("SELECT id FROM job WHERE function LIKE 'cron:%'")).scalars())


BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime.now(UTC)
A_MOMENT_AGO = NOW - timedelta(milliseconds=5)


async def test_a_tick_is_one_job_of_however_many_workers(db: AsyncSession) -> None:
    workers = [due(by_the_clock(), A_MOMENT_AGO) for _ in range(5)]
    await asyncio.gather(*(worker.round() for worker in workers))
    (job_id,) = await ids()
    assert job_id == f"cron:tick:{A_MOMENT_AGO:%Y-%m-%dT%H:%M:%S.%f}"
    assert set(await sent()) == {job_id}


async def test_two_ticks_are_two_jobs(db: AsyncSession) -> None:
    await due(by_the_clock(), A_MOMENT_AGO).round()
    await due(by_the_clock(), A_MOMENT_AGO - timedelta(seconds=1)).round()
    assert len(await ids()) == 2


async def test_a_tick_is_not_done_again_by_a_worker_that_comes_long_after_its_end(db: AsyncSession) -> None:
    await due(by_the_clock(), A_MOMENT_AGO).round()
    await run("UPDATE job SET state = 'succeeded', finished_at = now() - interval '2 hours'")
    await due(by_the_clock(), A_MOMENT_AGO).round()
    assert (await run("SELECT state FROM job")).scalars().all() == ["succeeded"]


async def test_nothing_is_enqueued_before_it_is_due(db: AsyncSession) -> None:
    await due(by_the_clock(), NOW + timedelta(hours=1)).round()
    assert await ids() == []


async def test_a_tick_that_nobody_was_there_for_is_not_made_up_for(db: AsyncSession) -> None:
    job = cron(tick, minute=(NOW.minute + 30) % 60, second=0)
    crons = Crons([job], queue.DEFAULT_QUEUE, UTC)
    await crons.round()  # A worker starts: whatever was before is not its business.
    assert await ids() == []
    assert job.next_run is not None
    assert job.next_run > datetime.now(UTC) - timedelta(seconds=30)

    job.next_run = NOW - timedelta(hours=5)  # It was held up: one, and not five.
    await crons.round()
    await crons.round()
    assert len(await ids()) == 1
    assert job.next_run > datetime.now(UTC) - timedelta(seconds=30)


async def test_a_cron_job_can_run_when_a_worker_starts(db: AsyncSession) -> None:
    crons = Crons([cron(tick, hour=3, run_at_startup=True)], queue.DEFAULT_QUEUE, UTC)
    await crons.round()
    assert len(await ids()) == 1
    await crons.round()
    assert len(await ids()) == 1


async def test_a_cron_job_can_have_an_id_that_keeps_it_from_running_twice_at_once(db: AsyncSession) -> None:
    job = by_the_clock(job_id="one at a time")
    job.job_id = "one-at-a-time"
    await due(job, A_MOMENT_AGO).round()
    await due(job, A_MOMENT_AGO).round()
    assert await ids() == ["one-at-a-time"]
    await run("UPDATE job SET state = 'succeeded', attempt = 1, finished_at = now() - interval '1 minute'")
    await due(job, A_MOMENT_AGO).round()  # The tick after the next.
    assert (await run("SELECT state, attempt FROM job")).all() == [("queued", 0)]


async def test_a_cron_job_that_is_not_unique_is_each_workers_own(db: AsyncSession) -> None:
    for _ in range(3):
        await due(by_the_clock(unique=False), A_MOMENT_AGO).round()
    assert len(await ids()) == 3


@pytest.mark.parametrize("name", ["nightly report", "täglich", "x" * 128])
async def test_a_cron_job_can_have_any_name_that_a_function_can_have(db: AsyncSession, name: str) -> None:
    for _ in range(2):
        await due(by_the_clock(name=name), A_MOMENT_AGO).round()
    assert (await run("SELECT function FROM job")).scalars().all() == [name]


async def test_a_tick_that_the_database_was_away_for_is_late(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable

    crons = due(by_the_clock(), A_MOMENT_AGO)
    with monkeypatch.context() as patch:
        patch.setattr(crons_module, "enqueue_now", unavailable)
        with pytest.raises(DatabaseUnavailable):
            await crons.round()
    await crons.round()
    assert len(await ids()) == 1


async def test_two_workers_do_each_tick_once_and_keep_its_row(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.04)
    await create_done()

    async def has_ticked() -> bool:
        return len(await all_done()) >= 2

    async with working(cron_jobs=[by_the_clock()]), working(cron_jobs=[by_the_clock()]):
        await until(has_ticked)
    done = await all_done()
    assert len(done) == len(set(done))
    kept = (await run("SELECT id FROM job WHERE state = 'succeeded'")).scalars().all()
    assert set(done) == set(kept)


async def test_a_tick_is_one_job_wherever_its_workers_stand(db: AsyncSession) -> None:
    for hours in (0, 2, -7):
        job = by_the_clock()
        zone = timezone(timedelta(hours=hours))
        job.next_run = A_MOMENT_AGO.astimezone(zone)
        await Crons([job], queue.DEFAULT_QUEUE, zone).round()
    assert len(await ids()) == 1


async def test_a_cron_job_that_cannot_be_enqueued_holds_up_no_other(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse_one(name: str, **options: Any) -> Any:
        if name == "broken":
            raise ValueError("no")
        return await queue.enqueue_now(name, **options)

    monkeypatch.setattr(crons_module, "enqueue_now", refuse_one)
    broken, well = by_the_clock(name="broken"), by_the_clock()
    broken.next_run = well.next_run = A_MOMENT_AGO
    with pytest.raises(ValueError, match="no"):
        await Crons([broken, well], queue.DEFAULT_QUEUE, UTC).round()
    assert len(await ids()) == 1
    assert broken.next_run == A_MOMENT_AGO, "it is tried again"


async def test_a_cron_job_with_an_id_runs_at_each_tick_after_its_end(db: AsyncSession) -> None:
    for number in range(3):
        await due(by_the_clock(job_id="only"), A_MOMENT_AGO + timedelta(seconds=number - 3)).round()
        assert await ids() == ["only"]
        ended = "UPDATE job SET state = 'succeeded', finished_at = now() - interval '600 milliseconds'"
        assert (await run(f"{ended} WHERE state = 'queued' RETURNING id")).all(), f"tick {number} was left out"


async def test_a_tick_that_was_missed_in_a_restart_is_made_up_for(db: AsyncSession) -> None:
    now = datetime.now(UTC)
    missed = (now - timedelta(seconds=20)).replace(microsecond=0)
    fields: dict[str, Any] = {"hour": missed.hour, "minute": missed.minute, "second": missed.second, "microsecond": 0}
    for _ in range(2):  # However often it restarts.
        job = cron(tick, **fields)
        await Crons([job], queue.DEFAULT_QUEUE, UTC).round()
        assert await ids() == [f"cron:tick:{missed:%Y-%m-%dT%H:%M:%S.%f}"]
        assert job.next_run == missed + timedelta(days=1)


async def test_of_the_ticks_that_were_missed_in_a_restart_the_last_one_is_made_up_for(db: AsyncSession) -> None:
    await Crons([by_the_clock()], queue.DEFAULT_QUEUE, UTC).round()
    assert len(await ids()) == 1


@pytest.mark.parametrize("options", [{"unique": False}, {"job_id": "only"}])
async def test_a_job_whose_ticks_cannot_be_told_apart_is_not_made_up_for(
    db: AsyncSession, options: dict[str, Any]
) -> None:
    missed = datetime.now(UTC) - timedelta(seconds=20)
    job = cron(tick, minute=missed.minute, second=missed.second, **options)
    await Crons([job], queue.DEFAULT_QUEUE, UTC).round()
    assert await ids() == []


async def test_workers_of_different_age_do_each_tick_of_a_change_of_clocks_once(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has started in summer, another one between the two hours that look the same, a third one in winter."""
    start = datetime(2026, 10, 25, 0, tzinfo=UTC)  # In Berlin, the clocks go back from 3 to 2 at 1:00 UTC.
    workers: list[tuple[datetime, Crons]] = [
        (
            start + timedelta(minutes=minutes),
            Crons([cron(tick, minute=set(range(0, 60, 10)))], queue.DEFAULT_QUEUE, BERLIN),
        )
        for minutes in (0, 65, 125)
    ]
    for minute in range(0, 180, 5):
        now = start + timedelta(minutes=minute, seconds=1)
        monkeypatch.setattr(crons_module, "datetime", Mock(now=lambda _, now=now: now))
        await asyncio.gather(*(crons.round() for born, crons in workers if born <= now))
    expected = [start + number * timedelta(minutes=10) for number in range(18)]
    assert await ids() == [f"cron:tick:{moment:%Y-%m-%dT%H:%M:%S}.123456" for moment in expected]
