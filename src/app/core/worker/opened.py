"""What a worker holds open while it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.core.config import RedisCacheSettings, Settings
from app.core.db.database import close_database, open_database
from app.core.utils.cache import open_cache
from app.core.utils.queue import JobPool, open_queue
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import Link

ANSWER_TIMEOUT = 1.0  # seconds until Redis/Valkey is taken to hang: nobody waits for a worker's answer
SPARE_CONNECTIONS = 4  # beside those of jobs: for claims, leases, upkeep and cron


@dataclass(frozen=True, slots=True)
class Opened:
    """The queue: ARQ's client, and what carries the ids."""

    pool: JobPool
    transport: Transport


@asynccontextmanager
async def open_worker(settings: Settings, max_jobs: int) -> AsyncIterator[Opened]:
    """The database, the cache where there is one, and the queue.

    Each job can have a connection for itself, and half of them one more, for a report of their progress, say.
    """
    connections = max_jobs + max_jobs // 2 + SPARE_CONNECTIONS
    # A statement of a job takes as long as the job may.
    engine = open_database(settings, pool_size=connections, command_timeout=None)
    try:
        link = Link(settings.redis_queue_url, "queue", answer_timeout=ANSWER_TIMEOUT)
        await link.open()
        try:
            async with open_queue(settings, link) as pool:
                if settings.inherits(RedisCacheSettings):  # What a job changes is dropped by the worker itself.
                    async with open_cache(settings, durable=True):
                        yield Opened(pool, Transport(link))
                else:
                    yield Opened(pool, Transport(link))
        finally:
            await link.close()
    finally:
        await close_database(engine)
