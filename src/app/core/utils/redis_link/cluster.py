"""A Redis/Valkey cluster: a link to each primary, and which of them holds what.

Follows the cluster specification's rules for clients (https://redis.io/docs/latest/operate/oss_and_stack/reference/
cluster-spec/): CRC16 of the hash tag, MOVED and ASK.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

import structlog
from redis.asyncio.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import RedisError

from app.core.utils.redis_link.address import Host, parse
from app.core.utils.redis_link.command import Keys, LinkDown, Refused, Script, Word, words_of
from app.core.utils.redis_link.link import CONNECT_TIMEOUT, FIRST_TRY, Link

LOOK: Final = 5.0  # seconds between two looks at who holds what
LOOK_AGAIN: Final = 0.25  # seconds, while something is wrong
MOST_REDIRECTIONS: Final = 2  # of one command; a third would be of no help to anybody

log = structlog.stdlib.get_logger("slipway.redis")


class ClusterLink:
    """Passes each script to the primary that holds its keys. A task of its own keeps up with failovers and moves."""

    def __init__(self, url: str, name: str) -> None:
        """
        Args:
            url: `redis+cluster://` and some of the nodes.
            name: what the log calls this link.
        """
        address = parse(url)
        self.name = name
        self._seeds = address.hosts
        self._options = {"socket_connect_timeout": CONNECT_TIMEOUT, **address.options}
        self._links: dict[Host, Link] = {}
        self._opening: dict[Host, asyncio.Task[None]] = {}
        self._slots: list[Host | None] = [None] * 16384
        self._listeners: list[Callable[[bool], None]] = []
        self._closed = False
        self._was_up = False
        self._complained = False
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether any of it can be asked."""
        return any(link.up for link in self._links.values())

    async def open(self) -> None:
        """Begins to connect. Returns when the first try is over, whatever came of it, or has taken too long."""
        self._context = copy_context()
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TRY):
                await self._look()
        self._keeper = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Closes every connection. What is asked later fails."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=CONNECT_TIMEOUT)
        await self._part(list(self._links))
        await asyncio.gather(*self._opening.values(), return_exceptions=True)

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Has this called with True when some of the cluster can be asked, and with False when none of it can."""
        self._listeners.append(listener)

    # ---- Commands ----

    async def call(self, script: Script, keys: Keys, *arguments: Word) -> Any:
        """Runs a script on keys of one slot. Raises: LinkDown, Refused."""
        slot = key_slot(_bytes(keys[0] if isinstance(keys, tuple) else keys))
        link = self._holder_of(slot)
        for _ in range(MOST_REDIRECTIONS):
            try:
                return await link.call(script, keys, *arguments)
            except LinkDown:
                self._stale.set()
                raise
            except Refused as refusal:
                kind, *where = str(refusal).split()
                if kind == "CLUSTERDOWN":
                    self._stale.set()
                if kind not in {"MOVED", "ASK"}:
                    raise
                host = self._host(where[1], told_by=link)
                link = await self._link_to(host)
                if kind == "ASK":  # It is on its way there, and only this once to be asked for there.
                    asked = link.run(("ASKING",), words_of((script, keys, *arguments), whole=True))
                    return (await asked)[1]
                self._slots[slot] = host
                self._stale.set()
        return await link.call(script, keys, *arguments)

    async def send(self, *words: Word) -> Any:
        """Asks any of the nodes, for what is not about keys. Raises: LinkDown, Refused."""
        up = [link for link in self._links.values() if link.up]
        if not up:
            raise LinkDown(self.name)
        return await random.choice(up).send(*words)  # noqa: S311 -- no secret

    def _holder_of(self, slot: int) -> Link:
        host = self._slots[slot]
        link = self._links.get(host) if host is not None else None
        if link is None:
            self._stale.set()
            raise LinkDown(self.name)
        return link

    # ---- Who holds what ----

    async def _keep_looking(self) -> None:
        while not self._closed:
            well = None not in self._slots and all(link.up for link in self._links.values())
            with suppress(TimeoutError):
                async with asyncio.timeout((LOOK if well else LOOK_AGAIN) * random.uniform(0.8, 1.2)):  # noqa: S311
                    await self._stale.wait()
                    await asyncio.sleep(LOOK_AGAIN / 5)  # One look for all who ask for it.
            self._stale.clear()
            try:
                await self._look()
            except Exception as error:  # Nobody else would look.
                log.warning("redis cluster cannot be looked at", link=self.name, why=repr(error))

    async def _look(self) -> None:
        """Asks one node after the other until one tells who holds what."""
        why = "no node knows who holds what"
        for host in dict.fromkeys((*self._shuffled(self._links), *self._shuffled(self._seeds))):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT / 2):
                    ranges = await self._ask(host)
            except (OSError, RedisError, TimeoutError) as error:
                why = repr(error)
                continue
            if ranges:
                await self._learn(host, ranges)
                self._complained = False
                return
        if not self._complained:
            log.warning("redis cluster cannot be reached", link=self.name, why=why)
        self._complained = True

    @staticmethod
    def _shuffled(hosts: Iterable[Host]) -> list[Host]:
        return sorted(hosts, key=lambda _: random.random())  # noqa: S311 -- no secret

    async def _ask(self, host: Host) -> Any:
        connection = self._connections_to(host).make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            return await connection.read_response(disable_decoding=True)
        finally:
            await connection.disconnect(nowait=True)

    async def _learn(self, asked: Host, ranges: Any) -> None:
        slots: list[Host | None] = [None] * 16384
        for first, last, primary, *_ in ranges:
            name = primary[0].decode() if primary[0] else asked[0]  # Without a name of its own, it has the one asked.
            slots[first : last + 1] = [(name, primary[1])] * (last - first + 1)
        hosts = {host for host in slots if host is not None}
        await asyncio.gather(*(self._link_to(host) for host in hosts))
        self._slots = slots
        await self._part([host for host in self._links if host not in hosts])
        self._tell()

    async def _link_to(self, host: Host) -> Link:
        if self._closed:
            raise LinkDown(self.name)
        if host not in self._links:
            link = self._links[host] = Link(self._connections_to(host), f"{self.name} {host[0]}:{host[1]}")
            link.on_change(lambda _: self._tell())
            # In a task of its own: it is to go on without whoever was sent here, and outside of the context of a
            # request, whose id is not for us.
            opening = asyncio.get_running_loop().create_task(link.open(), context=self._context)
            self._opening[host] = opening
            opening.add_done_callback(lambda _: self._opening.pop(host, None))
        if host in self._opening:
            await asyncio.shield(self._opening[host])
        if host not in self._links:  # Parted with, meanwhile.
            raise LinkDown(self.name)
        return self._links[host]

    def _connections_to(self, host: Host) -> ConnectionPool:
        return ConnectionPool(**{**self._options, "host": host[0], "port": host[1]})

    def _host(self, text: str, told_by: Link) -> Host:
        name, _, port = text.rpartition(":")
        if not name:  # The one that says so, at another port.
            name = next((known[0] for known, link in self._links.items() if link is told_by), self._seeds[0][0])
        return name, int(port)

    async def _part(self, hosts: list[Host]) -> None:
        links = [self._links.pop(host) for host in hosts]
        await asyncio.gather(*(link.close() for link in links))

    def _tell(self) -> None:
        if not (up := self.up):
            self._stale.set()
        if up != self._was_up:
            self._was_up = up
            for listener in self._listeners:
                listener(up)


def _bytes(key: Word) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()
