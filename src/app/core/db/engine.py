"""Connections to PostgreSQL: how they are made, for how long a statement may take, and how they are closed."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import asyncpg
from sqlalchemy import ExceptionContext, NullPool, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.config import PostgresSettings
from app.core.db.address import PostgresAddress
from app.core.db.data_errors import hide_values
from app.core.db.outages import DatabaseUnavailable, StatementTimeout, TransactionAborted, outage_of
from app.core.tracing import trace_engine

__all__ = [
    "DatabaseUnavailable",
    "create_engine",
    "create_migration_engine",
    "milliseconds",
    "shares_connections",
    "timed_out",
]

CONNECT_TIMEOUT = 3.0  # seconds
HANG_TIMEOUT = 0.5  # seconds after a statement's limit in which the server has to say that it has cancelled it
CLOSE_TIMEOUT = 0.5  # seconds in which a connection is closed; a statement that still runs is cancelled first
POOL_TIMEOUT = 5.0  # seconds a request waits for a free connection

_UNCHANGED: Final = object()
_COMMIT = "COMMIT;"  # as asyncpg's transactions send it

_SHARED = "slipway_shared_connections"


def create_engine(
    settings: PostgresSettings, pool_size: int, *, time_limit: bool = True, address: PostgresAddress | None = None
) -> AsyncEngine:
    """An engine of so many connections, whose outages are `DatabaseUnavailable`. Connects only when first asked to.

    Args:
        settings: where the database is, and whether PgBouncer is in between.
        pool_size: how many connections it may have.
        time_limit: whether a statement may take `POSTGRES_STATEMENT_TIMEOUT_SECONDS` only; False where something
            else ends it.
        address: where it is, if not where the settings say.
    """
    address = address or settings.postgres_address
    limit = settings.POSTGRES_STATEMENT_TIMEOUT_SECONDS if time_limit else None
    engine = create_async_engine(
        address.url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_recycle=1800,
        hide_parameters=True,  # An error's text would carry them, e-mail addresses and hashes too, into the log.
        execution_options={_SHARED: _are_shared(settings)},
        connect_args={
            "async_creator_fn": _connect,
            "timeout": CONNECT_TIMEOUT,
            **address.connect_arguments(),
            "command_timeout": _driver_limit(settings, limit),
            "connection_class": _Connection,
            "server_settings": {
                "application_name": "slipway",
                **address.server_settings,
                **_server_limit(settings, limit),
            },
            **_for_shared(settings),
        },
    )
    trace_engine(engine)  # Before the next one, which raises other errors.
    event.listen(engine.sync_engine, "handle_error", _raise_if_unavailable)
    event.listen(engine.sync_engine, "checkout", _prepare_for_use)
    return engine


def create_migration_engine(settings: PostgresSettings, timeout: float) -> AsyncEngine:
    """An engine for one connection, without a limit on what a statement takes. `timeout`: seconds to connect."""
    address = settings.postgres_address
    return create_async_engine(
        address.url,
        poolclass=NullPool,
        connect_args={
            "timeout": timeout,
            **address.connect_arguments(),
            "server_settings": dict(address.server_settings),
            **_for_shared(settings),
        },
    )


def shares_connections(engine: AsyncEngine) -> bool:
    """Whether each transaction can have another connection of the server's, so that what belongs together is one."""
    return bool(engine.get_execution_options().get(_SHARED))


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # it ships no types
    """Is closed soon, even when the server says nothing any more.

    SQLAlchemy closes one whose statement took too long before it raises, and would wait for 2 seconds.
    """

    hangs = False  # whether the server did not even say that it had stopped the last statement
    server_is_limited = False  # whether the limit was set on the server, for longer than a transaction
    _config: Any  # asyncpg's
    _usual_limit: Any = _UNCHANGED

    def limit_statements(self, seconds: float | None, *, of_server: bool = False) -> None:
        """Sets for how long the driver waits for a statement from now on, until `restore_limit`."""
        if self._usual_limit is _UNCHANGED:
            self._usual_limit = self._config.command_timeout
        self._config = self._config._replace(command_timeout=None if seconds is None else seconds + HANG_TIMEOUT)
        self.server_is_limited = self.server_is_limited or of_server

    def restore_limit(self) -> None:
        """Takes back `limit_statements`, but for the server."""
        if self._usual_limit is not _UNCHANGED:
            self._config = self._config._replace(command_timeout=self._usual_limit)
            self._usual_limit = _UNCHANGED

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 -- asyncpg's
        """asyncpg's. Raises: TransactionAborted when a COMMIT has rolled back, which PostgreSQL takes for no error."""
        status: str = await super().execute(query, *args, timeout=timeout)
        if status == "ROLLBACK" and query == _COMMIT:
            raise TransactionAborted
        return status

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- asyncpg's own parameter
        """asyncpg's, which has the server stop what it still does. Raises: TimeoutError when it does not say so."""
        try:
            await super().close(timeout=CLOSE_TIMEOUT if timeout is None else min(timeout, CLOSE_TIMEOUT))
        except TimeoutError:
            self.hangs = True
            raise


def _driver_limit(settings: PostgresSettings, seconds: float | None) -> float | None:
    """Later than the server, which says that a statement was too slow: if it does not, it hangs."""
    return seconds if seconds is None or _are_shared(settings) else seconds + HANG_TIMEOUT


def _server_limit(settings: PostgresSettings, seconds: float | None) -> dict[str, str]:
    """The server's own limit, in milliseconds. PgBouncer passes no such setting on."""
    if seconds is None or _are_shared(settings):
        return {}
    return {"statement_timeout": str(milliseconds(seconds))}


def milliseconds(seconds: float | None) -> int:
    """A limit as PostgreSQL takes it: 0 is none."""
    return 0 if seconds is None else min(max(1, round(1000 * seconds)), 2**31 - 1)


# ---- Behind PgBouncer, in transaction mode ----


class _SharedConnection(_Connection):
    """Asks for what it does in two steps in a transaction: the second step could go to another connection."""

    async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
        """asyncpg's, which looks up the type."""
        async with self.transaction():
            await super().set_type_codec(*args, **kwargs)


def _are_shared(settings: PostgresSettings) -> bool:
    return settings.POSTGRES_POOL_MODE == "transaction"


def _for_shared(settings: PostgresSettings) -> dict[str, Any]:
    """A prepared statement belongs to the server's connection, which is another one next time.

    So it has no name: the next statement without one takes its place, and nothing is left there that nobody closes.
    """
    if not _are_shared(settings):
        return {}
    return {
        "connection_class": _SharedConnection,
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    }


# ---- Outages ----


def _raise_if_unavailable(context: ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(error, asyncio.CancelledError):
        return  # By a time limit, or since nobody waits any more. SQLAlchemy takes it for a lost connection.
    if isinstance(error, TimeoutError) and context.connection is not None:
        pooled: Any = context.connection.connection
        pooled.dbapi_connection.run_async(_close)
        raise timed_out(pooled.driver_connection) from error
    outage = outage_of(error)
    if outage is not None or context.is_disconnect:
        raise (outage or DatabaseUnavailable) from error
    hide_values(context.sqlalchemy_exception or error)


async def _close(connection: _Connection) -> None:
    with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.close()


def timed_out(connection: _Connection) -> DatabaseUnavailable:
    """What it means that the driver has waited in vain, once the connection is closed.

    Args:
        connection: one whose server either has confirmed that it stopped the statement, or hangs.
    """
    return DatabaseUnavailable() if connection.hangs else StatementTimeout()


def _prepare_for_use(adapted: Any, *_: object) -> None:
    connection: _Connection = adapted.driver_connection
    # The server has closed it while it was idle. asyncpg knows, so asking costs nothing.
    if connection.is_closed():
        raise DisconnectionError
    connection.restore_limit()
    if connection.server_is_limited:
        adapted.run_async(_restore_server_limit)


async def _restore_server_limit(connection: _Connection) -> None:
    await connection.execute("RESET statement_timeout")
    connection.server_is_limited = False


async def _connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:
    # SQLAlchemy passes on what asyncpg raises here as it is: socket errors, a server that is starting up, ...
    try:
        return await asyncpg.connect(*args, **kwargs)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailable from error
