"""Who follows jobs hears of every change, and all of them together ask once per look."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.utils.queue import Feed
from app.core.utils.queue import feed as feed_module
from tests.durable_jobs import PATIENCE, enqueued, run
from tests.helper import counted_statements

pytestmark = pytest.mark.anyio


@pytest.fixture
async def feed(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    """A feed that looks often."""
    monkeypatch.setattr(feed_module, "PAUSE", 0.01)
    feed = Feed()
    yield feed
    await feed.close()


class Follower:
    """Somebody who follows a job, and what they have heard: states and attempts."""

    def __init__(self, feed: Feed, job_id: str, seconds: float = 600) -> None:
        self.heard: list[tuple[str, int] | None] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(feed, job_id, seconds))

    async def _follow(self, feed: Feed, job_id: str, seconds: float) -> None:
        async with aclosing(feed.follow(job_id, seconds)) as states:
            async for job in states:
                self.heard.append((job.state, job.attempt) if job is not None else None)
                self._news.set()

    async def hears(self, wanted: tuple[str, int]) -> None:
        async with asyncio.timeout(PATIENCE):
            while wanted not in self.heard:
                self._news.clear()
                await self._news.wait()

    async def ends(self) -> list[tuple[str, int] | None]:
        await asyncio.wait_for(self.task, PATIENCE)
        return self.heard


async def test_who_follows_hears_of_each_change_and_the_end(feed: Feed) -> None:
    job_id = await enqueued("it")
    follower = Follower(feed, job_id)
    await follower.hears(("queued", 0))
    await run("UPDATE job SET state = 'running', attempt = 1")
    await follower.hears(("running", 1))
    await run("UPDATE job SET progress = '{\"done\": 1}'")
    async with asyncio.timeout(PATIENCE):
        while follower.heard.count(("running", 1)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await run("UPDATE job SET state = 'succeeded', finished_at = now()")
    assert await follower.ends() == [("queued", 0), ("running", 1), ("running", 1), ("succeeded", 1)]


async def test_nothing_is_said_twice(feed: Feed) -> None:
    job_id = await enqueued("it")
    follower = Follower(feed, job_id)
    await follower.hears(("queued", 0))
    await run("UPDATE job SET lease_until = now()")  # Nobody's business.
    await asyncio.sleep(0.1)  # Some looks later.
    assert follower.heard == [("queued", 0)]


@pytest.mark.parametrize("state", ["succeeded", "dead", "cancelled"])
async def test_who_follows_what_has_ended_hears_that_at_once(feed: Feed, state: str) -> None:
    job_id = await enqueued("it")
    await run("UPDATE job SET state = :state, finished_at = now()", state=state)
    assert await Follower(feed, job_id).ends() == [(state, 0)]


async def test_who_follows_what_is_not_there_or_goes_hears_that_and_no_more(feed: Feed) -> None:
    assert await Follower(feed, "unknown").ends() == [None]
    follower = Follower(feed, await enqueued("it"))
    await follower.hears(("queued", 0))
    await run("DELETE FROM job")
    assert await follower.ends() == [("queued", 0), None]


async def test_however_many_follow_a_look_is_one_statement(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [await enqueued("it") for _ in range(4)]
    followers = [Follower(feed, job_id) for job_id in ids for _ in range(5)]
    for follower in followers:
        await follower.hears(("queued", 0))
    looks = asyncio.Semaphore(0)
    original = feed._look

    async def look() -> None:
        await original()
        looks.release()

    monkeypatch.setattr(feed, "_look", look)
    await asyncio.wait_for(looks.acquire(), PATIENCE)
    with counted_statements() as statements:
        for _ in range(3):
            await asyncio.wait_for(looks.acquire(), PATIENCE)
    assert len(statements) == 3


async def test_when_nobody_follows_nothing_is_asked(feed: Feed) -> None:
    job_id = await enqueued("it")
    async with aclosing(feed.follow(job_id, 600)) as states:
        job = await anext(states)
        assert job is not None
        assert job.id == job_id
    assert feed._task is not None
    await asyncio.wait_for(feed._task, PATIENCE)
    assert feed._followers == {}
    follower = Follower(feed, job_id)  # And it begins again.
    await follower.hears(("queued", 0))


async def test_one_who_leaves_does_not_end_it_for_others(feed: Feed) -> None:
    job_id = await enqueued("it")
    one, other = Follower(feed, job_id), Follower(feed, job_id)
    await one.hears(("queued", 0))
    one.task.cancel()
    await run("UPDATE job SET state = 'succeeded', finished_at = now()")
    assert (await other.ends())[-1] == ("succeeded", 0)


async def test_who_follows_is_released_when_the_feed_is_closed(feed: Feed) -> None:
    followers = [Follower(feed, await enqueued("it")) for _ in range(3)]
    for follower in followers:
        await follower.hears(("queued", 0))
    feed.end()
    for follower in followers:
        assert await follower.ends() == [("queued", 0)]
    assert await Follower(feed, "later").ends() == []
    await feed.close()
    assert feed._followers == {}


async def test_nobody_follows_for_longer_than_they_wanted(feed: Feed) -> None:
    job_id = await enqueued("it")
    assert await Follower(feed, job_id, seconds=0.3).ends() == [("queued", 0)]
    assert await Follower(feed, job_id, seconds=-1).ends() == []


async def test_an_outage_of_the_database_ends_nothing(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> Any:
        raise DatabaseUnavailable

    follower = Follower(feed, await enqueued("it"))
    await follower.hears(("queued", 0))
    with monkeypatch.context() as patch:
        patch.setattr(feed_module, "reading", unavailable)
        await asyncio.sleep(0.05)
        assert not follower.task.done()
    await run("UPDATE job SET state = 'succeeded', finished_at = now()")
    assert await follower.ends() == [("queued", 0), ("succeeded", 0)]


async def test_nobody_is_told_what_a_follower_has_not_committed(feed: Feed) -> None:
    """The looks belong to no follower: neither to its transaction nor to its statement timeout."""
    job_id = await enqueued("it")
    async with transaction() as mine:
        await (await mine.connection()).execute(text("UPDATE job SET state = 'running', attempt = 7"))
        followers = [Follower(feed, job_id) for _ in range(2)]
        for follower in followers:
            await follower.hears(("queued", 0))
        assert [follower.heard for follower in followers] == [[("queued", 0)]] * 2
