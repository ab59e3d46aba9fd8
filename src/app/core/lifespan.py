"""What a running app holds open, by what its settings switch on: opened, checked and closed here."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Lifespan

from app.core.application import Application
from app.core.client_cache import refuse_max_age_without_middleware
from app.core.config import (
    ClientSideCacheSettings,
    ConsoleSettings,
    EnvironmentOption,
    PostgresSettings,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    SettingsGroup,
    StorageSettings,
    environment_of,
)
from app.core.db.database import close_database, open_database
from app.core.db.engine import create_engine
from app.core.db.replica import Replica
from app.core.db.schema_version import check_schema
from app.core.doctor import refuse_certain_faults
from app.core.draining import Drain, draining
from app.core.metrics.pools import pools_measured
from app.core.metrics.recent import Recent, open_recent
from app.core.mounts import warn_of_open_documentation
from app.core.readiness import Dependency
from app.core.root_path import check_root_path
from app.core.storage import open_storage, storage_is_on
from app.core.tracing import open_tracing
from app.core.utils import queue
from app.core.utils.cache import open_cache
from app.core.utils.queue.sending import current_transport
from app.core.utils.rate_limit import open_rate_limiter
from app.core.utils.rate_limit.metrics import Subjects
from app.core.utils.redis_link import AnyLink


@asynccontextmanager
async def lifespan(app: Application, inner: Sequence[Lifespan[Any]]) -> AsyncIterator[dict[str, Any] | None]:
    """The app's, around those that the application has: the first is the outermost. Yields what all of them yield."""
    settings: SettingsGroup = app.state.settings
    check_root_path(app, app.state.root_path)
    if not isinstance(settings, ClientSideCacheSettings):
        refuse_max_age_without_middleware(app)
    await refuse_certain_faults(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_tracing(settings))
        # In `local` there is no proxy whose connections to use up, but somebody who waits for a reload.
        linger = environment_of(settings) is not EnvironmentOption.LOCAL
        app.state.drain = stack.enter_context(draining(getattr(settings, "SHUTDOWN_DELAY_SECONDS", 0), linger=linger))
        opening = _Opening(app, stack)
        if isinstance(settings, PostgresSettings):
            opening.database(settings)
        if isinstance(settings, RedisCacheSettings):
            await opening.cache(settings)
        if isinstance(settings, RedisRateLimiterSettings):
            await opening.rate_limiter(settings)
        if isinstance(settings, RedisQueueSettings):
            await opening.queue(settings)
        if isinstance(settings, StorageSettings) and storage_is_on(settings):
            app.state.storage = await stack.enter_async_context(open_storage(settings))
            stack.callback(delattr, app.state, "storage")
        app.state.replica = await opening.replica(settings) if isinstance(settings, PostgresSettings) else None
        app.state.recent = await opening.recent(settings) if isinstance(settings, ConsoleSettings) else None
        await stack.enter_async_context(pools_measured(opening.pools, opening.links))
        app.state.dependencies = opening.dependencies
        state: dict[str, Any] = {}
        for each in inner:
            own: Mapping[str, Any] | None = await stack.enter_async_context(each(app))
            state.update(own or {})
        app.prepare_routes()  # Again, for the routes that were added since.
        if environment_of(settings) is not EnvironmentOption.LOCAL:
            warn_of_open_documentation(app)
        yield state or None  # A server may not know the state of a lifespan.


class _Opening:
    """Opens one thing after the other, each to be closed with the stack.

    Attributes:
        dependencies: the services that the app talks to, by now.
        pools, links: its connections, by what they are for.
    """

    def __init__(self, app: FastAPI, stack: AsyncExitStack) -> None:
        self.dependencies: list[Dependency] = []
        self.pools: dict[str, AsyncEngine] = {}
        self.links: dict[str, AnyLink] = {}
        self._by_address: dict[str, AnyLink] = {}  # of one server that hangs, that is found out once
        self._app = app
        self._stack = stack

    def database(self, settings: PostgresSettings) -> None:
        self.pools["requests"] = open_database(settings, subscriptions=self._app.state.subscriptions)
        self._stack.push_async_callback(close_database, self.pools["requests"])
        # Not from the pool: when requests wait for its connections, the server is busy, and not unready.
        probe = create_engine(settings, pool_size=2)
        self._stack.push_async_callback(probe.dispose)
        self.dependencies.append(Dependency("postgres", partial(_select_1, probe), required=True))
        self.dependencies.append(Dependency("schema", partial(check_schema, probe), required=True))

    async def cache(self, settings: RedisCacheSettings) -> None:
        durable = isinstance(settings, PostgresSettings)
        cache = self._app.state.cache = await self._stack.enter_async_context(open_cache(settings, durable=durable))
        self._stack.callback(delattr, self._app.state, "cache")
        self._by_address[settings.redis_cache_url] = self.links["cache"] = cache.store.link
        self.dependencies.append(Dependency("redis_cache", cache.ping))

    async def rate_limiter(self, settings: RedisRateLimiterSettings) -> None:
        shared = self._by_address.get(settings.redis_rate_limit_url)
        limiter = await self._stack.enter_async_context(open_rate_limiter(settings, shared))
        self._app.state.rate_limiter = limiter
        self._stack.callback(delattr, self._app.state, "rate_limiter")
        self.links["rate_limit"] = limiter.link
        self.dependencies.append(Dependency("redis_rate_limit", limiter.ping))

    async def queue(self, settings: RedisQueueSettings) -> None:
        shared = self._by_address.get(settings.redis_queue_url)
        pool = await self._stack.enter_async_context(queue.open_queue(settings, shared, self._app.state.workers()))
        feed = self._app.state.job_feed = queue.Feed()
        self._stack.push_async_callback(feed.close)
        drain: Drain = self._app.state.drain
        drain.last_calls.append(feed.end)
        self.links["queue"] = current_transport().link
        self.dependencies.append(Dependency("redis_queue", pool.ping))

    async def replica(self, settings: PostgresSettings) -> Replica | None:
        link, address = self._lasting_link, settings.postgres_read_address
        if address is None or link is None:
            return None
        engine = self.pools["reads"] = create_engine(settings, settings.POSTGRES_POOL_SIZE, address=address)
        self._stack.push_async_callback(engine.dispose)
        replica = Replica(engine, link)
        await replica.open()
        self._stack.push_async_callback(replica.close)
        self.dependencies.append(Dependency("postgres_read", replica.ping))
        return replica

    async def recent(self, settings: ConsoleSettings) -> Recent | None:
        """The last hour, for the console to read from; None without it, or without anywhere to keep it."""
        link, limiter = self._lasting_link, getattr(self._app.state, "rate_limiter", None)
        if not settings.CONSOLE_ENABLED or link is None:
            return None
        subjects = None
        if limiter is not None:
            subjects = limiter.subjects = Subjects()
        return await self._stack.enter_async_context(open_recent(link, subjects))

    @property
    def _lasting_link(self) -> AnyLink | None:
        """To where nothing is evicted, if possible: the limits' server, or the queue's."""
        return next((self.links[use] for use in ("rate_limit", "queue", "cache") if use in self.links), None)


async def _select_1(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
