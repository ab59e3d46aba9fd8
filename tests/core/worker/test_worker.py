"""Workers in this process: what they take, keep, give back, and outlive."""

import asyncio
import json
import os
import pickle
import socket
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import arq.worker
import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import get_settings
from app.core.db.database import reading, transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.utils import queue
from app.core.utils.queue import workers
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.transport import Transport
from app.core.utils.queue.workers import TOLD, WORKERS
from app.core.utils.redis_link import Link
from app.core.worker import intake as intake_module
from app.core.worker import upkeep as upkeep_module
from app.core.worker import worker as worker_module
from app.core.worker.claims import claim
from app.core.worker.options import job
from app.core.worker.worker import DurableWorker
from app.crud.crud_job_statistics import running_by_worker
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
    until,
    working,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)


# ---- Work ----


async def test_a_job_is_done_soon_after_its_transaction(db: AsyncSession) -> None:
    await create_done()
    async with working(job(do)):
        async with transaction() as caller:
            enqueued_job = await queue.enqueue(caller, "do", "it")
        row = await becomes(enqueued_job.job_id, "succeeded")
    assert await all_done() == ["it"]
    assert (row.attempt, row.runs, row.error, row.lease_until) == (1, 1, None, None)
    assert row.started_at is not None
    assert row.finished_at is not None
    assert row.created_at <= row.started_at <= row.finished_at


async def test_two_workers_do_each_of_many_jobs_once(db: AsyncSession) -> None:
    await create_done()
    running: set[str] = set()
    twice = []

    async def count(ctx: Context, what: str) -> None:
        if ctx["job_id"] in running:
            twice.append(what)
        running.add(ctx["job_id"])
        await do(ctx, what)

    async def are_done() -> bool:
        return not (await run("SELECT 1 FROM job WHERE state <> 'succeeded' LIMIT 1")).all()

    async with transaction() as caller:
        jobs = [await queue.enqueue(caller, "count", f"{number:03}") for number in range(300)]
    function = job(count, name="count")
    async with working(function, max_jobs=4), working(function, max_jobs=4):
        # What comes twice is claimed once.
        await current_transport().send_all(queue.DEFAULT_QUEUE, {it.job_id: datetime.now(UTC) for it in jobs})
        await until(are_done)
    assert await all_done() == [f"{number:03}" for number in range(300)]
    assert twice == []
    assert (await run("SELECT max(runs) FROM job")).scalar() == 1


async def test_a_worker_runs_no_more_jobs_at_once_than_it_may(db: AsyncSession) -> None:
    running, most = 0, 0

    async def count(ctx: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    ids = [await enqueued("count") for _ in range(12)]
    async with working(job(count, name="count"), max_jobs=3):
        for job_id in ids:
            await becomes(job_id, "succeeded")
    assert most == 3


async def test_a_deferred_job_waits_and_then_is_done(db: AsyncSession) -> None:
    await create_done()
    async with working(job(do)):
        far = await enqueued("do", "far", _defer_by=3600)
        near = await enqueued("do", "near", _defer_by=0.3)
        row = await becomes(near, "succeeded")
    assert row.started_at is not None
    assert row.started_at >= row.run_after
    assert (await job_of(far)).state == "queued"
    assert await all_done() == ["near"]


async def test_a_worker_leaves_other_queues_alone(db: AsyncSession) -> None:
    await create_done()
    long = await enqueued("do", "long", _queue_name=queue.LONG_QUEUE)
    async with working(job(do)):
        await becomes(await enqueued("do", "short"), "succeeded")
        assert (await job_of(long)).state == "queued"
    async with working(job(do), queue_name=queue.LONG_QUEUE):
        await becomes(long, "succeeded")


async def test_a_worker_that_starts_finds_what_is_only_in_the_table(db: AsyncSession) -> None:
    await create_done()
    job_id = await enqueued("do", "it")
    await queue.pool.flushdb()
    async with working(job(do)):
        await becomes(job_id, "succeeded")


async def test_the_command_arq_runs_this_worker() -> None:
    command = vars(arq.worker)["run_worker"].__globals__["Worker"]
    assert command is DurableWorker


# ---- The end of a worker ----


async def test_a_worker_that_is_closed_puts_its_jobs_back_without_counting_the_attempt(db: AsyncSession) -> None:
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function):
        await happens(held.begun)
        row = await job_of(job_id)
        assert (row.state, row.attempt, row.runs) == ("running", 1, 1)
    row = await job_of(job_id)
    assert (row.state, row.attempt, row.runs, row.error, row.lease_until) == ("queued", 0, 1, None, None)
    assert job_id in await sent()
    assert await all_done() == []

    held.may_end.set()
    async with working(held.function, max_tries=1):
        row = await becomes(job_id, "succeeded")
    assert (row.attempt, row.runs, held.starts) == (1, 2, 2)
    assert await all_done() == ["held"]


async def test_a_worker_that_is_closed_in_the_middle_of_a_statement_puts_the_job_back_as_well(
    db: AsyncSession,
) -> None:
    begun = asyncio.Event()

    async def sleep(ctx: Context) -> None:
        connection = await ctx["db"].connection()
        begun.set()
        await connection.execute(text("SELECT pg_sleep(60)"))

    job_id = await enqueued("sleep")
    async with working(job(sleep, name="sleep"), max_tries=1):
        await happens(begun)
        await asyncio.sleep(0.02)  # It is on its way.
    row = await job_of(job_id)
    assert (row.state, row.attempt, row.runs, row.error) == ("queued", 0, 1, None)


async def test_closing_ends_all_that_accompanies_the_jobs_at_once(db: AsyncSession) -> None:
    before = asyncio.all_tasks()
    for pause in range(20):
        async with working(job(do)) as worker:
            await asyncio.sleep(pause / 1000)  # In the middle of whatever it does.
            began = monotonic()
        assert monotonic() - began < worker_module.LAST_SECONDS / 2
        assert not [task for task in asyncio.all_tasks() - before if task.get_name() in {"leases", "upkeep", "cron"}]
        assert worker.attempts == {}


async def test_a_worker_that_is_closed_in_the_middle_of_a_claim_gives_back_what_it_gets(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        jobs = await claim(*args)
        if jobs:
            claimed.set()
            await may_go_on.wait()
        return jobs

    monkeypatch.setattr(intake_module, "claim", slow)
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function):
        await happens(claimed)
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
    row = await job_of(job_id)
    assert (row.state, row.attempt, held.starts) == ("queued", 0, 0)
    assert job_id in await sent()


async def test_a_worker_that_is_stopped_while_the_database_is_away_just_ends(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, may_go_on = asyncio.Event(), asyncio.Event()

    async def unavailable(*_: Any) -> Any:
        looking.set()
        await may_go_on.wait()
        raise DatabaseUnavailable

    monkeypatch.setattr(intake_module, "claim", unavailable)
    await enqueued("do", "it")
    async with working(job(do)):  # `working` fails when it ends with anything but its cancellation.
        await happens(looking)
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)


async def test_startup_and_shutdown_are_run_once_with_everything_open(db: AsyncSession) -> None:
    seen = []

    async def startup(ctx: Context) -> None:
        ctx["mine"] = 7
        seen.append(("startup", await ctx["redis"].ping()))

    async def shutdown(ctx: Context) -> None:
        async with reading():
            seen.append(("shutdown", await ctx["redis"].ping()))

    async def look(ctx: Context) -> int:
        return int(ctx["mine"])

    ids = [await enqueued("look") for _ in range(3)]
    async with working(job(look, name="look"), on_startup=startup, on_shutdown=shutdown):
        assert [(await becomes(job_id, "succeeded")).result for job_id in ids] == [7, 7, 7]
    assert seen == [("startup", True), ("shutdown", True)]


# ---- Leases ----


async def test_what_a_worker_did_without_having_the_job_any_more_is_not_committed(db: AsyncSession) -> None:
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function) as worker:
        await happens(held.begun)
        await run("UPDATE job SET runs = runs + 1, worker = 'another' WHERE id = :id", id=job_id)
        held.may_end.set()

        async def is_idle() -> bool:
            return not worker.attempts

        await until(is_idle)
    row = await job_of(job_id)
    assert (row.state, row.runs, row.worker, row.result) == ("running", 2, "another", None)
    assert await all_done() == []


async def test_a_job_that_was_taken_away_is_stopped(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RENEWALS", 1000)
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function) as worker:
        await happens(held.begun)
        await run("DELETE FROM job WHERE id = :id", id=job_id)

        async def is_idle() -> bool:
            return not worker.attempts

        await until(is_idle)  # Nobody has let it go on.
    assert await all_done() == []


async def test_a_lease_is_renewed_while_its_job_runs(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RENEWALS", 1000)
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function):
        await happens(held.begun)
        first = (await job_of(job_id)).lease_until
        assert first is not None

        async def is_later() -> bool:
            lease = (await job_of(job_id)).lease_until
            return lease is not None and lease > first

        await until(is_later)
        held.may_end.set()
        await becomes(job_id, "succeeded")


# ---- Cancelling ----


async def test_a_running_job_is_cancelled_within_seconds_and_rolled_back(db: AsyncSession) -> None:
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    async with working(held.function):
        await happens(held.begun)
        assert await queue.request_cancel(db, job_id)
        await db.commit()
        row = await becomes(job_id, "cancelled")
    assert (row.error, row.lease_until, row.runs) == (None, None, 1)
    assert row.finished_at is not None
    assert await all_done() == []
    assert not await queue.request_cancel(db, job_id)


async def test_a_cancel_that_comes_when_the_attempt_fails_is_no_retry(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        await run("UPDATE job SET cancel_requested = true WHERE id = :id", id=ctx["job_id"])
        raise ValueError("as it was cancelled")

    job_id = await enqueued("fail")
    async with working(job(fail, name="fail", first_retry=0)):
        row = await becomes(job_id, "cancelled")
    assert (row.attempt, row.error) == (1, "ValueError: as it was cancelled")
    assert row.finished_at is not None


async def test_a_waiting_job_that_is_cancelled_is_never_done(db: AsyncSession) -> None:
    await create_done()
    job_id = await enqueued("do", "it")
    await queue.request_cancel(db, job_id)
    await db.commit()
    async with working(job(do)):
        await becomes(await enqueued("do", "after"), "succeeded")
    assert (await job_of(job_id)).state == "cancelled"
    assert await all_done() == ["after"]


# ---- Functions that are not known here ----


async def test_a_job_of_an_unknown_function_is_left_for_others(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "UNKNOWN_PAUSE", timedelta(milliseconds=20))
    await create_done()

    async def other(ctx: Context) -> None:
        pass

    job_id = await enqueued("do", "it")
    with capture_logs() as lines:
        async with working(job(other, name="other")):
            await becomes(await enqueued("other"), "succeeded")
            assert (await job_of(job_id)).state == "queued"

            async def has_complained() -> bool:
                return any(line["event"] == "function not known here" for line in lines)

            await until(has_complained)
            async with working(job(do)):
                await becomes(job_id, "succeeded")
    assert [line["function"] for line in lines if line["event"] == "function not known here"] == ["do"]
    assert await all_done() == ["it"]


async def test_a_job_whose_function_nobody_knows_for_long_is_dead(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "UNKNOWN_PAUSE", timedelta(milliseconds=20))
    monkeypatch.setattr(upkeep_module, "NOBODY_KNOWS_SECONDS", 0.2)
    monkeypatch.setenv("JOB_UNKNOWN_HOURS", "0.00005")
    get_settings.cache_clear()
    job_id = await enqueued("nobody_knows")
    async with working(job(do)):
        row = await becomes(job_id, "dead")
    assert row.error == "No worker knows its function."
    assert (row.attempt, row.runs) == (0, 0)


# ---- Outages ----


async def test_while_redis_is_away_jobs_come_from_the_table(db: AsyncSession) -> None:
    await create_done()
    link = Link(f"redis://127.0.0.1:{free_port()}/0", "away")
    await link.open()
    try:
        first = await enqueued("do", "before")
        async with working(job(do), transport=Transport(link)):
            await becomes(first, "succeeded")
            await becomes(await enqueued("do", "after"), "succeeded")
            assert not link.up
    finally:
        await link.close()
    assert await all_done() == ["after", "before"]


async def test_a_worker_outlives_an_outage_of_the_database_and_complains_once(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "PAUSE_WITHOUT", 0.01)
    failures = 0

    async def failing(*args: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise DatabaseUnavailable
        return await claim(*args)

    monkeypatch.setattr(intake_module, "claim", failing)
    await create_done()
    job_id = await enqueued("do", "it")
    with capture_logs() as lines:
        async with working(job(do)):
            await becomes(job_id, "succeeded")
    assert failures >= 4
    complaints = [line for line in lines if line["event"] == "worker is held up" and line["by"] == "jobs"]
    assert len(complaints) == 1


@pytest.mark.parametrize("name", ["renew", "to_cancel"])
async def test_the_care_for_leases_outlives_an_outage_as_well(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(worker_module, "RENEWALS", 1000)
    original, failures = getattr(worker_module, name), 0

    async def failing(*args: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise DatabaseUnavailable
        return await original(*args)

    monkeypatch.setattr(worker_module, name, failing)
    await create_done()
    held = Holding()
    job_id = await enqueued("hold")
    with capture_logs() as lines:
        async with working(held.function):
            await happens(held.begun)

            async def has_recovered() -> bool:
                return failures >= 4

            await until(has_recovered)
            held.may_end.set()
            await becomes(job_id, "succeeded")
    assert [line["by"] for line in lines if line["event"] == "worker is held up"] == ["leases"]


JUNK = [b"unknown", b"", b"\x00", b"a\x00b", b"\xff\xfe\x00\x80", pickle.dumps({"f": "do"}), b"x" * 5000, b"'; DROP"]


async def test_junk_in_the_queue_is_dropped_and_the_worker_goes_on(db: AsyncSession) -> None:
    await create_done()
    evil = pickle.dumps({"t": 1, "f": "do", "a": ("evil",), "k": {}, "et": 1})
    await queue.pool.set("arq:job:unknown", evil)
    await queue.pool.zadd(queue.DEFAULT_QUEUE, dict.fromkeys(JUNK, 1))
    with capture_logs() as lines:
        async with working(job(do)):
            await becomes(await enqueued("do", "it"), "succeeded")

            async def is_empty() -> bool:
                return not await queue.pool.zcard(queue.DEFAULT_QUEUE)

            await until(is_empty)
            await becomes(await enqueued("do", "more"), "succeeded")
    assert await all_done() == ["it", "more"]
    assert not [line for line in lines if line["event"] == "worker is held up"]


# ---- Health ----


async def test_a_workers_health_keys_are_there_while_it_runs_and_its_own_goes(db: AsyncSession) -> None:
    shared = f"{queue.DEFAULT_QUEUE}:health-check"
    async with working(job(do), health_check_interval=30) as worker:
        own = f"{shared}:{worker.name}"

        async def are_there() -> bool:
            return bool(await queue.pool.exists(own, shared) == 2)

        await until(are_there)
        told = json.loads(await queue.pool.get(own))
        assert (told["running"], told["queue"]) == (0, queue.DEFAULT_QUEUE)
        assert json.loads(await queue.pool.get(shared))["worker"] == worker.name
        for key in own, shared:
            assert 0 < await queue.pool.pttl(key) <= 31_000
    assert not await queue.pool.exists(own)
    assert not await queue.pool.exists(own, WORKERS, TOLD)


async def test_what_workers_say_of_themselves_is_one_question(db: AsyncSession) -> None:
    link = current_transport().link
    holding = Holding()
    assert await queue.living_workers(link) == []
    await queue.pool.mset({f"arq:queue:health-check:junk{number}": 1 for number in range(1000)})
    begun_at = datetime.now(UTC) - timedelta(seconds=1)  # It is said to the second.
    async with (
        working(holding.function, health_check_interval=3, max_jobs=7) as one,
        working(job(do), holding.function, queue_name="other", health_check_interval=30) as other,
    ):
        await create_done()
        job_id = await enqueued("hold")
        await happens(holding.begun)

        async def have_said_so() -> bool:
            return [worker.running for worker in await queue.living_workers(link)] == [1, 0]

        await until(have_said_so)
        seen, seen_other = await queue.living_workers(link)
        assert (seen.name, seen.queue, seen.max_jobs, seen.functions) == (one.name, "arq:queue", 7, ("hold",))
        assert (seen_other.name, seen_other.queue, seen_other.functions) == (other.name, "other", ("do", "hold"))
        assert (seen.host, seen.pid) == (socket.gethostname(), os.getpid())
        assert seen.started_at is not None
        assert begun_at <= seen.started_at <= datetime.now(UTC)
        assert 0 <= seen.heard_seconds < 4
        assert not seen.late
        async with reading() as other_db:
            assert await running_by_worker(other_db) == {one.name: [job_id]}
        holding.may_end.set()
        await becomes(job_id, "succeeded")
    assert await queue.living_workers(link) == []


async def test_a_worker_that_was_killed_is_told_of_for_a_while(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = current_transport().link
    told = {"running": 2, "queue": "q", "started_at": "2026-11-25T12:00:00+00:00", "max_jobs": 3, "functions": ["f"]}
    await workers.beat(link, "killed", "q:health-check", 0.1 - workers.GRACE, told)
    await asyncio.sleep(0.005)  # Not in the same millisecond.
    await workers.beat(link, "alive", "q:health-check", 60, told)

    async def is_late() -> bool:
        return [worker.late for worker in await queue.living_workers(link)] == [False, True]

    await until(is_late)
    (alive, killed) = await queue.living_workers(link)
    assert (alive.name, killed.name, killed.running, killed.max_jobs) == ("alive", "killed", 2, 3)
    assert alive.heard_seconds < killed.heard_seconds
    assert killed.heard_seconds >= 0.1
    assert await queue.pool.exists("q:health-check:alive", "q:health-check:killed", "q:health-check") == 2

    monkeypatch.setattr(workers, "REMEMBERED_MS", 0)
    assert [worker.name for worker in await queue.living_workers(link)] == ["alive"]
    assert await queue.pool.zcard(WORKERS) == 2
    await workers.beat(link, "alive", "q:health-check", 60, told)
    assert await link.run(("ZRANGE", WORKERS, 0, -1), ("HKEYS", TOLD)) == [[b"alive"]] * 2
    for key in WORKERS, TOLD:
        assert 0 < await queue.pool.pttl(key) <= 700_000


async def test_what_no_worker_has_said_is_no_error(db: AsyncSession) -> None:
    link = current_transport().link
    for name in (b"\xff", "empty", "list", "junk", "pickle"):
        await link.send("ZADD", WORKERS, 2_000_000_000_000, name)
    odd = json.dumps({"queue": 1, "running": "x", "functions": "x", "started_at": "x", "pid": [], "late": {}})
    await link.send("HSET", TOLD, "list", "[1]", "junk", odd, "pickle", pickle.dumps(1))
    seen = await queue.living_workers(link)
    assert sorted(worker.name for worker in seen) == ["empty", "junk", "list", "pickle", "\ufffd"]
    for worker in seen:
        assert (worker.running, worker.max_jobs, worker.functions, worker.started_at, worker.pid) == (
            0,
            None,
            (),
            None,
            None,
        )


async def test_a_worker_that_cannot_take_jobs_becomes_late(db: AsyncSession) -> None:
    link = current_transport().link
    async with working(job(do), health_check_interval=0.3) as worker:

        async def is_there() -> bool:
            return bool(await queue.living_workers(link))

        await until(is_there)
        worker._intake.take = _in_vain  # type: ignore[method-assign]

        async def is_late() -> bool:
            return [seen.late for seen in await queue.living_workers(link)] == [True]

        await until(is_late)


async def _in_vain(*_: object, **__: object) -> Any:
    raise DatabaseUnavailable
