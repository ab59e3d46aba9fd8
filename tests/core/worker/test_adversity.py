"""What goes wrong around a worker, each in a way that has once cost a job its lease, its attempts or its effect."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.database import reader_of, transaction
from app.core.db.engine import DatabaseUnavailable, create_engine
from app.core.exceptions.http_exceptions import Forbidden
from app.core.utils import queue
from app.core.utils.queue.sending import current_transport
from app.core.worker import attempt as attempt_module
from app.core.worker import claims as claims_module
from app.core.worker import intake as intake_module
from app.core.worker import worker as worker_module
from app.core.worker.claims import Claimed, claim
from app.core.worker.opened import Opened, OwnSession
from app.core.worker.options import job
from app.core.worker.worker import DurableWorker
from scripts.embedded import Valkey
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
    until,
    working,
)
from tests.helper import create_user, until_waited_for

pytestmark = pytest.mark.anyio

SHORT_LEASE = 1.5  # seconds


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    monkeypatch.setattr(worker_module, "PAUSE_WITHOUT", 0.05)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (claims_module, worker_module):
        monkeypatch.setattr(module, "LEASE", SHORT_LEASE)


@asynccontextmanager
async def own_connections(settings: Settings) -> AsyncIterator[OwnSession]:
    engine = create_engine(settings, pool_size=2)
    try:
        yield reader_of(engine)
    finally:
        await engine.dispose()


@pytest.mark.parametrize("fault", [("CONFIG", "SET", "maxmemory", "1mb"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_jobs_go_on_while_redis_is_there_and_refuses(
    db: AsyncSession, valkey: Valkey, fault: tuple[str, ...]
) -> None:
    """It is full, or has become a replica: the link is up, and nothing gets through."""
    await create_done()
    async with working(job(do)):
        await becomes(await enqueued("do", "before"), "succeeded")
        with Redis(host="127.0.0.1", port=valkey.port) as client:
            client.execute_command(*fault)
            try:
                await becomes(await enqueued("do", "meanwhile"), "succeeded")
            finally:
                client.replicaof("NO", "ONE")
                client.config_set("maxmemory", 0)
        await becomes(await enqueued("do", "after"), "succeeded")
    assert await all_done() == ["after", "before", "meanwhile"]


async def test_a_locked_row_costs_no_other_job_its_lease(db: AsyncSession, short_lease: None) -> None:
    await create_done()
    first, second = Holding(), Holding()
    async with working(job(first.__call__, name="first"), job(second.__call__, name="second")):
        ids = [await enqueued("first", "first"), await enqueued("second", "second")]
        await happens(first.begun)
        await happens(second.begun)
        async with transaction() as other:
            lock = text("SELECT 1 FROM job WHERE id = :id FOR UPDATE")
            await (await other.connection()).execute(lock, {"id": ids[1]})
            await asyncio.sleep(2 * SHORT_LEASE)
            second.may_end.set()
            await until_waited_for(other)  # Once the row is free, its end comes before any claim.
        first.may_end.set()
        rows = [await becomes(job_id, "succeeded") for job_id in ids]
    assert [(row.attempt, row.runs) for row in rows] == [(1, 1), (1, 1)]
    assert await all_done() == ["first", "second"]


async def test_jobs_that_take_every_connection_keep_their_leases(
    db: AsyncSession, settings: Settings, short_lease: None
) -> None:
    may_end = asyncio.Event()

    async def greedy(ctx: Context) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(settings.POSTGRES_POOL_SIZE - 1):  # The test has one.
                mine = await stack.enter_async_context(transaction())
                await mine.connection()
            await may_end.wait()

    await db.connection()
    async with own_connections(settings) as session, working(job(greedy, name="greedy"), session=session):
        job_id = await enqueued("greedy")
        await asyncio.sleep(2 * SHORT_LEASE)
        await db.rollback()
        may_end.set()
        row = await becomes(job_id, "succeeded")
    assert (row.attempt, row.runs) == (1, 1)


async def test_a_job_can_erase_its_owner_and_with_that_itself(db: AsyncSession) -> None:
    user = await create_user(db)
    starts = []

    async def erase(ctx: Context, user_id: int) -> None:
        starts.append(user_id)
        await (await ctx["db"].connection()).execute(text('DELETE FROM "user" WHERE id = :id'), {"id": user_id})

    async def is_gone() -> bool:
        return not (await run('SELECT 1 FROM "user"')).all()

    async with working(job(erase, name="erase")):
        job_id = await enqueued("erase", user.id, _owner_id=user.id)
        await until(is_gone)
    assert starts == [user.id]
    assert await queue.find(job_id) is None


async def test_an_error_that_keeps_changes_over_http_keeps_none_of_a_job(db: AsyncSession) -> None:
    class Counted(Forbidden):
        keeps_changes = True

    async def fail(ctx: Context) -> None:
        await do(ctx, "it")
        raise Counted

    await create_done()
    async with working(job(fail, name="fail", max_tries=1)):
        await becomes(await enqueued("fail"), "dead")
    assert await all_done() == []


async def test_a_claim_that_was_made_and_not_answered_costs_no_attempt(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = 0

    async def unanswered(*args: Any) -> list[Claimed]:
        nonlocal answers
        claimed = await claim(*args)
        answers += bool(claimed)
        if answers == 1 and claimed:
            raise DatabaseUnavailable
        return claimed

    monkeypatch.setattr(intake_module, "claim", unanswered)
    await create_done()
    async with working(job(do, max_tries=1)):
        row = await becomes(await enqueued("do", "it"), "succeeded")
    assert (row.attempt, row.runs) == (1, 2)


async def test_what_is_claimed_with_a_job_that_cannot_be_put_aside_is_not_forgotten(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        monkeypatch.undo()
        raise DatabaseUnavailable

    await create_done()
    mine = await enqueued("do", "it")
    await enqueued("unknown")
    monkeypatch.setattr(intake_module, "still_waiting", away)
    async with working(job(do, max_tries=1)):
        row = await becomes(mine, "succeeded")
    assert row.attempt == 1


async def test_a_worker_that_is_not_to_retry_does_not(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError

    async with working(job(fail, name="fail"), retry_jobs=False):
        row = await becomes(await enqueued("fail"), "dead")
    assert row.attempt == 1


async def test_a_worker_counts_as_arq_does(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError

    await create_done()
    async with working(job(do), job(fail, name="fail", max_tries=2, first_retry=0)) as worker:
        await becomes(await enqueued("do", "it"), "succeeded")
        await becomes(await enqueued("fail"), "dead")

        async def all_counted() -> bool:
            return (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (1, 1, 1)

        await until(all_counted)


async def test_what_postgresql_says_about_a_row_is_not_in_a_jobs_error(db: AsyncSession) -> None:
    user = await create_user(db, email="secret@example.com")

    async def copy(ctx: Context, user_id: int) -> None:
        await create_user(ctx["db"], username="another", email="secret@example.com")

    async with working(job(copy, name="copy", max_tries=1)):
        row = await becomes(await enqueued("copy", user.id), "dead")
    assert row.error is not None
    assert "secret@example.com" not in row.error


async def test_the_ends_of_a_job_that_is_cancelled_again_and_again_is_written(db: AsyncSession) -> None:
    await create_done()
    holding = Holding()
    async with working(holding.function) as worker:
        job_id = await enqueued("hold")
        await happens(holding.begun)
        task = worker.tasks[job_id]
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task], timeout=10)
    assert ((await job_of(job_id)).state, (await job_of(job_id)).attempt) == ("queued", 0)


async def test_an_end_that_waits_for_a_lock_for_too_long_is_a_failed_attempt_and_no_worker_lost(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "COMMIT_SECONDS", 0.3)
    await create_done()
    holding = Holding()
    async with working(holding.function):
        job_id = await enqueued("hold")
        await happens(holding.begun)
        async with transaction() as other:
            await (await other.connection()).execute(
                text("SELECT 1 FROM job WHERE id = :id FOR UPDATE"), {"id": job_id}
            )
            holding.may_end.set()
            await asyncio.sleep(0.8)
        row = await becomes(job_id, "succeeded")
    assert row.attempt == 2
    assert await all_done() == ["held"], "what the first one did is rolled back"


async def test_an_end_that_cannot_be_written_down_at_once_is_written_a_little_later(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "WRITE_PAUSE", 0.01)
    tries = 0

    async def away_at_first(*args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DatabaseUnavailable
        await claims_module.end(*args)

    monkeypatch.setattr(attempt_module, "end", away_at_first)

    async def fail(ctx: Context) -> None:
        raise ValueError("no luck")

    async with working(job(fail, name="fail", max_tries=1)):
        row = await becomes(await enqueued("fail"), "dead")
    assert (row.error, row.runs, tries) == ("ValueError: no luck", 1, 3)


async def test_a_hook_that_hangs_holds_up_no_job_for_ever(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "HOOK_SECONDS", 0.05)

    async def hang(ctx: Context) -> None:
        await asyncio.Event().wait()

    await create_done()
    async with working(job(do), on_job_end=hang):
        await becomes(await enqueued("do", "it"), "succeeded")


async def test_a_worker_whose_startup_failed_runs_no_shutdown(db: AsyncSession) -> None:
    called = []

    async def fail(ctx: Context) -> None:
        raise RuntimeError("no start")

    async def shutdown(ctx: Context) -> None:
        called.append("shutdown")

    worker = DurableWorker([do], handle_signals=False, on_startup=fail, on_shutdown=shutdown)
    with pytest.raises(RuntimeError, match="no start"):
        await worker.work(Opened(queue.pool, current_transport()))
    await worker.close()
    assert called == []


async def test_what_becomes_of_attempts_is_counted(db: AsyncSession) -> None:
    def counted(result: str) -> float:
        labels = {"function": "counted", "result": result}
        return REGISTRY.get_sample_value("slipway_job_attempts_total", labels) or 0

    async def fail(ctx: Context) -> None:
        raise ValueError

    before = counted("retried"), counted("dead")
    async with working(job(fail, name="counted", max_tries=3, first_retry=0)):
        await becomes(await enqueued("counted"), "dead")

        async def all_counted() -> bool:
            return (counted("retried") - before[0], counted("dead") - before[1]) == (2, 1)

        await until(all_counted)
    assert (REGISTRY.get_sample_value("slipway_job_seconds_count", {"function": "counted"}) or 0) >= 3
