"""Follows jobs as they change: one statement per look, however many jobs are followed by however many callers."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

import structlog
from sqlalchemy import ARRAY, Text, any_, cast, text
from sqlmodel import col, select

from app.core.db.database import reading
from app.core.db.engine import DatabaseUnavailable
from app.core.utils.queue.table import Job

PAUSE: Final = 0.3  # seconds between two looks
MOST: Final = 500  # followers in a process
MOST_OF_ONE: Final = 20

Facts = tuple[Any, ...]

_FACTS = text(
    "SELECT id, state, runs, run_after, cancel_requested, CAST(progress AS text), md5(error) FROM job"
    " WHERE id = ANY(CAST(:ids AS text[]))"
)

log = structlog.stdlib.get_logger("slipway.queue")


class _Follower:
    """One that follows: has the newest state of its job, whatever it has missed."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.facts: Facts | None = None
        self.news = asyncio.Event()

    def tell(self, job: Job | None, facts: Facts | None) -> None:
        """The job has changed, or is gone."""
        self.job, self.facts = job, facts
        self.news.set()


class Feed:
    """The jobs that are followed in this process."""

    def __init__(self) -> None:
        self._followers: dict[str, set[_Follower]] = {}
        self._places: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be followed any more."""
        return self._ended.is_set()

    def has_room_for(self, who: str) -> bool:
        """Whether somebody may follow another job: each follower is an open connection."""
        return self._places.total() < MOST and self._places[who] < MOST_OF_ONE

    async def follow(self, job_id: str, seconds: float, who: str = "") -> AsyncGenerator[Job | None, None]:
        """The job as it is now, and again whenever it changes; None when it was removed.

        Ends after its end, after so many seconds, or when the feed is closed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        follower = _Follower()
        self._followers.setdefault(job_id, set()).add(follower)
        self._places[who] += 1
        if self._task is None or self._task.done():
            # In an empty context: it is no part of the transaction that this follower has open.
            self._task = asyncio.create_task(self._look_again_and_again(), context=Context())
        try:
            while not self._ended.is_set() and loop.time() < deadline:
                try:
                    async with asyncio.timeout_at(deadline):
                        await follower.news.wait()
                except TimeoutError:
                    return
                follower.news.clear()
                if self._ended.is_set():
                    return
                job = follower.job
                yield job
                if job is None or job.has_ended:
                    return
        finally:
            self._places[who] -= 1
            if not self._places[who]:
                del self._places[who]
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]

    def end(self) -> None:
        """Ends everything that follows, now and from now on."""
        self._ended.set()
        for followers in self._followers.values():
            for follower in followers:
                follower.news.set()

    async def close(self) -> None:
        """The same, and waits for what still looks."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _look_again_and_again(self) -> None:
        while self._followers:
            try:
                await self._look()
            except DatabaseUnavailable:  # Those who follow hear of it when it is back.
                pass
            except Exception:
                log.exception("jobs cannot be followed")
            await asyncio.sleep(PAUSE)

    async def _look(self) -> None:
        """One small statement; what a job was given and gives back is read when it has changed."""
        ids = list(self._followers)
        async with reading() as db:
            rows = (await (await db.connection()).execute(_FACTS, {"ids": ids})).all()
            facts = {row.id: tuple(row) for row in rows}
            changed = [job_id for job_id in ids if self._is_news(job_id, facts.get(job_id))]
            if not changed:
                return
            of_these = col(Job.id) == any_(cast(changed, ARRAY(Text)))
            jobs = {job.id: job for job in await db.exec(select(Job).where(of_these))}
        for job_id in changed:
            for follower in self._followers.get(job_id, ()):
                follower.tell(jobs.get(job_id), facts.get(job_id))

    def _is_news(self, job_id: str, facts: Facts | None) -> bool:
        return any(facts is None or follower.facts != facts for follower in self._followers.get(job_id, ()))
