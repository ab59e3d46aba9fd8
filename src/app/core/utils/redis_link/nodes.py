"""The primaries of a cluster: a link to each, and who holds what. A task keeps up with failovers and moves."""

import asyncio
import random
from collections.abc import Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import structlog
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from app.core.utils.redis_link.address import Host, parse
from app.core.utils.redis_link.command import LinkDown
from app.core.utils.redis_link.link import CONNECT_TIMEOUT, FIRST_TRY, Link, Listener

LOOK: Final = 5.0  # seconds between two looks at who holds what
LOOK_AGAIN: Final = 0.25  # seconds, while something is wrong
SLOTS: Final = 16384

log = structlog.stdlib.get_logger("slipway.redis")


class Nodes:
    """Who they are, as far as is known. Whoever is sent elsewhere says so, with `follow`."""

    def __init__(self, url: str, name: str) -> None:
        """
        Args:
            url: `redis+cluster://` and some of the nodes.
            name: what the log calls the cluster.
        """
        address = parse(url)
        self.name = name
        self._seeds = address.hosts
        self._options = {"socket_connect_timeout": CONNECT_TIMEOUT, **address.options}
        self._links: dict[Host, Link] = {}
        self._opening: dict[Host, asyncio.Task[None]] = {}
        self._parting: set[Link] = set()
        self._slots: list[Host | None] = [None] * SLOTS
        self._holders: set[Host] = set()
        self._listeners: list[tuple[Listener, int | None]] = []
        self._closed = False
        self._complained = False
        self._stale = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begins to connect. Returns when the first try is over, whatever came of it, or has taken too long."""
        self._context = copy_context()
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TRY):
                await self.look()
        self._keeper = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Closes every connection, even when whoever asks for it is cancelled meanwhile."""
        self._closed = True
        await asyncio.shield(asyncio.create_task(self._close()))

    async def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=CONNECT_TIMEOUT)
        was_up = bool(self.up())
        await self._part(list(self._links))
        if was_up:
            self._tell(False)
        await asyncio.gather(*self._opening.values(), return_exceptions=True)

    # ---- Who they are ----

    def up(self) -> list[Link]:
        """Those that can be asked."""
        return [link for link in self._links.values() if link.up]

    def holder_of(self, slot: int) -> Link:
        """The one that holds it. Raises: LinkDown when nobody does."""
        host = self._slots[slot]
        link = self._links.get(host) if host is not None else None
        if link is None:
            self._stale.set()
            raise LinkDown(self.name)
        return link

    def holders(self) -> list[Link]:
        """All that hold any slot. Raises: LinkDown when there is a slot that nobody holds."""
        if None in self._slots or not self._holders <= self._links.keys():
            self._stale.set()
            raise LinkDown(self.name)
        return [self._links[host] for host in self._holders]

    async def follow(self, slot: int, where: str, told_by: Link, *, for_good: bool) -> Link:
        """The one that a node has named for a slot: it has moved there, or, not `for_good`, some of its keys have.

        Raises: LinkDown.
        """
        name, _, port = where.rpartition(":")
        if not name:  # The one that says so, at another port.
            name = next((known[0] for known, link in self._links.items() if link is told_by), self._seeds[0][0])
        host = name, int(port)
        link = await self._link_to(host)
        if for_good:
            self._stale.set()
            if self._slots[slot] != host:
                self._take_in([*self._slots[:slot], host, *self._slots[slot + 1 :]])
        else:
            self._tell_about(slot)
        return link

    def look_soon(self) -> None:
        """Something is wrong."""
        self._stale.set()

    def on_change(self, listener: Listener, slot: int | None = None) -> None:
        """Has this called when one is lost, or another has taken over (False), and when one is there (True).

        Args:
            listener: what to call: before anybody is asked who has taken over.
            slot: one that this is about: it is called as well whenever that has moved, or a key of it.
        """
        self._listeners.append((listener, slot))

    def _tell(self, up: bool) -> None:
        for listener, _ in self._listeners:
            listener(up)

    def _tell_about(self, slot: int) -> None:
        for listener, wanted in self._listeners:
            if wanted == slot:
                listener(True)

    def _on_node(self, link: Link, up: bool) -> None:
        if link in self._links.values():  # Or it was parted with.
            if not up:
                self._stale.set()
            self._tell(up)

    def _take_in(self, slots: list[Host | None]) -> None:
        """Who holds what from now on.

        A slot that moves from one primary to another takes its keys along. Who was no primary before was a replica, as
        far as one can tell, and may lack the last that its primary has said to be done.
        """
        before, self._slots = self._slots, slots
        known, self._holders = self._holders, {host for host in slots if host is not None}
        if known and not self._holders <= known:
            log.warning("redis cluster has another primary", link=self.name)
            self._tell(False)
            if self.up():
                self._tell(True)
        for _, slot in self._listeners:
            if slot is not None and before[slot] not in {None, slots[slot]}:
                self._tell_about(slot)

    # ---- Finding out ----

    async def _keep_looking(self) -> None:
        while not self._closed:
            well = None not in self._slots and all(link.up for link in self._links.values())
            with suppress(TimeoutError):
                async with asyncio.timeout((LOOK if well else LOOK_AGAIN) * random.uniform(0.8, 1.2)):  # noqa: S311 -- no secret
                    await self._stale.wait()
                    await asyncio.sleep(LOOK_AGAIN / 5)  # One look for all who ask for it.
            self._stale.clear()
            try:
                await self.look()
            except Exception as error:  # Nobody else would look.
                log.warning("redis cluster cannot be looked at", link=self.name, why=repr(error))

    async def look(self) -> bool:
        """Asks one node after the other until one tells who holds what. Returns: whether one has."""
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
                return True
        if not self._complained:
            log.warning("redis cluster cannot be reached", link=self.name, why=why)
        self._complained = True
        return False

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
        slots: list[Host | None] = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            name = primary[0].decode() if primary[0] else asked[0]  # Without a name of its own, it has the one asked.
            slots[first : last + 1] = [(name, primary[1])] * (last - first + 1)
        hosts = {host for host in slots if host is not None}
        await asyncio.gather(*(self._link_to(host) for host in hosts))
        self._take_in(slots)
        await self._part([host for host in self._links if host not in hosts])

    # ---- Their links ----

    async def _link_to(self, host: Host) -> Link:
        if self._closed:
            raise LinkDown(self.name)
        if host not in self._links:
            link = self._links[host] = Link(self._connections_to(host), f"{self.name} {host[0]}:{host[1]}")
            link.on_change(partial(self._on_node, link))
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

    async def _part(self, hosts: list[Host]) -> None:
        """Closes the links to these, and those that a look which was cut off has not got round to."""
        self._parting |= {self._links.pop(host) for host in hosts}
        links = set(self._parting)
        await asyncio.gather(*(link.close() for link in links))
        self._parting -= links
