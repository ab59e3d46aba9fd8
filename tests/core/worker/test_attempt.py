"""One attempt: what a function has, what becomes of what it did, and when it is tried again."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.worker import Retry
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.db.database import async_get_db, transaction
from app.core.utils import queue
from app.core.utils.queue import Job
from app.core.utils.queue.serialization import LONGEST_ERROR
from app.core.worker import worker as worker_module
from app.core.worker.options import GiveUp, job
from app.core.worker.testing import JobsDied, drain_jobs
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

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ROUND", 0.05)


async def outcome(function: Callable[..., Any], *args: Any, options: dict[str, Any] | None = None, **own: Any) -> Job:
    """The row of a job of this function, once nothing more comes of it. `own` is for `job`."""
    job_id = await enqueued("it", *args)
    await drain_jobs([job(function, name="it", **own)], allow_dead=True, **options or {})
    return await job_of(job_id)


# ---- What a function has ----


async def test_a_function_has_its_job_in_the_context(db: AsyncSession) -> None:
    seen: Context = {}

    async def look(ctx: Context) -> None:
        seen.update(ctx)

    row = await outcome(look)
    assert (seen["job_id"], seen["job_try"], seen["enqueue_time"]) == (row.id, 1, row.created_at)
    assert seen["score"] == int(row.run_after.timestamp() * 1000)
    assert seen["redis"] is queue.pool


async def test_what_a_function_puts_into_its_context_is_its_own(db: AsyncSession) -> None:
    seen = []

    async def spoil(ctx: Context) -> None:
        seen.append("spoilt" in ctx)
        ctx["spoilt"] = True

    for _ in range(2):
        await enqueued("spoil")
    await drain_jobs([job(spoil, name="spoil")], ctx={})
    assert seen == [False, False]


async def test_what_a_job_did_is_committed_when_it_returns(db: AsyncSession) -> None:
    await create_done()
    row = await outcome(do, "it")
    assert (row.state, row.result) == ("succeeded", None)
    assert await all_done() == ["it"]


async def test_what_a_job_did_is_rolled_back_when_it_raises(db: AsyncSession) -> None:
    await create_done()

    async def fail(ctx: Context) -> None:
        await do(ctx, f"attempt {ctx['job_try']}")
        if ctx["job_try"] < 3:
            raise ValueError("not yet")

    row = await outcome(fail)
    assert (row.state, row.attempt, row.error) == ("succeeded", 3, None)
    assert await all_done() == ["attempt 3"]


async def test_a_jobs_effect_and_its_end_are_one_transaction(db: AsyncSession) -> None:
    await create_done()
    await run("ALTER TABLE job ADD CHECK (state <> 'succeeded')")  # Its end cannot be written.
    row = await outcome(do, "it", options={"max_tries": 1})
    assert row.state == "dead"
    assert await all_done() == []


async def test_a_job_that_breaks_its_transaction_is_a_failure(db: AsyncSession) -> None:
    await create_done()
    await run("DROP TABLE IF EXISTS parent, child CASCADE")  # the application's
    await run("CREATE TABLE parent (id integer PRIMARY KEY)")
    await run("CREATE TABLE child (id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

    async def orphan(ctx: Context) -> None:
        await do(ctx, "it")
        await (await ctx["db"].connection()).execute(text("INSERT INTO child VALUES (1)"))  # The commit refuses it.

    row = await outcome(orphan, options={"max_tries": 2})
    assert (row.state, row.attempt) == ("dead", 2)
    assert "IntegrityError" in str(row.error)
    assert await all_done() == []


async def test_a_job_that_catches_the_error_that_aborted_its_transaction_is_a_failure(db: AsyncSession) -> None:
    await create_done()

    async def swallow(ctx: Context) -> None:
        await do(ctx, "it")
        with suppress(DBAPIError):
            await (await ctx["db"].connection()).execute(text("SELECT 1 / 0"))

    row = await outcome(swallow, options={"max_tries": 1})
    assert row.state == "dead"
    assert "TransactionAborted" in str(row.error)
    assert "begin_nested" in str(row.error)
    assert await all_done() == []


async def test_a_job_that_catches_an_error_of_a_savepoint_or_rolls_back_succeeds(db: AsyncSession) -> None:
    await create_done()

    async def swallow(ctx: Context) -> None:
        await do(ctx, "gone")
        await ctx["db"].rollback()
        await do(ctx, "kept")
        with suppress(DBAPIError):
            async with ctx["db"].begin_nested():
                await do(ctx, "gone")
                await (await ctx["db"].connection()).execute(text("SELECT 1 / 0"))

    row = await outcome(swallow, options={"max_tries": 1})
    assert row.state == "succeeded"
    assert await all_done() == ["kept"]


async def test_a_job_that_has_committed_by_itself_and_fails_is_tried_again(db: AsyncSession) -> None:
    await create_done()

    async def commit_and_fail(ctx: Context) -> None:
        await do(ctx, f"attempt {ctx['job_try']}")
        await ctx["db"].commit()
        if ctx["job_try"] == 1:
            raise ValueError("not yet")

    row = await outcome(commit_and_fail)
    assert (row.state, row.attempt) == ("succeeded", 2)
    assert await all_done() == ["attempt 1", "attempt 2"]


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("INSERT INTO note VALUES (CAST(:value AS text))", "s3cr3t\x00"),
        ("INSERT INTO note VALUES (CAST(:value AS text))", "s3cr3t\n[SQL s3cr3t"),
        ("SELECT CAST(CAST(:value AS text) AS integer)", "s3cr3t"),
        ("SELECT CAST(:value AS uuid)", "s3cr3t"),
    ],
)
async def test_a_value_that_the_database_refuses_stands_in_no_log_and_in_no_row(
    db: AsyncSession, capsys: pytest.CaptureFixture[str], statement: str, value: str
) -> None:
    await run("DROP TABLE IF EXISTS note CASCADE")
    await run("CREATE TABLE note (text text CHECK (text <> 's3cr3t\n[SQL s3cr3t'))")

    async def write(ctx: Context) -> None:
        await (await ctx["db"].connection()).execute(text(statement), {"value": value})

    row = await outcome(write, options={"max_tries": 2})
    assert (row.state, row.attempt) == ("dead", 2)
    assert row.error
    logged = "".join(capsys.readouterr())
    assert "job is dead" in logged
    assert "s3cr3t" not in logged + row.error


async def test_two_jobs_at_once_have_two_sessions(db: AsyncSession) -> None:
    await create_done()
    sessions: list[Any] = []
    both = asyncio.Event()

    async def meet(ctx: Context, fails: bool) -> None:
        sessions.append(ctx["db"])
        await do(ctx, f"fails: {fails}")
        if len(sessions) == 2:
            both.set()
        await both.wait()
        if fails:
            raise GiveUp

    for fails in (True, False):
        await enqueued("meet", fails)
    await drain_jobs([job(meet, name="meet")], allow_dead=True)
    assert sessions[0] is not sessions[1]
    assert await all_done() == ["fails: False"]


async def test_jobs_that_a_job_enqueues_are_there_if_it_is_committed(db: AsyncSession) -> None:
    async def enqueue_more(ctx: Context) -> None:
        await queue.enqueue(ctx["db"], "nobody_knows", ctx["job_try"])
        if ctx["job_try"] == 1:
            raise ValueError("not yet")

    await outcome(enqueue_more)
    assert (await run("SELECT args FROM job WHERE function = 'nobody_knows'")).scalars().all() == [[2]]


async def test_the_founding_documents_startup_does_no_harm(db: AsyncSession) -> None:
    await create_done()

    async def startup(ctx: Context) -> None:
        ctx["db"] = await anext(async_get_db())

    async def shutdown(ctx: Context) -> None:
        await ctx["db"].close()

    async def fail(ctx: Context) -> None:
        await do(ctx, "fail")
        raise GiveUp

    functions = [job(do, name="do"), job(fail, name="fail")]
    async with working(*functions, on_startup=startup, on_shutdown=shutdown) as worker:
        ids = [await enqueued("do", "it"), await enqueued("fail"), await enqueued("do", "more")]
        for job_id, state in zip(ids, ("succeeded", "dead", "succeeded"), strict=True):
            await becomes(job_id, state)
        assert not worker.ctx["db"].in_transaction()
    assert await all_done() == ["it", "more"]


# ---- Results ----


@pytest.mark.parametrize(
    ("result", "place"),
    [
        ({"counts": {1: 2}}, "result['counts'] has a key of type int"),
        ({"rows": [1, {2}]}, "result['rows'][1] is of type set"),
        ("half \ud800", "result has half of a surrogate pair"),
        (ValueError("returned"), "result is of type ValueError"),
    ],
)
async def test_a_dead_letter_says_where_its_result_is_no_json(db: AsyncSession, result: Any, place: str) -> None:
    async def give(ctx: Context) -> Any:
        return result

    row = await outcome(give)
    assert (row.state, row.attempt) == ("dead", 1)
    assert place in str(row.error)


@pytest.mark.parametrize("result", [None, 0, False, "", "text", [1, {"a": None}], {"a": [1.5]}, "NUL \x00", "null"])
async def test_a_result_is_kept_as_json(db: AsyncSession, result: Any) -> None:
    async def give(ctx: Context) -> Any:
        return result

    row = await outcome(give)
    assert (row.state, row.result) == ("succeeded", result)


@pytest.mark.parametrize("result", [{1, 2}, b"bytes", object(), float("inf")])
async def test_a_result_that_json_cannot_hold_is_a_failure_that_no_retry_helps(db: AsyncSession, result: Any) -> None:
    await create_done()

    async def give(ctx: Context) -> Any:
        await do(ctx, "it")
        return result

    row = await outcome(give)
    assert (row.state, row.attempt) == ("dead", 1)
    assert str(row.error).startswith("GiveUp: Its result cannot be written as JSON")
    assert await all_done() == []


async def test_a_result_that_is_not_to_be_kept_goes_with_its_job(db: AsyncSession) -> None:
    await create_done()
    job_id = await enqueued("do", "it")
    await drain_jobs([job(do, keep_result=0)])
    assert await queue.find(job_id) is None
    assert (await run("SELECT count(*) FROM job")).scalar() == 0
    assert await all_done() == ["it"]


async def test_a_job_that_is_not_to_be_kept_stays_when_it_dies(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise GiveUp("it stays")

    assert (await outcome(fail, keep_result=0)).error == "GiveUp: it stays"


async def test_a_result_is_kept_for_as_long_as_its_function_says(db: AsyncSession) -> None:
    await create_done()
    kept = await outcome(do, "it", keep_result=60)
    assert kept.expires_at is not None
    assert kept.finished_at is not None
    assert timedelta(seconds=59) < kept.expires_at - kept.finished_at < timedelta(seconds=61)
    await run("UPDATE job SET expires_at = clock_timestamp()")
    assert await queue.find(kept.id) is None
    assert (await outcome(do, "it")).expires_at is None


async def test_a_result_can_be_kept_forever(db: AsyncSession) -> None:
    await create_done()
    for options in {"keep_result_forever": True}, {"keep_result_forever": True, "keep_result": 0}:
        row = await outcome(do, "it", **options)
        assert (await run("SELECT expires_at = 'infinity' FROM job WHERE id = :id", id=row.id)).scalar() is True


# ---- Failures ----


async def test_an_ordinary_exception_is_retried_later(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError("no luck")

    job_id = await enqueued("fail")
    before = datetime.now(UTC)
    await drain_jobs([job(fail, name="fail", first_retry=100)], skip_delays=False)
    row = await job_of(job_id)
    assert (row.state, row.attempt, row.error, row.finished_at) == ("queued", 1, "ValueError: no luck", None)
    assert timedelta(seconds=49) < row.run_after - before < timedelta(seconds=130)
    assert row.lease_until is None


async def test_a_job_that_fails_each_time_is_a_dead_letter(db: AsyncSession) -> None:
    tries = []

    async def fail(ctx: Context) -> None:
        tries.append(ctx["job_try"])
        raise ValueError(f"attempt {ctx['job_try']}")

    row = await outcome(fail, "argument", options={"max_tries": 4})
    assert tries == []  # It takes no argument: that is a failure like others.
    assert (row.state, row.attempt) == ("dead", 4)
    assert "positional argument" in str(row.error)
    row = await outcome(fail, options={"max_tries": 4})
    assert tries == [1, 2, 3, 4]
    assert (row.state, row.attempt, row.runs, row.error) == ("dead", 4, 4, "ValueError: attempt 4")
    assert row.finished_at is not None
    assert row.args == []


async def test_a_functions_own_max_tries_goes_before_the_workers(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError

    assert (await outcome(fail, max_tries=2, options={"max_tries": 9})).attempt == 2


async def test_a_job_says_itself_when_it_is_tried_again(db: AsyncSession) -> None:
    async def later(ctx: Context) -> None:
        raise Retry(defer=500)

    job_id = await enqueued("later")
    before = datetime.now(UTC)
    await drain_jobs([job(later, name="later")], skip_delays=False)
    row = await job_of(job_id)
    assert (row.state, row.attempt) == ("queued", 1)
    assert timedelta(seconds=499) < row.run_after - before < timedelta(seconds=530)
    assert (await outcome(later, max_tries=3)).state == "dead"


async def test_a_retry_without_a_pause_is_at_once(db: AsyncSession) -> None:
    async def again(ctx: Context) -> int:
        if ctx["job_try"] == 1:
            raise Retry
        return int(ctx["job_try"])

    job_id = await enqueued("again")
    async with working(job(again, name="again", first_retry=600)):
        assert (await becomes(job_id, "succeeded")).result == 2


async def test_a_job_that_gives_up_is_a_dead_letter_at_once(db: AsyncSession) -> None:
    async def give_up(ctx: Context) -> None:
        raise GiveUp("there is no such order")

    row = await outcome(give_up)
    assert (row.state, row.attempt, row.error) == ("dead", 1, "GiveUp: there is no such order")


async def test_a_job_that_takes_too_long_is_a_failure(db: AsyncSession) -> None:
    await create_done()

    async def hang(ctx: Context) -> None:
        await do(ctx, "it")
        await asyncio.Event().wait()

    for own, usual in ({"timeout": 0.05}, 300), ({}, 0.05):
        row = await outcome(hang, options={"max_tries": 2, "job_timeout": usual}, **own)
        assert (row.state, row.attempt, row.error) == ("dead", 2, "TimeoutError")
    assert await all_done() == []


async def test_a_statement_that_takes_too_long_is_a_failure_that_says_so(db: AsyncSession) -> None:
    async def hang(ctx: Context) -> None:
        await (await ctx["db"].connection()).execute(text("SELECT pg_sleep(60)"))

    row = await outcome(hang, timeout=0.1, max_tries=1)
    assert (row.state, row.error) == ("dead", "TimeoutError")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("x")])
async def test_no_job_ends_its_worker(db: AsyncSession, error: BaseException) -> None:
    await create_done()

    async def leave(ctx: Context) -> None:
        await do(ctx, "leave")
        raise error

    job_id = await enqueued("leave")
    async with working(job(leave, name="leave", max_tries=2, first_retry=0), job(do)):
        row = await becomes(job_id, "dead")
        await becomes(await enqueued("do", "after"), "succeeded")
    assert row.attempt == 2
    assert str(row.error).startswith(type(error).__name__)
    assert await all_done() == ["after"]


async def test_sys_exit_in_a_job_is_a_failure(db: AsyncSession) -> None:
    async def leave(ctx: Context) -> None:
        sys.exit("no more")

    assert (await outcome(leave, max_tries=1)).error == "SystemExit: no more"


async def test_a_job_that_swallows_its_cancellation_is_done_when_it_returns(db: AsyncSession) -> None:
    await create_done()
    begun = asyncio.Event()

    async def stubborn(ctx: Context) -> str:
        await do(ctx, "it")
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "done all the same"

    job_id = await enqueued("stubborn")
    async with working(job(stubborn, name="stubborn")):
        await happens(begun)
        await queue.request_cancel(db, job_id)
        await db.commit()
        row = await becomes(job_id, "succeeded")
    assert row.result == "done all the same"
    assert await all_done() == ["it"]


async def test_a_job_that_swallows_that_it_was_lost_commits_nothing(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "RENEWALS", 1000)
    await create_done()
    begun = asyncio.Event()

    async def stubborn(ctx: Context) -> None:
        await do(ctx, "it")
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    job_id = await enqueued("stubborn")
    async with working(job(stubborn, name="stubborn")) as worker:
        await happens(begun)
        await run("UPDATE job SET runs = runs + 1 WHERE id = :id", id=job_id)

        async def is_idle() -> bool:
            return not worker.attempts

        await until(is_idle)
    assert (await job_of(job_id)).state == "running"
    assert await all_done() == []


async def test_a_job_that_expired_is_a_dead_letter_and_never_begun(db: AsyncSession) -> None:
    await create_done()
    job_id = await enqueued("do", "it", _expires=60)
    await run("UPDATE job SET start_before = clock_timestamp() - interval '1 second'")
    await drain_jobs([job(do)], allow_dead=True)
    row = await job_of(job_id)
    assert (row.state, row.error) == ("dead", "GiveUp: It was not to be started this late.")
    assert await all_done() == []


async def test_the_text_of_an_error_is_what_the_table_can_hold(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError("NUL \x00, half \ud800, long " + "x" * LONGEST_ERROR)

    row = await outcome(fail, max_tries=1)
    assert str(row.error).startswith("ValueError: NUL \N{REPLACEMENT CHARACTER}, half ?, long xxx")
    assert len(str(row.error)) == LONGEST_ERROR


async def test_an_error_stays_until_an_attempt_succeeds(db: AsyncSession) -> None:
    held = Holding()

    async def second_time(ctx: Context) -> None:
        if ctx["job_try"] == 1:
            raise ValueError("the first")
        held.begun.set()
        await held.may_end.wait()

    job_id = await enqueued("second_time")
    async with working(job(second_time, name="second_time", first_retry=0)):
        await happens(held.begun)
        assert (await job_of(job_id)).error == "ValueError: the first"
        held.may_end.set()
        assert (await becomes(job_id, "succeeded")).error is None


async def test_a_dead_job_that_is_replayed_begins_with_its_first_attempt(db: AsyncSession) -> None:
    tries = []

    async def fail_first(ctx: Context) -> None:
        tries.append(ctx["job_try"])
        if len(tries) == 1:
            raise GiveUp

    row = await outcome(fail_first)
    async with transaction() as caller:
        assert await queue.replay(caller, row.id)
    assert await drain_jobs([job(fail_first, name="it")]) == [await job_of(row.id)]
    row = await job_of(row.id)
    assert (row.state, row.attempt, row.runs, row.error, tries) == ("succeeded", 1, 2, None, [1, 1])
    async with transaction() as caller:
        assert not await queue.replay(caller, row.id)


async def test_neither_arguments_nor_results_are_logged(db: AsyncSession) -> None:
    async def echo(ctx: Context, secret: str) -> str:
        return secret

    with capture_logs() as lines:
        await outcome(echo, "hunter2")
    assert [line["event"] for line in lines if line["event"].startswith("job ")] == ["job started", "job ended"]
    assert "hunter2" not in str(lines)


# ---- Hooks ----


class Hooks:
    """Hooks that note when they were called and with what, and raise if they are told to."""

    def __init__(self, *raising: str) -> None:
        self.called: list[tuple[str, int, bool]] = []
        self._raising = raising

    def of(self, name: str) -> Any:
        async def hook(ctx: Context) -> None:
            self.called.append((name, ctx["job_try"], ctx.get("started", False)))
            if name == "on_job_start":
                ctx["started"] = True
            if name in self._raising:
                raise ValueError(name)

        return hook

    @property
    def all(self) -> dict[str, Any]:
        return {name: self.of(name) for name in ("on_job_start", "on_job_end", "after_job_end")}


EACH = [("on_job_start", 1, False), ("on_job_end", 1, True), ("after_job_end", 1, True)]


async def test_hooks_are_called_around_each_attempt(db: AsyncSession) -> None:
    hooks, seen = Hooks(), []

    async def look(ctx: Context) -> None:
        seen.append(ctx["started"])

    await outcome(look, options=hooks.all)
    assert hooks.called == EACH
    assert seen == [True]


async def test_hooks_are_called_around_attempts_that_fail(db: AsyncSession) -> None:
    hooks = Hooks()

    async def fail(ctx: Context) -> None:
        raise GiveUp

    await outcome(fail, options=hooks.all)
    assert hooks.called == EACH


async def test_what_a_start_hook_does_is_part_of_the_job(db: AsyncSession) -> None:
    await create_done()

    async def start(ctx: Context) -> None:
        await do(ctx, "hook")

    async def fail(ctx: Context) -> None:
        raise GiveUp

    await outcome(fail, options={"on_job_start": start})
    assert await all_done() == []
    await outcome(do, "job", options={"on_job_start": start})
    assert await all_done() == ["hook", "job"]


@pytest.mark.parametrize("name", ["on_job_end", "after_job_end"])
async def test_a_hook_that_raises_after_a_job_is_only_logged(db: AsyncSession, name: str) -> None:
    await create_done()
    hooks = Hooks(name)
    with capture_logs() as lines:
        row = await outcome(do, "it", options=hooks.all)
    assert (row.state, row.attempt) == ("succeeded", 1)
    assert hooks.called == EACH
    assert len([line for line in lines if line["event"] == "hook failed"]) == 1
    assert await all_done() == ["it"]


async def test_a_start_hook_that_raises_is_a_failed_attempt(db: AsyncSession) -> None:
    await create_done()
    hooks = Hooks("on_job_start")
    row = await outcome(do, "it", options=hooks.all | {"max_tries": 2})
    assert (row.state, row.attempt, row.error) == ("dead", 2, "ValueError: on_job_start")
    assert await all_done() == []


async def test_a_dead_job_is_what_a_test_hears_of(db: AsyncSession) -> None:
    async def fail(ctx: Context) -> None:
        raise ValueError("no luck")

    await enqueued("fail")
    with pytest.raises(JobsDied, match="fail: ValueError: no luck"):
        await drain_jobs([job(fail, name="fail", max_tries=1)])
