"""Jobs in numbers: what is counted, what is not, and in how many statements."""

from datetime import UTC, datetime, timedelta
from itertools import count
from statistics import quantiles
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils.queue import DEFAULT_QUEUE, LONG_QUEUE, Job, JobState, JobStatus
from app.crud import crud_job_statistics as statistics
from app.crud.crud_job import crud_jobs
from app.crud.crud_job_statistics import (
    JobMinute,
    count_by_status,
    functions_present,
    last_hour,
    running_by_worker,
)
from app.crud.helper import Paging
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio

_number = count()
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
async def now(db: AsyncSession) -> datetime:
    """The database's time, which stands still for the test's transaction."""
    moment: datetime = await (await db.connection()).scalar(text("SELECT now()"))
    return moment


async def create(db: AsyncSession, number: int = 1, **values: Any) -> None:
    """Some jobs that are alike, in the test's transaction."""
    for _ in range(number):
        db.add(Job(**{"id": f"job{next(_number)}", "queue": DEFAULT_QUEUE, "function": "f"} | values))
    await db.flush()


async def create_ended(
    db: AsyncSession, at: datetime, state: JobState = JobState.SUCCEEDED, *, waited: float = 1, ran: float = 2
) -> None:
    """A job that has ended then."""
    started_at = at - ran * SECOND
    await create(db, state=state, finished_at=at, started_at=started_at, run_after=started_at - waited * SECOND)


# ---- Counts ----


async def test_without_jobs_everything_is_nought(db: AsyncSession) -> None:
    counts = await count_by_status(db)
    assert counts.by_status == dict.fromkeys(JobStatus, 0)
    assert counts.oldest_due == {DEFAULT_QUEUE: 0, LONG_QUEUE: 0}
    assert (await functions_present(db), await running_by_worker(db)) == ([], {})


async def test_each_status_is_counted_as_the_list_shows_it(db: AsyncSession, now: datetime) -> None:
    await create(db, 2, run_after=now - SECOND)
    await create(db, 3, run_after=now + HOUR)
    await create(db, 4, state=JobState.RUNNING, lease_until=now + MINUTE)
    for state, number in ((JobState.SUCCEEDED, 5), (JobState.DEAD, 6), (JobState.CANCELLED, 7)):
        await create(db, number, state=state, finished_at=now)
    await create(db, 8, state=JobState.SUCCEEDED, finished_at=now, expires_at=now - SECOND)
    await create(db, 9, state=JobState.SUCCEEDED, finished_at=now, expires_at=now + HOUR)

    counted = (await count_by_status(db)).by_status
    assert [counted[status] for status in JobStatus] == [3, 2, 4, 14, 6, 7]
    for status in JobStatus:
        listed = await crud_jobs.page_of_jobs(db, Paging(page=1, items_per_page=1), status=status)
        assert listed.total_count == counted[status]


async def test_a_queue_is_as_old_as_its_oldest_job_that_is_due(db: AsyncSession, now: datetime) -> None:
    for ago in (30, 90, 60):
        await create(db, run_after=now - ago * SECOND)
    await create(db, run_after=now - HOUR, state=JobState.RUNNING)
    await create(db, queue="other", run_after=now - 5 * SECOND)
    await create(db, queue="zzz", run_after=now + HOUR)
    oldest = (await count_by_status(db)).oldest_due
    assert oldest == {DEFAULT_QUEUE: 90, LONG_QUEUE: 0, "other": 5, "zzz": 0}


# ---- The last hour ----


async def test_each_minute_of_the_last_hour_is_there_in_order(db: AsyncSession, now: datetime) -> None:
    newest = now.replace(second=0, microsecond=0)
    hour = await last_hour(db)
    assert hour == [JobMinute(newest - ago * MINUTE) for ago in range(59, -1, -1)]
    assert {minute.ended for minute in hour} == {0}

    await create_ended(db, newest)
    await create_ended(db, newest - MINUTE)
    await create_ended(db, newest - SECOND, JobState.DEAD)
    await create_ended(db, newest - 59 * MINUTE, JobState.CANCELLED)
    await create_ended(db, newest - 59 * MINUTE - SECOND)
    hour = await last_hour(db)
    ended = [(minute.succeeded, minute.dead, minute.cancelled, minute.ended) for minute in hour]
    assert ended == [(0, 0, 1, 1), *[(0, 0, 0, 0)] * 57, (1, 1, 0, 2), (1, 0, 0, 1)]
    assert [minute.start.astimezone(UTC) for minute in hour] == [newest - ago * MINUTE for ago in range(59, -1, -1)]


async def test_how_long_jobs_waited_and_ran_is_exact_up_to_a_number(db: AsyncSession, now: datetime) -> None:
    at = now.replace(second=0, microsecond=0) - MINUTE
    waits, runs = [number**2 / 10 for number in range(1, 21)], [number / 7 for number in range(1, 21)]
    for number, (waited, ran) in enumerate(zip(waits, runs, strict=True)):
        state = (JobState.SUCCEEDED, JobState.DEAD)[number % 2]
        await create_ended(db, at + number * SECOND, state, waited=waited, ran=ran)
    minute = (await last_hour(db))[-2]
    for found, values in ((minute.waited, waits), (minute.ran, runs)):
        exact = quantiles(values, n=20, method="inclusive")
        assert found is not None
        assert (found.p50, found.p95) == pytest.approx((exact[9], exact[18]), abs=1e-4)


async def test_what_was_not_started_has_not_waited(db: AsyncSession, now: datetime) -> None:
    at = now.replace(second=0, microsecond=0) - MINUTE
    await create(db, state=JobState.CANCELLED, run_after=at - HOUR, finished_at=at)
    # Between two attempts: the start is that of the first.
    await create(db, state=JobState.CANCELLED, run_after=at + HOUR, started_at=at - HOUR, finished_at=at)
    minute = (await last_hour(db))[-2]
    assert (minute.cancelled, minute.waited, minute.ran) == (2, None, None)


async def test_of_many_jobs_some_stand_for_all(
    db: AsyncSession, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await db.connection()).execute(
        text(
            "INSERT INTO job (id, queue, function, args, keywords, state, created_at, run_after, started_at,"
            " finished_at) SELECT 'job' || n, 'q', 'f', '[]', '{}', 'succeeded', now(), at - interval '10 s',"
            " at - n * interval '1 ms', at FROM generate_series(1, 4000) AS n, LATERAL (SELECT date_bin('1 minute',"
            " now(), 'epoch') - interval '1 minute' + n * interval '10001 us' AS at) AS ended"
        )
    )
    exact = (await last_hour(db))[-2]
    monkeypatch.setattr(statistics, "FEW", 3999)
    sampled = (await last_hour(db))[-2]
    assert exact.succeeded == sampled.succeeded == 4000
    for one, other in ((exact.ran, sampled.ran), (exact.waited, sampled.waited)):
        assert one is not None
        assert other is not None
        assert one != other
        assert (other.p50, other.p95) == pytest.approx((one.p50, one.p95), rel=0.05)


# ---- Names ----


async def test_functions_are_named_once_and_in_order(
    db: AsyncSession, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function, state in (("b", JobState.DEAD), ("a", JobState.QUEUED), ("c", JobState.SUCCEEDED)):
        await create(db, 3, function=function, state=state)
    assert await functions_present(db) == ["a", "b", "c"]
    monkeypatch.setattr(statistics, "MOST_NAMES", 2)
    assert await functions_present(db) == ["a", "b"]


async def test_what_runs_is_told_by_worker_the_longest_running_first(db: AsyncSession, now: datetime) -> None:
    for job_id, worker, ago in (("new", "one", 1), ("old", "one", 9), ("alone", "two", 5)):
        await create(db, id=job_id, worker=worker, state=JobState.RUNNING, started_at=now - ago * SECOND)
    await create(db, worker="one", state=JobState.SUCCEEDED, finished_at=now)
    assert await running_by_worker(db) == {"one": ["old", "new"], "two": ["alone"]}


async def test_each_takes_a_statement_or_two(db: AsyncSession) -> None:
    with counted_statements() as statements:
        await count_by_status(db)
        await last_hour(db)
        await functions_present(db)
        await running_by_worker(db)
    assert len(statements) == 5
