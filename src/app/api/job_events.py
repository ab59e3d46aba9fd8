"""A job's progress as server-sent events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from fastapi.sse import ServerSentEvent

from app.core.db.models import utc_now
from app.core.security import AccessToken
from app.core.utils.queue import Feed
from app.models.job import JobRead

LONGEST_STREAM: Final = 3600.0  # seconds; a browser connects again by itself
RECONNECT_AFTER: Final = 1000  # milliseconds


async def events_of(feed: Feed, job_id: str, token: AccessToken | None) -> AsyncIterator[ServerSentEvent]:
    """The job as it is now, whenever it changes, and at its end; nothing is known of one that is not kept after that.

    Whoever follows a job with an access token does so for as long as that is good.
    """
    left = (token.expires_at - utc_now()).total_seconds() if token is not None else LONGEST_STREAM
    async with aclosing(feed.follow(job_id, min(left, LONGEST_STREAM))) as states:
        async for job in states:
            kind = "end" if job is None or job.has_ended else "progress"
            data = JobRead.model_validate(job) if job is not None else {"id": job_id}
            yield ServerSentEvent(data=data, event=kind, retry=RECONNECT_AFTER)
