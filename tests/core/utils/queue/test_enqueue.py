"""A job is written in its caller's transaction and sent after it: it is there if and only if that is committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import after_commit, transaction
from app.core.utils import queue
from app.core.utils.queue import Enqueued, IdempotencyKeyReused, Job, JobIdTaken, sending
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import Link
from app.core.worker.options import job as function
from app.core.worker.testing import drain_jobs
from scripts.embedded import free_port
from tests.durable_jobs import job_of, run, seen_from_outside, sent
from tests.helper import counted_statements, create_user, until_waited_for

pytestmark = pytest.mark.anyio

SOON = timedelta(seconds=30)  # a busy machine


class RefusedError(Exception):
    """What a caller's transaction is rolled back with."""


@asynccontextmanager
async def rolled_back() -> AsyncIterator[AsyncSession]:
    """A transaction that ends with an error."""
    with suppress(RefusedError):
        async with transaction() as db:
            yield db
            raise RefusedError


async def enqueued(*args: Any, **options: Any) -> Enqueued:
    """A job of a transaction of its own."""
    async with transaction() as db:
        return await queue.enqueue(db, "work", *args, **options)


async def count() -> int:
    """How many jobs there are."""
    async with transaction() as db:
        return (await db.exec(select(func.count()).select_from(Job))).one()


# ---- With the transaction ----


async def test_a_job_is_sent_once_its_transaction_is_committed(db: AsyncSession) -> None:
    user = await create_user(db)
    async with transaction() as caller:
        job = await queue.enqueue(caller, "work", 1, "two", _owner_id=user.id, three=[3])
        assert await sent() == {}
        assert await seen_from_outside(job.job_id) is None
    row = await job_of(job.job_id)
    assert (row.function, row.args, row.keywords, row.owner_id) == ("work", [1, "two"], {"three": [3]}, user.id)
    assert (row.state, row.attempt, row.runs, row.sent_at, row.run_after) == ("queued", 0, 0, None, job.due)
    assert await sent() == {job.job_id: row.run_after}


async def test_a_job_whose_transaction_is_rolled_back_is_never_there(db: AsyncSession) -> None:
    async with rolled_back() as caller:
        await queue.enqueue(caller, "work")
    assert await count() == 0
    assert await sent() == {}


async def test_a_job_is_not_sent_before_the_savepoint_around_it_is_part_of_a_commit(db: AsyncSession) -> None:
    async with transaction() as caller:
        async with caller.begin_nested():
            job = await queue.enqueue(caller, "work")
        assert await sent() == {}
    assert await sent() == {job.job_id: job.due}


async def test_a_job_whose_savepoint_is_rolled_back_is_never_done_and_its_neighbours_are(db: AsyncSession) -> None:
    done = []

    async def work(ctx: dict[Any, Any], name: str) -> None:
        done.append(name)

    async with transaction() as caller:
        before = await queue.enqueue(caller, "work", "before")
        savepoint = await caller.begin_nested()
        inside = await queue.enqueue(caller, "work", "inside")
        await savepoint.rollback()
        after = await queue.enqueue(caller, "work", "after")
    assert await queue.find(inside.job_id) is None
    assert {before.job_id, after.job_id} <= set(await sent())
    await drain_jobs([function(work, name="work")], max_jobs=1)
    assert done == ["before", "after"]


async def test_all_jobs_of_a_transaction_are_sent_after_it(db: AsyncSession) -> None:
    async with transaction() as caller:
        jobs = [await queue.enqueue(caller, "work", number) for number in range(20)]
    assert await sent() == {job.job_id: job.due for job in jobs}


async def test_a_job_waits_for_no_server_that_is_away(db: AsyncSession) -> None:
    away = Link(f"redis://127.0.0.1:{free_port()}/0", "away")
    await away.open()
    transport = Transport(away)
    sending.add(transport)
    try:
        job = await enqueued()
        pooled = await queue.pool.enqueue_job("work")
    finally:
        sending.remove(transport)
        await away.close()
    assert pooled is not None
    assert await sent() == {}
    assert (await job_of(job.job_id)).state == (await job_of(pooled.job_id)).state == "queued"


async def test_without_an_app_or_worker_a_script_can_enqueue(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sending, "_transports", [])
        job = await enqueued()
    assert (await job_of(job.job_id)).state == "queued"


async def test_a_job_costs_one_statement_and_one_command(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    link, commands = current_transport().link, []
    original = link.send

    def send(*words: Any) -> Any:
        commands.append(words)
        return original(*words)

    await enqueued()  # The connection is there.
    monkeypatch.setattr(link, "send", send)
    async with transaction() as caller:
        await caller.connection()
        with counted_statements() as statements:
            job = await queue.enqueue(caller, "work", _idempotency_key="key")
            await caller.commit()
    with counted_statements() as pooled:
        await queue.pool.enqueue_job("work")
    assert len(statements) == len(pooled) == 1
    assert [words[0] for words in commands if queue.DEFAULT_QUEUE in words] == ["ZADD", "ZADD"]
    assert [words[0] for words in commands if job.job_id in words] == ["ZADD"]


# ---- Ids and keys ----


async def test_an_id_that_is_taken_is_refused_and_the_transaction_goes_on(db: AsyncSession) -> None:
    await enqueued(_job_id="mine")
    async with transaction() as caller:
        with pytest.raises(JobIdTaken, match="mine"):
            await queue.enqueue(caller, "work", _job_id="mine")
        other = await queue.enqueue(caller, "work")
    assert set(await sent()) == {"mine", other.job_id}


@pytest.mark.parametrize("name", ["_job_id", "_idempotency_key"])
async def test_the_second_of_two_waits_for_what_becomes_of_the_first(db: AsyncSession, name: str) -> None:
    options: dict[str, Any] = {name: "one"}
    async with rolled_back() as first:
        await queue.enqueue(first, "work", "first", **options)
        second = asyncio.create_task(enqueued("second", **options))
        await until_waited_for(first)
    job = await asyncio.wait_for(second, 10)
    assert (await job_of(job.job_id)).args == ["second"]
    assert await sent() == {job.job_id: job.due}


async def test_the_second_of_two_with_a_key_gets_the_first_ones_id_once_that_is_committed(db: AsyncSession) -> None:
    async with transaction() as first:
        job = await queue.enqueue(first, "work", _idempotency_key="key")
        second = asyncio.create_task(enqueued(_idempotency_key="key"))
        await until_waited_for(first)
    assert await asyncio.wait_for(second, 10) == Enqueued(job.job_id, None)


async def test_fifty_at_once_with_one_key_are_one_job(db: AsyncSession) -> None:
    jobs = await asyncio.gather(*(enqueued("order 7", _idempotency_key="order 7") for _ in range(50)))
    assert len({job.job_id for job in jobs}) == 1
    assert [job.due is not None for job in jobs].count(True) == 1
    assert await count() == 1
    assert len(await sent()) == 1


async def test_a_key_is_for_one_function_and_its_arguments(db: AsyncSession) -> None:
    job = await enqueued("whole 😀", 1.0, (2,), _idempotency_key="key", three=3)
    assert (await enqueued("whole 😀", 1.0, [2], _idempotency_key="key", three=3)).job_id == job.job_id
    for args, kwargs in ([], {}), (["whole 😀", 1.0, [2]], {"three": 4}), (["other", 1.0, [2]], {"three": 3}):
        with pytest.raises(IdempotencyKeyReused):
            await enqueued(*args, _idempotency_key="key", **kwargs)
    with pytest.raises(IdempotencyKeyReused):
        await queue.enqueue(db, "other", "whole 😀", 1.0, [2], _idempotency_key="key", three=3)
    assert await count() == 1


async def test_a_key_whose_transaction_was_rolled_back_is_free(db: AsyncSession) -> None:
    async with rolled_back() as caller:
        gone = await queue.enqueue(caller, "work", _idempotency_key="key")
    job = await enqueued(_idempotency_key="key")
    assert job.job_id != gone.job_id
    assert job.due is not None


async def test_a_key_names_its_job_also_when_that_has_ended(db: AsyncSession) -> None:
    async def work(ctx: dict[Any, Any]) -> None:
        pass

    job = await enqueued(_idempotency_key="key")
    await drain_jobs([function(work, name="work")])
    assert await enqueued(_idempotency_key="key") == Enqueued(job.job_id, None)


# ---- When ----


async def test_a_job_can_be_deferred(db: AsyncSession) -> None:
    at = datetime(2100, 1, 2, 3, tzinfo=UTC)
    until = await job_of((await enqueued(_defer_until=at)).job_id)
    by = await job_of((await enqueued(_defer_by=3600)).job_id)
    also_by = await job_of((await enqueued(_defer_by=timedelta(hours=1))).job_id)
    assert until.run_after == at
    assert by.run_after - by.created_at == also_by.run_after - also_by.created_at == timedelta(hours=1)
    assert abs(by.created_at - datetime.now(UTC)) < SOON
    assert await sent() == {job.id: job.run_after for job in (until, by, also_by)}


@pytest.mark.parametrize("expires", [90, timedelta(seconds=90)])
async def test_a_job_can_expire(db: AsyncSession, expires: Any) -> None:
    job = await job_of((await enqueued(_expires=expires)).job_id)
    assert job.start_before == job.created_at + timedelta(seconds=90)


async def test_attempts_can_begin_with_a_later_one(db: AsyncSession) -> None:
    seen = []

    async def work(ctx: dict[Any, Any]) -> None:
        seen.append(ctx["job_try"])

    await enqueued(_job_try=3)
    await drain_jobs([function(work, name="work")])
    assert seen == [3]


# ---- What is refused, and what is not ----


@pytest.mark.parametrize(
    "options",
    [
        {"_job_id": ""},
        {"_job_id": "x" * 129},
        {"_job_id": "a b"},
        {"_job_id": "a\x00"},
        {"_job_id": "ä"},
        {"_job_id": "a\n"},
        {"_queue_name": "x" * 129},
        {"_queue_name": "a\x00"},
        {"_idempotency_key": "x" * 301},
        {"_idempotency_key": "a\x00"},
        {"_defer_until": datetime(2100, 1, 1)},  # noqa: DTZ001 -- that is what is refused
        {"_defer_until": datetime(2100, 1, 1, tzinfo=UTC), "_defer_by": 1},
    ],
)
async def test_names_that_the_table_cannot_hold_are_refused(db: AsyncSession, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"A job's id|at most|_defer_until") as caught:
        await enqueued(**options)
    assert "xxx" not in str(caught.value)  # It can be a caller's.
    assert await count() == 0


@pytest.mark.parametrize("function", ["x" * 129, "a\x00"])
async def test_functions_that_the_table_cannot_hold_are_refused(db: AsyncSession, function: str) -> None:
    with pytest.raises(ValueError, match="at most"):
        await queue.enqueue(db, function)
    assert await count() == 0


async def test_the_longest_names_are_taken(db: AsyncSession) -> None:
    await enqueued(_job_id="~" * 128, _queue_name="ä" * 128, _idempotency_key="ä" * 300)
    await queue.enqueue(db, "ä" * 128)
    await db.commit()
    assert await count() == 2


@pytest.mark.parametrize("argument", [{1, 2}, b"bytes", object(), datetime(2100, 1, 1, tzinfo=UTC), float("nan")])
async def test_arguments_that_json_cannot_hold_are_refused(db: AsyncSession, argument: Any) -> None:
    for args, kwargs in ([argument], {}), ([], {"given": argument}):
        with pytest.raises((TypeError, ValueError)):
            await enqueued(*args, **kwargs)
    assert await count() == 0


async def test_arguments_arrive_as_they_are(db: AsyncSession) -> None:
    seen: list[Any] = []

    async def work(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        seen.extend([args, kwargs])

    whole = ["NUL \x00", "ä€😀", "\\u0000", '"', 2**70, -0.5, None, True, {"a": {"b": []}}, "x" * 100_000]
    await enqueued(*whole, **{"nul \x00": "\x00"})
    await drain_jobs([function(work, name="work")])
    assert seen == [tuple(whole), {"nul \x00": "\x00"}]


async def test_what_does_not_arrive_as_it_is_is_refused_and_nothing_is_written(db: AsyncSession) -> None:
    for broken in ("half \ud83d", {1: 2}, float("nan")):
        with pytest.raises((TypeError, ValueError), match=r"args\[1\]"):
            await enqueued("first", broken)
    assert await count() == 0


async def test_the_owners_jobs_go_with_the_owner(db: AsyncSession) -> None:
    user = await create_user(db)
    await enqueued(_owner_id=user.id)
    await (await db.connection()).execute(text('DELETE FROM "user"'))
    await db.commit()
    assert not list(await db.exec(select(Job).where(col(Job.owner_id).is_not(None))))


async def test_a_dead_letter_is_kept_when_its_id_is_used_again(db: AsyncSession) -> None:
    await queue.enqueue_now("do", _job_id="mine")
    await run("UPDATE job SET state = 'dead', finished_at = now() - interval '2 hours'")
    await queue.enqueue_now("do", _job_id="mine")
    rows = sorted((await run("SELECT state, id FROM job")).all())
    assert [state for state, _ in rows] == ["dead", "queued"]
    assert rows[0].id.startswith("mine~")
    assert rows[1].id == "mine"


@pytest.mark.parametrize("name", [{"_job_id": "mine"}, {"_idempotency_key": "mine"}])
async def test_what_has_expired_is_in_nobodys_way(db: AsyncSession, name: dict[str, Any]) -> None:
    first = await queue.enqueue_now("do", **name)
    await run("UPDATE job SET state = 'succeeded', finished_at = now(), expires_at = now() - interval '1 second'")
    second = await queue.enqueue_now("do", **name)
    assert second.due is not None
    assert (await run("SELECT state FROM job")).scalars().all() == ["queued"]
    assert (first.job_id == second.job_id) is ("_job_id" in name)


async def test_a_key_that_was_used_for_something_else_is_refused(db: AsyncSession) -> None:
    await queue.enqueue_now("do", "this", _idempotency_key="mine")
    for name, argument in (("do", "that"), ("undo", "this")):
        with pytest.raises(queue.IdempotencyKeyReused):
            await queue.enqueue_now(name, argument, _idempotency_key="mine")


async def test_all_jobs_of_a_transaction_are_sent_at_once(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    link = current_transport().link
    commands: list[Any] = []
    send = link.send

    def noted(*words: Any) -> Any:
        commands.append(words[0])
        return send(*words)

    monkeypatch.setattr(link, "send", noted)
    async with transaction() as caller:
        for number in range(100):
            await queue.enqueue(caller, "do", number)
    assert commands.count("ZADD") == 1
    assert await queue.pool.zcard(queue.DEFAULT_QUEUE) == 100


@pytest.mark.parametrize("ending", ["error", "rollback", "cancelled"])
async def test_a_job_that_follows_a_commit_is_in_no_later_transaction(db: AsyncSession, ending: str) -> None:
    """The change is made: what comes after it in the handler cannot take the job back."""

    async def follow() -> None:
        await queue.pool.enqueue_job("it", _job_id="follows")

    with suppress(ZeroDivisionError, asyncio.CancelledError):
        async with transaction() as mine:
            await (await mine.connection()).execute(text("SELECT 1"))
            after_commit(mine, follow)
            await mine.commit()
            if ending == "error":
                raise ZeroDivisionError
            if ending == "cancelled":
                raise asyncio.CancelledError
            await mine.rollback()
    assert (await job_of("follows")).state == "queued"
    assert list(await sent()) == ["follows"]
