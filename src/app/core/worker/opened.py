"""What a worker holds open while it runs."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import RedisCacheSettings, Settings
from app.core.db.database import close_database, open_database, reader_of, separate_reading
from app.core.db.engine import create_engine
from app.core.doctor import connections_of_worker, refuse_certain_faults
from app.core.events import Subscription
from app.core.metrics.pools import pools_measured
from app.core.tracing import open_tracing
from app.core.utils.cache import open_cache
from app.core.utils.queue import JobPool, open_queue
from app.core.utils.queue.transport import Transport
from app.core.utils.redis_link import Link

ANSWER_TIMEOUT = 1.0  # seconds until Redis/Valkey is taken to hang: nobody waits for a worker's answer
OWN_CONNECTIONS = 4  # for claims, leases, ends and upkeep, which no job can take away

OwnSession = Callable[[], AbstractAsyncContextManager[AsyncSession]]


@dataclass(frozen=True, slots=True)
class Opened:
    """The queue and the database.

    Attributes:
        pool: ARQ's client.
        transport: what carries the ids.
        session: opens a session, as `reading()` does, on connections that are the worker's own, so outside of a job's
            transaction.
    """

    pool: JobPool
    transport: Transport
    session: OwnSession = separate_reading


@asynccontextmanager
async def open_worker(
    settings: Settings, max_jobs: int, subscriptions: Sequence[Subscription] = ()
) -> AsyncIterator[Opened]:
    """The database, the cache where there is one, and the queue.

    Each job can have a connection for itself, and half of them one more, for a report of their progress, say.
    """
    await refuse_certain_faults(settings, connections_of_worker(max_jobs))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_tracing(settings))
        # A statement of a job takes as long as the job may.
        engine = open_database(
            settings, pool_size=max_jobs + max_jobs // 2, time_limit=False, subscriptions=subscriptions
        )
        stack.push_async_callback(close_database, engine)
        own = create_engine(settings, pool_size=OWN_CONNECTIONS)
        stack.push_async_callback(own.dispose)
        link = Link(settings.redis_queue_url, "queue", answer_timeout=ANSWER_TIMEOUT)
        await link.open()
        stack.push_async_callback(link.close)
        pool = await stack.enter_async_context(open_queue(settings, link))
        if settings.inherits(RedisCacheSettings):  # What a job changes is dropped by the worker itself.
            await stack.enter_async_context(open_cache(settings, durable=True))
        await stack.enter_async_context(pools_measured({"jobs": engine, "worker": own}, {"queue": link}))
        yield Opened(pool, Transport(link), reader_of(own))
