"""Follows jobs as they change: one statement per look, however many jobs are followed by however many callers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final

import structlog
from sqlmodel import col, select

from app.core.db.database import DatabaseUnavailable, reading
from app.core.utils.queue.table import Job

PAUSE: Final = 0.3  # seconds between two looks

log = structlog.stdlib.get_logger("slipway.queue")


class _Follower:
    """One that follows: has the newest state of its job, whatever it has missed."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.gone = False
        self.news = asyncio.Event()


class Feed:
    """The jobs that are followed in this process."""

    def __init__(self) -> None:
        self._followers: dict[str, set[_Follower]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def follow(self, job_id: str, seconds: float) -> AsyncGenerator[Job | None, None]:
        """The job as it is now, and again whenever it changes; None when it was removed.

        Ends after its end, after so many seconds, or when the feed is closed.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        follower = _Follower()
        self._followers.setdefault(job_id, set()).add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_again_and_again())
        try:
            while not self._ended.is_set():
                try:
                    async with asyncio.timeout_at(deadline):
                        await follower.news.wait()
                except TimeoutError:
                    return
                follower.news.clear()
                if self._ended.is_set():
                    return
                job = None if follower.gone else follower.job
                yield job
                if job is None or job.has_ended:
                    return
        finally:
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
        ids = list(self._followers)
        async with reading() as db:
            jobs = {job.id: job for job in await db.exec(select(Job).where(col(Job.id).in_(ids)))}
        for job_id in ids:
            job = jobs.get(job_id)
            for follower in self._followers.get(job_id, ()):
                if job is None:
                    follower.gone = True
                    follower.news.set()
                elif follower.job is None or _facts(job) != _facts(follower.job):
                    follower.job = job
                    follower.news.set()


def _facts(job: Job) -> tuple[Any, ...]:
    return (job.state, job.runs, job.attempt, job.run_after, job.progress, job.error)
