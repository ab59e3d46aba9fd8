"""How much of the connections is in use, in Prometheus' words. Looked at every second, also for other processes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Protocol

from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

EVERY: Final = 1.0  # seconds

CONNECTIONS: Final = Gauge(
    "slipway_database_connections",
    "Connections to the database by pool and state: in_use or idle.",
    ["pool", "state"],
    multiprocess_mode="livesum",
)
LIMIT: Final = Gauge(
    "slipway_database_connections_limit",
    "How many connections a pool may have, of all processes.",
    ["pool"],
    multiprocess_mode="livesum",
)
WAITING: Final = Gauge(
    "slipway_database_waiting", "Those who wait for a connection.", ["pool"], multiprocess_mode="livesum"
)
REDIS_UP: Final = Gauge(
    "slipway_redis_up",
    "1 while Redis/Valkey can be asked, by what it is asked for; of several processes, by the one that is worst off.",
    ["link"],
    multiprocess_mode="livemin",
)


class _Link(Protocol):
    @property
    def up(self) -> bool: ...


@asynccontextmanager
async def pools_measured(databases: Mapping[str, AsyncEngine], links: Mapping[str, _Link]) -> AsyncIterator[None]:
    """Keeps their metrics up to date meanwhile.

    Args:
        databases: engines by the name of their pool.
        links: connections to Redis/Valkey by what they are for.
    """

    async def look_again() -> None:
        while True:
            await asyncio.sleep(EVERY)
            _look(databases, links)

    _look(databases, links)
    looking = asyncio.create_task(look_again(), name="pools measured")
    try:
        yield
    finally:
        looking.cancel()


def _look(databases: Mapping[str, AsyncEngine], links: Mapping[str, _Link]) -> None:
    for name, engine in databases.items():
        pool = engine.sync_engine.pool
        if isinstance(pool, QueuePool):  # Others have no limit, and nothing that is idle.
            CONNECTIONS.labels(name, "in_use").set(pool.checkedout())
            CONNECTIONS.labels(name, "idle").set(pool.checkedin())
            LIMIT.labels(name).set(pool.size() + max(0, pool._max_overflow))
            WAITING.labels(name).set(_waiting(pool))
    for name, link in links.items():
        REDIS_UP.labels(name).set(link.up)


def _waiting(pool: QueuePool) -> int:
    """How many wait: neither SQLAlchemy nor asyncio's queue has a public word for it."""
    queue = getattr(pool._pool, "_queue", None)
    return sum(not waiter.done() for waiter in getattr(queue, "_getters", ()))
