"""What PostgreSQL says about itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.config import PostgresSettings
from app.core.db.address import PORT, PostgresAddress
from app.core.db.engine import create_engine
from app.core.doctor.clock import Clock, read_clock
from app.core.settings.weaknesses import is_this_machine

_SOCKET: Final = "the local socket"
CLOSE_SECONDS: Final = 0.5  # that saying goodbye may take

# Of others' connections an ordinary user sees hardly more than whose they are: ours are known by their name.
_FACTS: Final = text(
    "SELECT CAST(current_setting('server_version_num') AS int) AS version,"
    " current_setting('server_version') AS version_name, pg_encoding_to_char(encoding) AS encoding,"
    " rolsuper AS is_superuser, pg_is_in_recovery() AS is_replica,"
    " current_setting('transaction_read_only') = 'on' AS is_read_only,"
    " CAST(current_setting('max_connections') AS int) AS max_connections,"
    " CAST(current_setting('superuser_reserved_connections') AS int)"
    " + CAST(coalesce(current_setting('reserved_connections', true), '0') AS int) AS reserved,"
    " nullif(rolconnlimit, -1) AS role_limit, nullif(datconnlimit, -1) AS database_limit,"
    " (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL"
    " AND application_name IS DISTINCT FROM current_setting('application_name')) AS others,"
    " extract(epoch FROM now() - pg_last_xact_replay_timestamp()) AS lag,"
    # A place in the log as a number of bytes. What is not flushed yet is sent to no replica.
    " CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'"
    " AS bigint) AS position, EXISTS (SELECT FROM pg_stat_wal_receiver) AS is_receiving"
    " FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user"
)
_CLUSTER: Final = text("SELECT system_identifier FROM pg_control_system()")


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What one server says. Limits are numbers of connections, None where there is none.

    Attributes:
        address: host, port and name.
        is_encrypted: whether we speak TLS with it, or with the PgBouncer in between.
        others: connections that are not ours.
        lag: seconds since the last transaction that a replica has taken over; None at a primary.
        position: the place in the log, in bytes, up to which a primary has written and a replica has taken over.
        is_receiving: whether a replica is connected to where its log comes from; False at a primary.
        cluster: the number that a primary shares with its replicas and nobody else; None where it is not told.
    """

    address: str
    is_local: bool
    version: int
    version_name: str
    encoding: str
    is_superuser: bool
    is_replica: bool
    is_read_only: bool
    max_connections: int
    reserved: int
    role_limit: int | None
    database_limit: int | None
    is_encrypted: bool
    others: int
    lag: float | None
    position: int | None
    is_receiving: bool
    cluster: int | None
    clock: Clock

    @property
    def room(self) -> int:
        """The connections that this user can have at most, when nobody else has any."""
        limits = (self.max_connections - self.reserved, self.role_limit, self.database_limit)
        return min(limit for limit in limits if limit is not None)


@asynccontextmanager
async def connected(
    settings: PostgresSettings, address: PostgresAddress | None = None
) -> AsyncIterator[AsyncConnection]:
    """One connection, to a replica if its address is given. Raises: DatabaseUnavailable."""
    engine = create_engine(settings, pool_size=1, address=address)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await engine.dispose()


async def ask(settings: PostgresSettings, address: PostgresAddress | None = None) -> DatabaseFacts:
    """The facts about the primary, or about the server at the address. Raises: DatabaseUnavailable."""
    async with connected(settings, address) as connection:
        facts = (await connection.execute(_FACTS)).one()._asdict()
        clock = await read_clock(lambda: _now(connection))
        where = (address or settings.postgres_address).url
        return DatabaseFacts(
            address=address_of(where),
            is_local=all(host == _SOCKET or is_this_machine(host) for host in _hosts(where)),
            is_encrypted=await _is_encrypted(connection),
            clock=clock,
            cluster=await _cluster(connection),
            **facts | {"lag": None if facts["lag"] is None else float(facts["lag"])},
        )


def address_of(url: URL) -> str:
    """Where it is, without user and password."""
    ports = str(url.query.get("port", url.port or PORT)).split(",")
    hosts = ", ".join(f"{host}:{port}" for host, port in zip(_hosts(url), ports, strict=True))
    return f"{hosts}/{url.database}"


def _hosts(url: URL) -> list[str]:
    """The hosts, as `app.core.db.address` writes several of them."""
    return [host or _SOCKET for host in str(url.query.get("host", url.host or "")).split(",")]


async def _is_encrypted(connection: AsyncConnection) -> bool:
    # By the connection itself: behind PgBouncer, pg_stat_ssl tells of PgBouncer's connection to the server.
    driver: Any = (await connection.get_raw_connection()).driver_connection
    return driver._transport.get_extra_info("ssl_object") is not None


async def _now(connection: AsyncConnection) -> float:
    return float((await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())


async def _cluster(connection: AsyncConnection) -> int | None:
    try:
        return int((await connection.execute(_CLUSTER)).scalar_one())
    except DBAPIError:  # Managed services may keep it to themselves.
        return None
