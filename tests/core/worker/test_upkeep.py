"""What every worker does beside its jobs: nothing that is committed is forgotten."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.db.database import reading, transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.utils import queue
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import Link
from app.core.worker import upkeep as upkeep_module
from app.core.worker import worker as worker_module
from app.core.worker.options import job
from app.core.worker.upkeep import ONE_RECONCILER, Upkeep
from scripts.embedded import free_port
from tests.durable_jobs import (
    Context,
    Holding,
    all_done,
    becomes,
    create_done,
    do,
    enqueued,
    happens,
    job_of,
    run,
    sent,
    working,
)
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio


def upkeep(transport: Transport | None = None, max_tries: int = 5, **functions: Any) -> Upkeep:
    """What a worker with these functions does."""
    return Upkeep(transport or current_transport(), reading, queue.DEFAULT_QUEUE, functions, max_tries)


async def all_of(ours: Upkeep) -> None:
    """One round of each kind."""
    await ours.round()
    await ours.reconcile()


async def settled(**functions: Any) -> Upkeep:
    """One whose first look at everything is over, and whose next turn is not near."""
    ours = upkeep(**functions)
    for _ in range(2):
        await all_of(ours)
    return ours


async def forget(*ids: str) -> None:
    """Redis/Valkey loses these."""
    await queue.pool.zrem(queue.DEFAULT_QUEUE, *ids)


async def run_by_a_lost_worker(**values: Any) -> str:
    """A job whose worker was not heard of for a lease."""
    job_id = await enqueued("do", "it")
    await forget(job_id)
    await run(
        "UPDATE job SET state = 'running', attempt = 1, runs = 1, worker = 'gone', started_at = now() - interval '1h',"
        " lease_until = clock_timestamp() - interval '1 millisecond' WHERE id = :id",
        id=job_id,
    )
    for name, value in values.items():
        await run(f"UPDATE job SET {name} = :value WHERE id = :id", value=value, id=job_id)  # noqa: S608
    return job_id


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


# ---- The drain ----


async def test_what_was_committed_and_not_sent_is_sent_by_a_worker(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await settled()
    ids = {await enqueued("do", "it"), await enqueued("do", "more", _queue_name="other")}
    await queue.pool.zremrangebyrank("other", 0, -1)
    await queue.pool.zremrangebyrank(queue.DEFAULT_QUEUE, 0, -1)
    await all_of(ours)
    assert await sent() == await sent("other") == {}  # Whoever enqueued it may be about to.
    monkeypatch.setattr(upkeep_module, "SENDER_SECONDS", 0.0)
    await all_of(ours)
    assert set(await sent()) | set(await sent("other")) == ids
    assert [(await job_of(job_id)).sent_at is not None for job_id in ids] == [True, True]


async def test_what_is_sent_once_by_the_drain_is_not_sent_again_and_again(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "SENDER_SECONDS", 0.0)
    ours = await settled()
    job_id = await enqueued("do", "it")
    await all_of(ours)
    await forget(job_id)
    await all_of(ours)
    assert await sent() == {}


async def test_the_drain_sends_more_than_a_part(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "SENDER_SECONDS", 0.0)
    monkeypatch.setattr(upkeep_module, "MOST_AT_ONCE", 3)
    ours = await settled()
    async with transaction() as caller:
        ids = {(await queue.enqueue(caller, "do", "it")).job_id for _ in range(10)}
    await forget(*ids)
    await all_of(ours)
    assert set(await sent()) == ids


async def test_what_is_deferred_is_sent_when_it_is_due(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "SENDER_SECONDS", 0.0)
    ours = await settled()
    await forget(await enqueued("do", "it", _defer_by=60))
    await all_of(ours)
    assert await sent() == {}


async def test_a_job_that_was_enqueued_while_redis_was_away_is_done_soon_after(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "SENDER_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    await create_done()
    async with working(job(do)):
        await becomes(await enqueued("do", "before"), "succeeded")
        with monkeypatch.context() as patch:
            patch.setattr("app.core.utils.queue.sending._transports", [])  # Nothing is sent.
            job_id = await enqueued("do", "it")
        await becomes(job_id, "succeeded")
    assert await all_done() == ["before", "it"]


# ---- The reconciler ----


async def test_what_redis_has_lost_is_sent_again_after_a_flush(db: AsyncSession) -> None:
    ours = await settled()
    before = counted("slipway_jobs_resent_total")
    due, later = await enqueued("do", "it"), await enqueued("do", "it", _defer_by=60)
    await queue.pool.flushdb()
    await all_of(ours)
    assert set(await sent()) == {due}
    assert (await job_of(later)).state == "queued"  # The drain sends it when it is due.
    assert counted("slipway_jobs_resent_total") - before == 1


async def test_what_redis_has_lost_is_sent_again_in_time(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "RECONCILE_SECONDS", 0.05)
    ours = await settled()
    lost, there = await enqueued("do", "it"), await enqueued("do", "it")
    await forget(lost)
    async with asyncio.timeout(20):
        while set(await sent()) != {lost, there}:
            await all_of(ours)
            await asyncio.sleep(0.01)


async def test_all_of_it_is_compared_page_by_page(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "PAGE", 4)
    async with transaction() as caller:
        ids = [(await queue.enqueue(caller, "do", "it")).job_id for _ in range(21)]
    await run("UPDATE job SET run_after = date_trunc('second', run_after) - interval '1 second'")  # Many alike.
    lost = set(ids[::3]) | {ids[-1]}
    await forget(*lost)
    with counted_statements() as statements:
        await all_of(upkeep())
    assert set(await sent()) == set(ids)
    assert len([one for one in statements if "(run_after, id) >" in one]) == 6


@pytest.mark.parametrize("number", [0, 4, 8])
async def test_a_last_page_that_is_full_is_not_the_end_of_it(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(upkeep_module, "PAGE", 4)
    ids = {await enqueued("do", "it") for _ in range(number)}
    await queue.pool.flushdb()
    await all_of(upkeep())
    assert set(await sent()) == ids


async def test_one_worker_compares_at_a_time(db: AsyncSession) -> None:
    await enqueued("do", "it")
    await queue.pool.flushdb()
    async with transaction() as other:
        connection = await other.connection()
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ONE_RECONCILER}, hashtext('arq:queue'))")
        with counted_statements() as statements:
            await all_of(upkeep())
    assert not [one for one in statements if "(run_after, id) >" in one]


async def test_a_round_in_which_all_is_well_costs_one_statement(db: AsyncSession) -> None:
    ours = await settled()
    await enqueued("do", "it")
    with counted_statements() as statements:
        await all_of(ours)
    assert len(statements) == 1


# ---- Workers that are lost ----


async def test_a_job_of_a_lost_worker_is_done_again(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    await create_done()
    job_id = await run_by_a_lost_worker()
    before = counted("slipway_job_leases_expired_total")
    with capture_logs() as lines:
        async with working(job(do)):
            row = await becomes(job_id, "succeeded")
    assert (row.attempt, row.runs) == (2, 2)
    assert await all_done() == ["it"]
    assert counted("slipway_job_leases_expired_total") - before == 1
    (line,) = [line for line in lines if line["event"] == "worker lost"]
    assert (line["job_id"], line["worker"], line["attempt"]) == (job_id, "gone", 1)


async def test_a_job_whose_lease_has_not_ended_is_left_to_its_worker(db: AsyncSession) -> None:
    job_id = await run_by_a_lost_worker()
    await run("UPDATE job SET lease_until = clock_timestamp() + interval '30 seconds'")
    await all_of(upkeep())
    assert (await job_of(job_id)).state == "running"


async def test_a_job_that_kills_its_second_worker_waits_before_the_next(db: AsyncSession) -> None:
    job_id = await run_by_a_lost_worker(attempt=3)
    await all_of(upkeep(do=job(do, first_retry=1000, longest_retry=1000)))
    row = await job_of(job_id)
    assert (row.state, row.attempt, row.error) == ("queued", 3, "Its worker was lost, in attempt 3.")
    assert (row.run_after - row.created_at).total_seconds() > 400
    assert set(await sent()) == {job_id}


@pytest.mark.parametrize(("attempt", "own"), [(5, {}), (2, {"max_tries": 2}), (9, {})])
async def test_a_job_that_has_killed_enough_workers_is_dead(
    db: AsyncSession, attempt: int, own: dict[str, Any]
) -> None:
    job_id = await run_by_a_lost_worker(attempt=attempt)
    await all_of(upkeep(do=job(do, **own)))
    row = await job_of(job_id)
    assert (row.state, row.attempt) == ("dead", attempt)
    assert row.error == f"Its worker was lost, in attempt {attempt}."
    assert row.finished_at is not None
    assert await sent() == {}


async def test_a_job_of_a_lost_worker_is_left_to_those_who_know_its_function_but_not_for_ever(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await run_by_a_lost_worker()
    await all_of(upkeep())
    assert (await job_of(job_id)).state == "running"

    monkeypatch.setattr(upkeep_module, "NOBODY_KNOWS_SECONDS", 0)
    await all_of(upkeep())
    assert (await job_of(job_id)).state == "queued"


async def test_a_job_of_another_queue_is_left_to_its_workers(db: AsyncSession) -> None:
    job_id = await run_by_a_lost_worker(attempt=9)
    await run("UPDATE job SET queue = 'arq:queue:long'")
    await all_of(upkeep(do=job(do)))
    assert (await job_of(job_id)).state == "running"


async def test_a_job_of_a_lost_worker_that_was_to_be_cancelled_is_cancelled(db: AsyncSession) -> None:
    job_id = await run_by_a_lost_worker(cancel_requested=True)
    await all_of(upkeep(do=job(do)))
    row = await job_of(job_id)
    assert row.state == "cancelled"
    assert row.finished_at is not None
    assert await sent() == {}


async def test_of_two_workers_one_takes_the_jobs_of_a_lost_one(db: AsyncSession) -> None:
    ids = [await run_by_a_lost_worker() for _ in range(5)]
    with capture_logs() as lines:
        await asyncio.gather(*(upkeep(do=job(do)).round() for _ in range(3)))
    assert sorted(line["job_id"] for line in lines if line["event"] == "worker lost") == sorted(ids)
    assert {(await job_of(job_id)).state for job_id in ids} == {"queued"}


async def test_a_worker_that_comes_back_late_writes_over_nothing(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    await create_done()
    held = Holding()
    job_id = await enqueued("hold", "late")

    async def hold(ctx: Context, what: str) -> str:
        await do(ctx, f"another's {what}")
        return "another's"

    async with working(held.function, max_jobs=1) as first:
        await happens(held.begun)
        first.allow_pick_jobs = False
        async with working(job(hold, name="hold")):
            async with asyncio.timeout(20):
                while (await job_of(job_id)).runs == 1:  # The first one may have renewed it in between.
                    await run("UPDATE job SET lease_until = clock_timestamp() - interval '1 second' WHERE runs = 1")
                    await asyncio.sleep(0.01)
            row = await becomes(job_id, "succeeded")
            held.may_end.set()
    assert (row.result, (await job_of(job_id)).result, row.runs) == ("another's", "another's", 2)
    assert await all_done() == ["another's late"]


# ---- Outages ----


async def test_while_redis_is_away_lost_workers_are_looked_for_all_the_same(db: AsyncSession) -> None:
    job_id = await run_by_a_lost_worker()
    link = Link(f"redis://127.0.0.1:{free_port()}/0", "away")
    await link.open()
    try:
        await all_of(upkeep(Transport(link), do=job(do)))
    finally:
        await link.close()
    assert (await job_of(job_id)).state == "queued"


async def test_when_redis_comes_back_everything_is_compared(db: AsyncSession) -> None:
    ours = await settled()
    job_id = await enqueued("do", "it")
    await forget(job_id)
    await all_of(ours)
    assert await sent() == {}
    ours._on_change(False)
    ours._on_change(True)
    await all_of(ours)
    assert set(await sent()) == {job_id}


async def test_rounds_outlive_an_outage_of_the_database_and_complain_once(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.02)
    await create_done()
    original, failures = Upkeep.round, 0

    async def failing(self: Upkeep) -> None:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise DatabaseUnavailable
        await original(self)

    monkeypatch.setattr(Upkeep, "round", failing)
    job_id = await run_by_a_lost_worker()
    with capture_logs() as lines:
        async with working(job(do)):
            await becomes(job_id, "succeeded")
    assert [line["by"] for line in lines if line["event"] == "worker is held up"] == ["upkeep"]


async def test_a_round_knows_the_databases_time(db: AsyncSession) -> None:
    ours = await settled()
    there = (await run("SELECT clock_timestamp()")).scalar()
    assert abs((ours.now() - there).total_seconds()) < 10
