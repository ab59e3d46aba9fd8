"""What Redis/Valkey says about itself: one server, the primary of sentinels, or all primaries of a cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from app.core.doctor.clock import Clock, read_clock
from app.core.settings.weaknesses import is_this_machine
from app.core.utils.redis_link.address import CLUSTER, Host, connections_to, forget_sentinels, parse

CONNECT_SECONDS: Final = 1.5
_PASSWORD, _CERTIFICATE = ("username", "password"), ("ssl_certfile", "ssl_keyfile", "ssl_password")


@dataclass(frozen=True, slots=True)
class ValkeyFacts:
    """What one server says.

    Attributes:
        address: host and port, or the socket.
        info: INFO's lines; None when this user may not ask for it.
        lets_in_anybody: whether it answers without a password, and without a certificate of ours.
        is_encrypted: whether we speak TLS with it.
        cluster_state: `ok` or not; None outside of a cluster.
    """

    address: str
    is_local: bool
    is_encrypted: bool
    lets_in_anybody: bool
    info: dict[str, str] | None
    cluster_state: str | None
    clock: Clock


class Asked:
    """A connection to one server. Everything raises whatever redis-py does."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def call(self, *words: str | int) -> Any:
        """The reply, in bytes."""
        await self._connection.send_command(*words)
        return await self._connection.read_response()

    async def call_if_allowed(self, *words: str | int) -> Any:
        """The reply; None when it is refused."""
        try:
            return await self.call(*words)
        except (TimeoutError, OSError):
            raise
        except Exception:  # Of redis-py's kinds. After any other than a refusal the next call fails, too.
            return None

    @property
    def host(self) -> str | None:
        """Where it is; None for a socket."""
        return getattr(self._connection, "host", None)

    @property
    def address(self) -> str:
        """The same, with the port."""
        return f"{self.host}:{self._connection.port}" if self.host else str(self._connection.path)


@asynccontextmanager
async def connected(url: str, host: Host | None = None, *, signs_in: bool = True) -> AsyncIterator[Asked]:
    """A connection of its own.

    Args:
        url: where the server is, password included.
        host: which node of a cluster.
        signs_in: whether it says the password, and shows our certificate.
    """
    pool = connections_to(url, CONNECT_SECONDS)
    if host is not None:
        pool.connection_kwargs |= {"host": host[0], "port": host[1]}
    if not signs_in:
        for name in (*_PASSWORD, *_CERTIFICATE):
            pool.connection_kwargs.pop(name, None)
    connection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(
            CONNECT_SECONDS
        ):  # Until the password is accepted: a server can hang after TCP's yes.
            await connection.connect()
        yield Asked(connection)
    finally:
        await connection.disconnect(nowait=True)
        await forget_sentinels(pool)


async def ask(url: str) -> list[ValkeyFacts]:
    """The facts about each primary that the URL leads to. Raises: whatever redis-py does when one is away."""
    if parse(url).kind != CLUSTER:
        return [await _ask_one(url)]
    return list(await asyncio.gather(*(_ask_one(url, host) for host in await _primaries(url))))


def addresses_in(url: str) -> str:
    """The addresses that the URL names, without user and password."""
    address = parse(url)
    if address.hosts:
        return ", ".join(f"{host}:{port}" for host, port in address.hosts)
    where = address.options
    return str(where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")


def places_in(url: str) -> frozenset[str]:
    """To compare two URLs by: if they have one in common they lead to one server, whatever login or database they say.

    Those of sentinels have the name of their primary.
    """
    address = parse(url)
    if "path" in address.options:
        return frozenset({str(address.options["path"])})
    hosts = address.hosts or [(address.options.get("host", "localhost"), address.options.get("port", 6379))]
    return frozenset(
        f"{'localhost' if is_this_machine(host) else host.lower()}:{port}/{address.service}" for host, port in hosts
    )


def says_password(url: str) -> bool:
    """Whether there is one in it."""
    return "password" in parse(url).options


async def _ask_one(url: str, host: Host | None = None) -> ValkeyFacts:
    async with connected(url, host) as server:
        await server.call("PING")
        info = await server.call_if_allowed("INFO")
        state = None if host is None else await server.call_if_allowed("CLUSTER", "INFO")
        clock = await read_clock(lambda: _now(server))
        is_local = is_this_machine(server.host)
        # Who says no password, and shows no certificate, has been let in without.
        asks_nothing = not parse(url).options.keys() & {"password", "ssl_certfile"}
        return ValkeyFacts(
            address=server.address,
            is_local=is_local,
            is_encrypted=parse(url).is_encrypted,
            lets_in_anybody=asks_nothing or await _lets_in_anybody(url, host),
            info=None if info is None else _pairs(info),
            cluster_state=None if state is None else _pairs(state).get("cluster_state"),
            clock=clock,
        )


async def _lets_in_anybody(url: str, host: Host | None) -> bool:
    try:
        async with connected(url, host, signs_in=False) as server:
            await server.call("PING")
    except Exception:  # NOAUTH, whichever of redis-py's kinds that is by then.
        return False
    return True


async def _primaries(url: str) -> list[Host]:
    """The nodes that hold slots, by the first node that answers; all that the URL names if it may not be asked."""
    hosts = parse(url).hosts
    for last, host in enumerate(hosts, start=1 - len(hosts)):
        try:
            async with connected(url, host) as server:
                slots = await server.call_if_allowed("CLUSTER", "SLOTS")
        except Exception:  # The next one may answer.
            if last == 0:
                raise
            continue
        found = [(name.decode() or host[0], port) for _, _, (name, port, *_), *_ in slots or ()]
        return list(dict.fromkeys(found)) or list(hosts)
    return list(hosts)


async def _now(server: Asked) -> float:
    seconds, microseconds = await server.call("TIME")
    return int(seconds) + int(microseconds) / 1_000_000


def _pairs(text: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)
