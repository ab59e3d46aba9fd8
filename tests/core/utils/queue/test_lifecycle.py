"""What operators do to jobs: they have one start now, and all that died done after all."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import transaction
from app.core.utils import queue
from app.core.worker.options import job
from tests.conftest import second_session
from tests.durable_jobs import Context, becomes, enqueued, job_of, run, sent, working
from tests.helper import counted_statements, until_waited_for

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


async def run_now(job_id: str) -> bool:
    """Asks for it in a transaction of its own."""
    async with transaction() as db:
        return await queue.run_now(db, job_id)


async def replay_all(**options: Any) -> int:
    """The same; says how many."""
    async with transaction() as db:
        return len(await queue.replay_all(db, **options))


async def died(function: str, *hours_ago: int, queue_name: str = queue.DEFAULT_QUEUE) -> list[str]:
    """Ids of dead jobs, which have ended so long ago."""
    ids = []
    for hours in hours_ago:
        ids.append(await enqueued(function, hours, _queue_name=queue_name))
        await run(
            "UPDATE job SET state = 'dead', attempt = 5, runs = 5, error = 'It broke.',"
            " finished_at = now() - make_interval(hours => :hours) WHERE id = :id",
            id=ids[-1],
            hours=hours,
        )
    await queue.pool.delete(queue_name)
    return ids


async def states() -> dict[str, str]:
    return {row.id: row.state for row in await run("SELECT id, state FROM job")}


# ---- Now ----


async def test_a_deferred_job_starts_now(db: AsyncSession) -> None:
    done: list[str] = []

    async def work(ctx: Context, what: str) -> None:
        done.append(what)

    first, second = await enqueued("work", "first", _defer_by=HOUR), await enqueued("work", "second", _defer_by=HOUR)
    async with working(job(work, name="work")):
        assert await run_now(first)
        await becomes(first, "succeeded")
    assert done == ["first"]
    assert (await job_of(second)).status == "deferred"


async def test_it_is_sent_with_the_commit_and_not_without(db: AsyncSession) -> None:
    job_id = await enqueued("work", _defer_by=HOUR)
    due = (await job_of(job_id)).run_after
    async with transaction() as other:
        assert await queue.run_now(other, job_id)
        assert await sent() == {job_id: due}
        await other.rollback()
    assert await sent() == {job_id: due}
    assert (await job_of(job_id)).run_after == due

    assert await run_now(job_id)
    row = await job_of(job_id)
    assert due - row.run_after > HOUR / 2
    assert await sent() == {job_id: row.run_after}


async def test_one_that_waits_for_another_attempt_does_not_begin_anew(db: AsyncSession) -> None:
    tries = []

    async def fail_once(ctx: Context) -> None:
        tries.append(ctx["job_try"])
        if len(tries) == 1:
            raise OSError

    async with working(job(fail_once, name="work", first_retry=3600, longest_retry=3600)):
        job_id = await enqueued("work")

        async def waits(patience: int = 1000) -> None:
            while (row := await job_of(job_id)).state != "queued" or row.runs == 0:
                assert (patience := patience - 1)
                await asyncio.sleep(0.02)

        await waits()
        assert await run_now(job_id)
        row = await becomes(job_id, "succeeded")
    assert (row.attempt, row.runs, tries) == (2, 2, [1, 2])


async def test_no_other_job_is_touched(db: AsyncSession) -> None:
    due = await enqueued("work")
    ids = {state: await enqueued("work", _defer_by=HOUR) for state in ("running", "succeeded", "dead", "cancelled")}
    for state, job_id in ids.items():
        await run("UPDATE job SET state = :state WHERE id = :id", state=state, id=job_id)
    before = (await run("SELECT * FROM job ORDER BY id")).all()
    for job_id in (due, *ids.values(), "unknown", "\x00", ""):
        assert await run_now(job_id) is False
    assert (await run("SELECT * FROM job ORDER BY id")).all() == before


async def test_of_two_who_ask_at_once_one_has_done_it(db: AsyncSession) -> None:
    job_id = await enqueued("work", _defer_by=HOUR)
    assert sorted(await asyncio.gather(*(run_now(job_id) for _ in range(5)))) == [False] * 4 + [True]


async def test_one_that_is_cancelled_meanwhile_stays_so(db: AsyncSession) -> None:
    job_id = await enqueued("work", _defer_by=HOUR)
    async with second_session() as other:
        assert await queue.request_cancel(other, job_id)
        asking = asyncio.create_task(run_now(job_id))
        await until_waited_for(other)
    assert await asking is False
    assert (await job_of(job_id)).state == "cancelled"


# ---- All that died ----


async def test_dead_jobs_are_done_after_all_the_oldest_first(db: AsyncSession) -> None:
    done: list[tuple[int, int]] = []

    async def work(ctx: Context, number: int) -> None:
        done.append((number, ctx["job_try"]))

    ids = await died("work", 2, 5, 1, 4, 3)
    assert await replay_all() == 5
    order = [row.id for row in await run("SELECT id FROM job ORDER BY run_after, id")]
    assert order == [ids[place] for place in (1, 3, 4, 0, 2)]
    async with working(job(work, name="work"), max_jobs=1):
        for job_id in ids:
            await becomes(job_id, "succeeded")
    assert done == [(5, 1), (4, 1), (3, 1), (2, 1), (1, 1)]


async def test_it_is_one_statement_and_all_are_sent_with_the_commit(db: AsyncSession) -> None:
    ids = await died("work", *range(1, 21))
    long_ids = await died("work", 30, queue_name=queue.LONG_QUEUE)
    async with transaction() as other:
        with counted_statements() as statements:
            assert set(await queue.replay_all(other)) == {*ids, *long_ids}
        assert len(statements) == 1
        assert await sent() == await sent(queue.LONG_QUEUE) == {}
        await other.rollback()
    assert await sent() == {}
    assert set((await states()).values()) == {"dead"}

    assert await replay_all() == 21
    assert await sent() == {job_id: (await job_of(job_id)).run_after for job_id in ids}
    assert (await sent(queue.LONG_QUEUE)).keys() == set(long_ids)


async def test_only_the_oldest_when_there_are_more_than_asked_for(db: AsyncSession) -> None:
    ids = await died("work", 1, 2, 3)
    assert await replay_all(most=2) == 2
    assert await states() == {ids[0]: "dead", ids[1]: "queued", ids[2]: "queued"}
    assert await replay_all(most=2) == 1
    assert await replay_all() == 0


async def test_only_those_of_one_function(db: AsyncSession) -> None:
    (mine,), (other,) = await died("work", 1), await died("play", 2)
    for unknown in ("wor", "WORK", "", "work\x00", "'; DELETE FROM job --"):
        assert await replay_all(function=unknown) == 0
    assert await replay_all(function="work") == 1
    assert await states() == {mine: "queued", other: "dead"}


async def test_only_what_is_dead_and_can_still_be_seen(db: AsyncSession) -> None:
    ids = await died("work", 1, 2, 3, 4)
    for state, job_id in zip(("succeeded", "cancelled"), ids, strict=False):
        await run("UPDATE job SET state = :state WHERE id = :id", state=state, id=job_id)
    await run("UPDATE job SET expires_at = now() - interval '1 second' WHERE id = :id", id=ids[2])
    waiting = await enqueued("work", _defer_by=HOUR)
    assert await replay_all() == 1
    assert await states() == {
        ids[0]: "succeeded",
        ids[1]: "cancelled",
        ids[2]: "dead",
        ids[3]: "queued",
        waiting: "queued",
    }
    assert (await job_of(waiting)).status == "deferred"


async def test_several_who_replay_at_once_replay_each_job_once(db: AsyncSession) -> None:
    ids = await died("work", *range(1, 11))
    counts = await asyncio.gather(*(replay_all(most=4) for _ in range(4)))
    assert sum(counts) == list((await states()).values()).count("queued")
    await replay_all()
    rows = await run("SELECT id, attempt, run_after FROM job WHERE state = 'queued'")
    moments: dict[str, datetime] = {row.id: row.run_after for row in rows if row.attempt == 0}
    assert moments.keys() == set(ids)
    assert await sent() == moments


async def test_what_somebody_else_replays_is_left_to_them(db: AsyncSession) -> None:
    ids = await died("work", 2, 1)
    async with second_session() as other:
        assert await queue.replay(other, ids[0])
        assert await replay_all() == 1
        await other.rollback()
    assert await states() == {ids[0]: "dead", ids[1]: "queued"}
