"""Listens to a pub/sub channel, on a connection of its own: one that listens can do nothing else."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from app.core.utils.redis_link.address import CLUSTER, Host, connections_to, forget_sentinels, parse

CONNECT_TIMEOUT: Final = 2.0  # seconds
CHECK: Final = 2.0  # seconds of silence after which the server is asked whether it is still there
PAUSE: Final = 0.5  # seconds before the next try
CLOSE_SECONDS: Final = 2.0


class Subscription:
    """Calls back for every message; and whenever it begins to listen, since some may have been missed."""

    def __init__(self, url: str, channel: str, notice: Callable[[], None]) -> None:
        """
        Args:
            url: where the server is, password included (`address.py` has the forms). A cluster passes messages on to
                all its nodes: any of them is listened to.
            channel: its name.
            notice: what to call. What a message says is not passed on.
        """
        self._url = url
        self._channel = channel
        self._notice = notice
        self._last: Host | None = None  # node of a cluster: the next time, another one
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begins to listen, as soon as the server is there."""
        self._task = asyncio.create_task(self._keep_listening())

    async def close(self) -> None:
        """Stops."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)

    async def _keep_listening(self) -> None:
        while not self._closed:
            pool = self._connections()
            # An error of the server or the network: it is tried again. Whoever needs to know looks for themselves.
            with suppress(RedisError, OSError, TimeoutError):
                await self._listen(pool)
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1))  # noqa: S311 -- no secret

    async def _listen(self, pool: ConnectionPool) -> None:
        client = Redis.from_pool(pool)
        try:
            async with client.pubsub() as pubsub:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await pubsub.subscribe(self._channel)
                asked = False
                while True:
                    message = await pubsub.get_message(timeout=CHECK)
                    if message is None and asked:
                        raise TimeoutError  # It hangs.
                    if message is None:
                        await pubsub.ping()
                    elif message["type"] in {"subscribe", "message"}:
                        self._notice()
                    asked = message is None
        finally:
            await client.aclose()
            await forget_sentinels(pool)

    def _connections(self) -> ConnectionPool:
        address = parse(self._url)
        if address.kind != CLUSTER:
            return connections_to(self._url, CONNECT_TIMEOUT)
        others = [host for host in address.hosts if host != self._last] or address.hosts
        self._last = host, port = random.choice(others)  # noqa: S311 -- no secret
        return ConnectionPool(
            **{"socket_connect_timeout": CONNECT_TIMEOUT, **address.options, "host": host, "port": port}
        )
