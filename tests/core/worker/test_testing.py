"""The test kit: `drain_jobs` does what waits, as a worker would."""

from typing import Any

import pytest
from arq.worker import func
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils import queue
from app.core.worker import functions as usual_functions
from app.core.worker import testing as testing_module
from app.core.worker.options import GiveUp, job
from app.core.worker.testing import JobsDied, drain_jobs
from tests.durable_jobs import Context, all_done, create_done, do, enqueued, job_of

pytestmark = pytest.mark.anyio


async def fail(ctx: Context) -> None:
    """Always fails."""
    raise ValueError(f"attempt {ctx['job_try']}")


async def test_without_jobs_there_is_nothing_to_do(db: AsyncSession) -> None:
    assert await drain_jobs() == []


async def test_the_apps_own_functions_are_known(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usual_functions, "SAMPLE_SECONDS", 0)
    await enqueued("sample_background_task", "hello")
    (row,) = await drain_jobs()
    assert (row.state, row.result) == ("succeeded", "Task hello is complete!")


async def test_all_that_waits_is_done_in_its_order_whatever_its_queue(db: AsyncSession) -> None:
    await create_done()
    ids = [await enqueued("do", "a"), await enqueued("do", "b")]
    other = await enqueued("do", "c", _queue_name=queue.LONG_QUEUE)
    ended = await drain_jobs([do], max_jobs=1)
    assert [row.id for row in ended if row.id != other] == ids
    assert {row.id for row in ended} == {*ids, other}
    assert await all_done() == ["a", "b", "c"]
    assert await drain_jobs([do]) == []


async def test_what_jobs_enqueue_is_done_as_well(db: AsyncSession) -> None:
    await create_done()

    async def count_down(ctx: Context, left: int) -> None:
        await do(ctx, f"{left}")
        if left:
            options: dict[str, Any] = {"_queue_name": queue.LONG_QUEUE} if left % 2 else {"_defer_by": 3600}
            await queue.enqueue(ctx["db"], "count_down", left - 1, **options)

    await enqueued("count_down", 4)
    assert len(await drain_jobs([job(count_down, name="count_down")])) == 5
    assert await all_done() == ["0", "1", "2", "3", "4"]


async def test_delays_are_skipped_or_left(db: AsyncSession) -> None:
    await create_done()
    later = await enqueued("do", "later", _defer_by=3600)
    await enqueued("do", "now")
    assert len(await drain_jobs([do], skip_delays=False)) == 1
    assert await all_done() == ["now"]
    assert [row.id for row in await drain_jobs([do])] == [later]


async def test_jobs_that_die_fail_the_test_with_their_errors(db: AsyncSession) -> None:
    await enqueued("fail")
    await enqueued("fail")
    with pytest.raises(JobsDied, match="fail: ValueError: attempt 2\nfail: ValueError: attempt 2") as caught:
        await drain_jobs([fail], max_tries=2)
    assert isinstance(caught.value, AssertionError)


async def test_jobs_may_die_where_that_is_what_is_tested(db: AsyncSession) -> None:
    job_id = await enqueued("fail")
    (row,) = await drain_jobs([fail], allow_dead=True, max_tries=3)
    assert (row.id, row.state, row.error) == (job_id, "dead", "ValueError: attempt 3")
    assert await drain_jobs([fail]) == []  # It died before.


async def test_a_retry_left_for_later_is_no_death(db: AsyncSession) -> None:
    job_id = await enqueued("fail")
    assert await drain_jobs([fail], skip_delays=False) == []
    assert (await job_of(job_id)).attempt == 1


async def test_functions_come_in_all_forms(db: AsyncSession) -> None:
    await create_done()
    for name in "do", "named", "options":
        await enqueued(name, name)
    await drain_jobs([do, func(do, name="named"), job(do, name="options")])
    assert await all_done() == ["do", "named", "options"]


async def test_jobs_of_other_functions_stay(db: AsyncSession) -> None:
    await create_done()
    other = await enqueued("other")
    await enqueued("do", "it")
    assert len(await drain_jobs([do])) == 1
    assert (await job_of(other)).state == "queued"


async def test_what_is_not_kept_is_not_returned(db: AsyncSession) -> None:
    await create_done()
    await enqueued("do", "it")
    assert await drain_jobs([job(do, keep_result=0)]) == []
    assert await all_done() == ["it"]


async def test_options_are_the_workers(db: AsyncSession) -> None:
    async def look(ctx: Context) -> Any:
        return ctx["mine"]

    async def startup(ctx: Context) -> None:
        ctx["mine"] = 7

    await enqueued("look")
    (row,) = await drain_jobs([job(look, name="look")], on_startup=startup)
    assert row.result == 7


async def test_in_an_endpoints_test_all_is_committed_by_the_time(db: AsyncSession) -> None:
    await create_done()
    await queue.enqueue(db, "do", "it")
    assert await drain_jobs([do]) == []  # It is not committed yet.
    await db.commit()
    assert len(await drain_jobs([do])) == 1


async def test_a_job_that_gives_up_dies_once(db: AsyncSession) -> None:
    starts = []

    async def give_up(ctx: Context) -> None:
        starts.append(ctx["job_id"])
        raise GiveUp("no use")

    job_id = await enqueued("give_up")
    with pytest.raises(JobsDied, match="no use"):
        await drain_jobs([job(give_up, name="give_up")])
    assert starts == [job_id]


async def test_a_job_that_enqueues_itself_again_and_again_is_found_out(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing_module, "MOST_ROUNDS", 5)

    async def again(ctx: Context) -> None:
        await queue.enqueue(ctx["db"], "again", _defer_by=60)

    await queue.enqueue_now("again")
    with pytest.raises(JobsDied, match="again and again"):
        await drain_jobs([job(again, name="again")])


async def test_delays_of_others_are_left_alone(db: AsyncSession) -> None:
    theirs = await queue.enqueue_now("theirs", _defer_by=60)
    await queue.enqueue_now("do", "it")
    await create_done()
    await drain_jobs([job(do)])
    assert (await job_of(theirs.job_id)).status == "deferred"
