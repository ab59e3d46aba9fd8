"""A job's progress as server-sent events."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final

from fastapi.sse import ServerSentEvent

from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Problem
from app.core.utils.queue import Feed
from app.models.job import JobRead

LONGEST_STREAM: Final = 3600.0  # seconds; a browser connects again by itself
ASK_AGAIN: Final = 15.0  # seconds after which it is looked up once more whether the caller may see the job
RECONNECT_AFTER: Final = 1000  # milliseconds


class TooManyStreams(Problem):
    status = 429
    text = "Too many tasks are being followed. Read them from time to time instead."


@dataclass(frozen=True, slots=True)
class JobFollower:
    """Somebody who follows a job.

    Attributes:
        feed: what tells how the job changes.
        job_id: the job.
        who: whose streams are counted together.
        until: when the caller's access token ends.
        may_go_on: whether the caller may still see the job.
    """

    feed: Feed
    job_id: str
    who: str
    until: datetime | None
    may_go_on: Callable[[], Awaitable[bool]]

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """The job as it is now, whenever it changes, and at its end; of one that is not kept after that, its id."""
        deadline = monotonic() + LONGEST_STREAM
        if self.until is not None:
            deadline = min(deadline, monotonic() + (self.until - utc_now()).total_seconds())
        last: JobRead | None = None
        while (left := deadline - monotonic()) > 0:
            async with aclosing(self.feed.follow(self.job_id, min(left, ASK_AGAIN), self.who)) as states:
                async for job in states:
                    if job is None:
                        yield _event("end", {"id": self.job_id})
                        return
                    now = JobRead.model_validate(job)
                    if now != last:
                        yield _event("end" if job.has_ended else "progress", now)
                    if job.has_ended:
                        return
                    last = now
            if self.feed.is_closed or not await self.may_go_on():
                return


def _event(kind: str, data: object) -> ServerSentEvent:
    return ServerSentEvent(data=data, event=kind, retry=RECONNECT_AFTER)
