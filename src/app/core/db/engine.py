"""Connections to PostgreSQL: how they are made, and which of their errors say that it is away."""

import asyncio
from typing import Any

import asyncpg
from sqlalchemy import ExceptionContext, NullPool, event
from sqlalchemy.exc import DisconnectionError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.config import PostgresSettings
from app.core.db.address import PostgresAddress
from app.core.db.data_errors import hide_values
from app.core.exceptions.http_exceptions import ServiceUnavailable
from app.core.tracing import trace_engine

CONNECT_TIMEOUT = 3.0  # seconds
COMMAND_TIMEOUT = 5.0  # seconds, for one statement: nobody who asked over HTTP waits longer, but for the closing
CLOSE_TIMEOUT = 0.5  # seconds in which a connection is closed; a statement that took too long is cancelled first
POOL_TIMEOUT = 5.0  # seconds a request waits for a free connection

# What a statement gets whose table was altered since it was prepared. The next one is prepared anew.
_OUTDATED = "InvalidCachedStatementError"

# SQLSTATE classes that say "not now" rather than "not like this": connection, transaction rollback (deadlock),
# insufficient resources, operator intervention (shutdown, statement cancelled), lock not available.
_TRANSIENT = ("08", "40", "53", "57", "55P03")

_COMMIT = "COMMIT;"  # as asyncpg's transactions send it
_IN_FAILED_TRANSACTION = "25P02"

_SHARED = "slipway_shared_connections"


class DatabaseUnavailable(ServiceUnavailable):
    text = "The database is not available. Try again shortly."


class TransactionAborted(SQLAlchemyError):  # noqa: N818 -- a state, with what to do about it
    """An error had aborted the transaction before it was to be committed: nothing of it is written."""

    def __init__(self) -> None:
        super().__init__(
            "An error that was caught has aborted the transaction, and nothing of it is written. Run statements whose "
            "errors you handle in `async with db.begin_nested():`, or call `await db.rollback()` before you go on."
        )


def create_engine(
    settings: PostgresSettings, pool_size: int, *, time_limit: bool = True, address: PostgresAddress | None = None
) -> AsyncEngine:
    """An engine of so many connections, whose outages are `DatabaseUnavailable`. Connects only when first asked to.

    Args:
        settings: where the database is, and whether PgBouncer is in between.
        pool_size: how many connections it may have.
        time_limit: whether a statement may take `COMMAND_TIMEOUT` only; False where others see to it that it ends.
        address: where it is, if not where the settings say.
    """
    address = address or settings.postgres_address
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
            "command_timeout": COMMAND_TIMEOUT if time_limit else None,
            "connection_class": _Connection,
            "server_settings": {
                "application_name": "slipway",
                **address.server_settings,
                **_server_limit(settings, time_limit),
            },
            **_for_shared(settings),
        },
    )
    trace_engine(engine)  # Before the next one, which raises other errors.
    event.listen(engine.sync_engine, "handle_error", _raise_if_unavailable)
    event.listen(engine.sync_engine, "checkout", _replace_if_closed)
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

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109 -- asyncpg's
        """asyncpg's. Raises: TransactionAborted when a COMMIT has rolled back, which PostgreSQL takes for no error."""
        status: str = await super().execute(query, *args, timeout=timeout)
        if status == "ROLLBACK" and query == _COMMIT:
            raise TransactionAborted
        return status

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- asyncpg's own parameter
        """asyncpg's, which has the server stop what it still does. Raises: TimeoutError when it does not say so."""
        await super().close(timeout=CLOSE_TIMEOUT if timeout is None else min(timeout, CLOSE_TIMEOUT))


def _server_limit(settings: PostgresSettings, time_limit: bool) -> dict[str, str]:
    """The server's own limit, in milliseconds: a cancellation that does not arrive leaves no statement for ever.

    PgBouncer passes no such setting on.
    """
    if not time_limit or _are_shared(settings):
        return {}
    return {"statement_timeout": str(round(2000 * COMMAND_TIMEOUT))}


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
    if context.is_disconnect or is_transient(error):
        raise DatabaseUnavailable from error
    hide_values(context.sqlalchemy_exception or error)


def is_transient(error: BaseException) -> bool:
    """Whether the driver's error says "not now" rather than "not like this"."""
    state = getattr(error, "sqlstate", None) or ""
    return isinstance(error, TimeoutError) or state.startswith(_TRANSIENT) or type(error).__name__ == _OUTDATED


def is_aborted(error: BaseException) -> bool:
    """Whether an error says that the transaction was aborted by an earlier one."""
    if isinstance(error, PendingRollbackError | TransactionAborted):
        return True
    return getattr(getattr(error, "orig", error), "sqlstate", None) == _IN_FAILED_TRANSACTION


def _replace_if_closed(connection: Any, *_: object) -> None:
    # The server has closed it while it was idle. asyncpg knows, so asking costs nothing.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


async def _connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:
    # SQLAlchemy passes on what asyncpg raises here as it is: socket errors, a server that is starting up, ...
    try:
        return await asyncpg.connect(*args, **kwargs)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailable from error
