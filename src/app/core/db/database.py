"""The connection to PostgreSQL: one engine per process, opened and closed by the app's or worker's lifespan."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import structlog
from sqlalchemy import ExceptionContext, event
from sqlalchemy.exc import DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import PostgresSettings
from app.core.exceptions.http_exceptions import Problem, ServiceUnavailable

CONNECT_TIMEOUT = 3.0  # seconds
COMMAND_TIMEOUT = 5.0  # seconds, for one statement: nobody who asked over HTTP waits longer
POOL_TIMEOUT = 5.0  # seconds a request waits for a free connection

# What a statement gets whose table was altered since it was prepared. The next one is prepared anew.
_OUTDATED = "InvalidCachedStatementError"

# SQLSTATE classes that say "not now" rather than "not like this": connection, transaction rollback (deadlock),
# insufficient resources, operator intervention (shutdown, statement cancelled), lock not available.
_TRANSIENT = ("08", "40", "53", "57", "55P03")

_AFTER_COMMIT = "after_commit"
_DUE = "after_commit, which is made"
_AROUND_COMMIT = "around_commit"
_UNNOTICED = "committed, and nobody was told"
_NOT_OPEN = "The database is not open: call open_database() first."

_sessions: async_sessionmaker["Transaction"] | None = None
_readers: async_sessionmaker[AsyncSession] | None = None  # in which each statement is a transaction of its own

log = structlog.stdlib.get_logger("slipway.database")


Around = Callable[[AsyncSession], AbstractAsyncContextManager[None]]


class DatabaseUnavailable(ServiceUnavailable):
    text = "The database is not available. Try again shortly."


class _Noticing(Session):
    """Notes that it was committed, in whatever way: `async with db.begin()` does not ask `Transaction.commit`."""


@event.listens_for(_Noticing, "after_commit")
def _note_commit(session: Session) -> None:
    if not session.in_nested_transaction():  # The end of a savepoint is no commit.
        session.info[_UNNOTICED] = True
        session.info.setdefault(_DUE, []).extend(session.info.pop(_AFTER_COMMIT, ()))


@event.listens_for(_Noticing, "after_soft_rollback")
def _note_rollback(session: Session, previous: SessionTransaction) -> None:
    if previous.parent is None:
        session.info.pop(_AFTER_COMMIT, None)


class Transaction(AsyncSession):
    """A session whose commits do what was registered to be done with them, whoever commits."""

    sync_session_class = _Noticing

    async def commit(self) -> None:
        """Commits, between the entering and the leaving of what is around it; then what comes after it is done."""
        async with AsyncExitStack() as around_it:
            for around in self.info.get(_AROUND_COMMIT, ()):
                await around_it.enter_async_context(around(self))
            await super().commit()
            after_it = around_it.pop_all()
        self.info.pop(_UNNOTICED, None)
        # It is committed: not even a caller who leaves now can stop what follows from it.
        await asyncio.shield(asyncio.create_task(self._after_commit(after_it)))

    async def _after_commit(self, leaving: AsyncExitStack) -> None:
        for action in (leaving.aclose, *self.info.pop(_DUE, ())):
            try:
                await action()
            except Exception:
                log.exception("action after commit failed")


def open_database(settings: PostgresSettings, *, pool_size: int | None = None, time_limit: bool = True) -> AsyncEngine:
    """Makes the engine that `async_get_db` uses from now on. Connects only when first asked to.

    Args:
        settings: where it is.
        pool_size: how many connections it may have, if not `POSTGRES_POOL_SIZE`.
        time_limit: whether a statement may take `COMMAND_TIMEOUT` only; False where others see to it that it ends.
    """
    global _sessions, _readers
    engine = create_engine(settings, pool_size=pool_size or settings.POSTGRES_POOL_SIZE, time_limit=time_limit)
    # Closed for good: one that is used again, while an answer is streamed, say, would never give its connection back.
    _sessions = async_sessionmaker(engine, class_=Transaction, expire_on_commit=False, close_resets_only=False)
    _readers = _readers_of(engine)
    return engine


def _readers_of(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(
        engine.execution_options(isolation_level="AUTOCOMMIT"), class_=AsyncSession, expire_on_commit=False
    )


def create_engine(settings: PostgresSettings, pool_size: int, *, time_limit: bool = True) -> AsyncEngine:
    """An engine of so many connections, whose outages are `DatabaseUnavailable`."""
    engine = create_async_engine(
        settings.postgres_url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_recycle=1800,
        hide_parameters=True,  # An error's text would carry them, e-mail addresses and hashes too, into the log.
        connect_args={
            "async_creator_fn": _connect,
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": COMMAND_TIMEOUT if time_limit else None,
            "server_settings": {"application_name": "slipway"},
        },
    )
    event.listen(engine.sync_engine, "handle_error", _raise_if_unavailable)
    event.listen(engine.sync_engine, "checkout", _replace_if_closed)
    return engine


async def close_database(engine: AsyncEngine) -> None:
    """Closes every connection of the engine."""
    global _sessions, _readers
    _sessions = _readers = None
    await engine.dispose()


async def async_get_db() -> AsyncIterator[AsyncSession]:
    """A session that is one transaction: committed when its user is done, rolled back on any error.

    As a dependency it needs `scope="function"`, so that the commit comes before the response starts and a failed
    commit is an error rather than a false success.

    Raises: DatabaseUnavailable when PostgreSQL cannot be reached or asks to try again.
    """
    if _sessions is None:
        raise RuntimeError(_NOT_OPEN)
    db = _sessions()
    _adopt(db)
    try:
        try:
            yield db
        except BaseException as error:
            if isinstance(error, Problem) and error.keeps_changes:
                await _commit(db)
            elif _UNNOTICED in db.info and not isinstance(error, GeneratorExit):
                await db.rollback()
                await _commit(db)  # Of nothing, but for what has to follow from the commit that was made before.
            raise
        await _commit(db)
    except PoolTimeoutError as error:
        raise DatabaseUnavailable from error
    finally:
        _open.set(tuple(other for other in _open.get() if other is not db))
        if db.in_transaction():
            await asyncio.shield(asyncio.create_task(db.close()))
        else:
            db.sync_session.close()  # Nothing to wait for.


transaction = asynccontextmanager(async_get_db)  # the same for a job or a script: `async with transaction() as db:`


async def _commit(db: AsyncSession) -> None:
    if db.in_transaction() or db.info:  # A session that nobody used costs nothing: not even a switch to a greenlet.
        await db.commit()


# ---- What is done with a commit ----


def after_commit(db: AsyncSession, action: Callable[[], Awaitable[object]]) -> None:
    """Has this done once the transaction is committed, and not at all when it is rolled back.

    The change is made by then: an action that fails is logged, and the caller is not told.
    """
    db.info.setdefault(_AFTER_COMMIT, []).append(action)


def actions_after_commit(db: AsyncSession) -> list[Callable[[], Awaitable[object]]]:
    """What is registered so far, for who adds to what they have registered."""
    return list(db.info.get(_AFTER_COMMIT, ()))


def around_commit(db: AsyncSession, around: Around) -> None:
    """Has every commit of this session made inside of this context, which gets the session.

    What it does before, it does in the transaction; an error there rolls back. After a commit that failed it is left
    with that error.
    """
    db.info.setdefault(_AROUND_COMMIT, []).append(around)


@dataclass(slots=True)
class Watched:
    """What `around_commits` is about; `transactions` is how many there were."""

    around: Around
    transactions: int = 0


_open: ContextVar[tuple[AsyncSession, ...]] = ContextVar("open_transactions", default=())
_watched: ContextVar[tuple[Watched, ...]] = ContextVar("watched_commits", default=())


@contextmanager
def around_commits(around: Around) -> Iterator[Watched]:
    """`around_commit` for the transactions that are open in this request or task, and those opened inside of this."""
    watched = Watched(around)
    for db in _open.get():
        around_commit(db, around)
        watched.transactions += 1
    before = _watched.set((*_watched.get(), watched))
    try:
        yield watched
    finally:
        _watched.reset(before)


def begin_request() -> None:
    """Whatever is open belongs to somebody else: in a test, requests share a context with the one who asks."""
    _open.set(())


def _adopt(db: AsyncSession) -> None:
    _open.set((*_open.get(), db))
    for watched in _watched.get():
        around_commit(db, watched.around)
        watched.transactions += 1


@asynccontextmanager
async def reading() -> AsyncIterator[AsyncSession]:
    """A session in which each statement is a transaction of its own: one round trip, and no lock that lasts.

    For a question that is answered before, and outside of, what a request then does in its own transaction.

    Raises: DatabaseUnavailable when PostgreSQL cannot be reached or asks to try again.
    """
    if _readers is None:
        raise RuntimeError(_NOT_OPEN)
    async with _read(_readers) as db:
        yield db


def reader_of(engine: AsyncEngine) -> Callable[[], AbstractAsyncContextManager[AsyncSession]]:
    """`reading` on another engine's connections, which nobody else uses."""
    return partial(_read, _readers_of(engine))


@asynccontextmanager
async def _read(readers: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    try:
        async with readers() as db:
            yield db
    except PoolTimeoutError as error:
        raise DatabaseUnavailable from error


def violated_constraint(error: IntegrityError) -> str | None:
    """The name of the constraint a statement violated."""
    cause = getattr(error.orig, "__cause__", None)
    return getattr(cause, "constraint_name", None)


def _raise_if_unavailable(context: ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(error, asyncio.CancelledError):
        return  # By a time limit, or since nobody waits any more. SQLAlchemy takes it for a lost connection.
    state = getattr(error, "sqlstate", None) or ""
    transient = state.startswith(_TRANSIENT) or type(error).__name__ == _OUTDATED
    if context.is_disconnect or isinstance(error, TimeoutError) or transient:
        raise DatabaseUnavailable from error


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
