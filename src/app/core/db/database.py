"""Sessions: transactions, and single questions, on the one engine of the process.

It is opened and closed by the app's or worker's lifespan.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import PostgresSettings
from app.core.db.changes import ChangeTracking, forget_changes, note_statement, take_events
from app.core.db.commits import note_commit
from app.core.db.engine import create_engine, shares_connections
from app.core.db.outages import DatabaseUnavailable, TransactionAborted, is_aborted
from app.core.db.sharing import (
    ReadingSession,
    SharingSession,
    WritingSession,
    add_session,
    ending,
    forget_sessions,
    has_holder,
    hide_session,
    note_error,
    open_sessions,
    remove_session,
    wait_for_guests,
)
from app.core.db.timeouts import LimitedSession, request_limit
from app.core.events import Subscription, publish
from app.core.exceptions.http_exceptions import Problem

_AFTER_COMMIT = "after_commit"
_DUE = "after_commit, which is made"
_AROUND_COMMIT = "around_commit"
_AFTER_ROLLBACK = "after_rollback"
_ROLLED_BACK = "after_rollback, which is made"
_UNNOTICED = "committed, and nobody was told"
MAX_ROUNDS = 10  # of events that handlers of events cause
_NOT_OPEN = "The database is not open: call open_database() first."

_sessions: async_sessionmaker["Transaction"] | None = None
_readers: async_sessionmaker["Reader"] | None = None  # in which each statement is a transaction of its own
_limited_readers: async_sessionmaker["Reader"] | None = None  # for requests with a statement timeout of their own
_subscriptions: Sequence[Subscription] = ()

log = structlog.stdlib.get_logger("slipway.database")


Around = Callable[[AsyncSession], AbstractAsyncContextManager[None]]


class _Noticing(WritingSession, LimitedSession):
    """Notes that it was committed, in whatever way: `async with db.begin()` does not ask `Transaction.commit`."""


@event.listens_for(_Noticing, "after_commit")
def _note_commit(session: Session) -> None:
    if not session.in_nested_transaction():  # The end of a savepoint is no commit.
        session.info[_UNNOTICED] = True
        note_commit()
        session.info.setdefault(_DUE, []).extend(action for action, _ in session.info.pop(_AFTER_COMMIT, ()))
        session.info.pop(_AFTER_ROLLBACK, None)


@event.listens_for(_Noticing, "after_soft_rollback")
def _note_rollback(session: Session, previous: SessionTransaction) -> None:
    """Drops the actions that were registered in what is rolled back: a savepoint, or all of the transaction.

    Those that `after_rollback` has registered in it are due.
    """
    ended = previous
    while not ended.nested and ended.parent is not None:  # A failed flush ends what it was a part of.
        ended = ended.parent
    if _AFTER_COMMIT in session.info:
        kept = [one for one in session.info[_AFTER_COMMIT] if not _is_rolled_back(one[1], ended)]
        session.info[_AFTER_COMMIT] = kept
    if _AFTER_ROLLBACK in session.info:
        registered = session.info.pop(_AFTER_ROLLBACK)
        due = [action for action, savepoint in registered if _is_rolled_back(savepoint, ended)]
        session.info.setdefault(_ROLLED_BACK, []).extend(due)
        session.info[_AFTER_ROLLBACK] = [one for one in registered if not _is_rolled_back(one[1], ended)]
    if not ended.nested:
        forget_changes(session)


def _is_rolled_back(savepoint: SessionTransaction | None, ended: SessionTransaction) -> bool:
    """Whether what was registered in a savepoint ends with this one, or with all of the transaction."""
    return not ended.nested or _is_within(savepoint, ended)


def _is_within(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is outer


class _Tracking(_Noticing, ChangeTracking):
    """Notes what is changed as well, for the subscriptions."""


event.listen(_Tracking, "do_orm_execute", note_statement)


class Transaction(AsyncSession):
    """A session whose commits do what was registered to be done with them, whoever commits."""

    sync_session_class = _Noticing
    sync_session: _Noticing

    async def commit(self) -> None:
        """Commits, between the entering and the leaving of what is around it; then what comes after it is done.

        Raises: TransactionAborted when an error has ended the transaction before; and as any statement.
        """
        async with AsyncExitStack() as around_it:
            try:
                if self.sync_session.was_rolled_back:
                    raise TransactionAborted
                await self._publish_changes()
                for around in self.info.get(_AROUND_COMMIT, ()):
                    await around_it.enter_async_context(around(self))
                async with ending(self.sync_session):
                    await self._commit_at_last()
            except SQLAlchemyError as error:
                if is_aborted(error):
                    raise TransactionAborted from error
                raise
            after_it = around_it.pop_all()
        self.info.pop(_UNNOTICED, None)
        # It is committed: not even a caller who leaves now can stop what follows from it.
        await asyncio.shield(asyncio.create_task(self._after_commit(after_it)))

    async def _commit_at_last(self) -> None:
        try:
            await super().commit()
        except (DatabaseUnavailable, asyncio.CancelledError):  # It may be committed all the same.
            for actions in (_AFTER_ROLLBACK, _ROLLED_BACK):
                self.info.pop(actions, None)
            raise

    async def _publish_changes(self) -> None:
        if not isinstance(self.sync_session, ChangeTracking):
            return
        for _ in range(MAX_ROUNDS):
            events = await take_events(self)
            if not events:
                return
            for action in await publish(self, events, _subscriptions):
                after_commit(self, action)
        raise RuntimeError("The handlers of events change rows again and again: each change is another event.")

    async def rollback(self) -> None:
        """SQLAlchemy's, once no other task uses the transaction."""
        async with ending(self.sync_session):
            await super().rollback()

    async def _after_commit(self, leaving: AsyncExitStack) -> None:
        """Does what follows from the commit, in a task of its own, and in no later transaction of this session."""
        hide_session(self)
        for action in (leaving.aclose, *self.info.pop(_DUE, ())):
            try:
                await action()
            except Exception:
                log.exception("action after commit failed")

    async def run_rollback_actions(self) -> None:
        """Runs what `after_rollback` has registered, unless the transaction was committed."""
        rest = [action for action, _ in self.info.pop(_AFTER_ROLLBACK, ())]
        for action in (*self.info.pop(_ROLLED_BACK, ()), *rest):
            try:
                await action()
            except Exception:
                log.exception("action after rollback failed")


def open_database(
    settings: PostgresSettings,
    *,
    pool_size: int | None = None,
    time_limit: bool = True,
    subscriptions: Sequence[Subscription] = (),
) -> AsyncEngine:
    """Makes the engine that `async_get_db` uses from now on. Connects only when first asked to.

    Args:
        settings: where it is.
        pool_size: how many connections it may have, if not `POSTGRES_POOL_SIZE`.
        time_limit: whether a statement may take `POSTGRES_STATEMENT_TIMEOUT_SECONDS` only; False where
            something else ends it.
        subscriptions: what is called when transactions change something.
    """
    global _sessions, _readers, _limited_readers, _subscriptions
    for note in settings.postgres_address.notes:
        log.warning(f"POSTGRES_URL: {note}")
    engine = create_engine(settings, pool_size=pool_size or settings.POSTGRES_POOL_SIZE, time_limit=time_limit)
    # Before the listener that raises another error.
    event.listen(engine.sync_engine, "handle_error", note_error, insert=True)
    # Closed for good: one that is used again, while an answer is streamed, say, would never give its connection back.
    _sessions = async_sessionmaker(
        engine,
        class_=Transaction,
        sync_session_class=_Tracking if subscriptions else _Noticing,
        expire_on_commit=False,
        close_resets_only=False,
    )
    _subscriptions = subscriptions
    _readers = _readers_of(engine)
    _limited_readers = _committing_readers_of(engine)
    return engine


class Reader(AsyncSession):
    """What `reading` opens: each statement is a transaction of its own.

    While a transaction is open in this request, job or task, its statements are part of that.
    """

    sync_session_class = ReadingSession
    sync_session: ReadingSession

    @property
    def is_alone(self) -> bool:
        """Whether its next statement takes a connection of its own from the pool."""
        session = self.sync_session
        return not (
            isinstance(self, _OneTransaction) or session.in_transaction() or (session.shares and has_holder(session))
        )


class _CommittingSession(ReadingSession, LimitedSession):
    def release(self) -> None:
        self.commit()


class _OneTransaction(Reader):
    """What it opens where PgBouncer is in between: a statement alone takes two steps, which have to be one.

    Also in a request with a statement timeout of its own, which is set on the server for one transaction.
    """

    sync_session_class = _CommittingSession


# A session that shares a connection does not commit what is another's.
_OPTIONS: Final[dict[str, Any]] = {"expire_on_commit": False, "join_transaction_mode": "rollback_only"}


def _readers_of(engine: AsyncEngine) -> async_sessionmaker[Reader]:
    if shares_connections(engine):
        return _committing_readers_of(engine)
    return async_sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"), class_=Reader, **_OPTIONS)


def _committing_readers_of(engine: AsyncEngine) -> async_sessionmaker[Reader]:
    # Not the engine itself, by which a session tells a connection of its own from the one that it shares.
    return async_sessionmaker(engine.execution_options(), class_=_OneTransaction, **_OPTIONS)


async def close_database(engine: AsyncEngine) -> None:
    """Closes every connection of the engine."""
    global _sessions, _readers, _limited_readers
    _sessions = _readers = _limited_readers = None
    await engine.dispose()


async def async_get_db() -> AsyncIterator[AsyncSession]:
    """A session that is one transaction: committed when its user is done, rolled back on any error.

    As a dependency it needs `scope="function"`, so that the commit comes before the response starts and a failed
    commit is an error rather than a false success.

    An error of the database that the handler has caught aborts the transaction: it is rolled back, one line in the log
    says so, and the handler's answer goes out. What is to survive such an error needs a savepoint (`begin_nested`).

    Raises: DatabaseUnavailable when PostgreSQL cannot be reached or asks to try again; TransactionAborted when a
        statement was cancelled, by `asyncio.timeout`, say.
    """
    async with _TransactionScope(of_request=True) as db:
        yield db


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """The same for a job or a script. Here a transaction that is aborted is an error: nobody has answered it.

    Raises: TransactionAborted when an error that was caught has aborted the transaction; and as `async_get_db`.
    """
    return _TransactionScope(of_request=False)


class _TransactionScope(AbstractAsyncContextManager[AsyncSession]):
    __slots__ = ("_db", "_of_request")

    def __init__(self, *, of_request: bool) -> None:
        self._of_request = of_request

    async def __aenter__(self) -> AsyncSession:
        if _sessions is None:
            raise RuntimeError(_NOT_OPEN)
        self._db = _sessions()
        _adopt(self._db)
        return self._db

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        db = self._db
        try:
            if error is None or (isinstance(error, Problem) and error.keeps_changes):
                await self.end(db, of_request=self._of_request)
            elif _UNNOTICED in db.info and not isinstance(error, GeneratorExit):
                await db.rollback()
                await _commit(db)  # Of nothing, but for what has to follow from the commit that was made before.
            if isinstance(error, PoolTimeoutError):
                raise DatabaseUnavailable from error
        except PoolTimeoutError as pool_error:
            raise DatabaseUnavailable from pool_error
        finally:
            await _close(db)

    @staticmethod
    async def end(db: "Transaction", *, of_request: bool) -> None:
        """Commits, or rolls back what a caught error has aborted. Raises: TransactionAborted, in jobs and scripts."""
        if db.sync_session.is_closed:  # by `end_open_sessions`
            return
        try:
            await _commit(db)
            remove_session(db)
            if db.in_transaction() or db.sync_session.guests:  # Another task has joined it since.
                await db.commit()
        except TransactionAborted as error:
            # Whoever catches an error answers for it; a cancelled statement shows no sign that the rows are gone.
            is_noticed = db.sync_session.is_aborted or not db.sync_session.is_cancelled
            await db.rollback()
            if not (of_request and is_noticed):
                raise
            log.warning("request's transaction was rolled back", caught=type(error.__cause__ or error).__name__)


async def _commit(db: AsyncSession) -> None:
    if db.in_transaction() or db.info:  # A session that nobody used costs nothing: not even a switch to a greenlet.
        await db.commit()


# ---- What is done with a commit ----


def after_commit(db: AsyncSession, action: Callable[[], Awaitable[object]]) -> None:
    """Has this done once the transaction is committed, and not at all when it is rolled back, or its savepoint is.

    The change is made by then: an action that fails is logged, and the caller is not told.
    """
    db.info.setdefault(_AFTER_COMMIT, []).append((action, db.sync_session.get_nested_transaction()))


def after_rollback(db: AsyncSession, action: Callable[[], Awaitable[object]]) -> None:
    """Has this done once the transaction, or the savepoint that is open, is rolled back, and not when it is committed.

    For what a transaction cannot take back by itself, such as a stored file. An action that fails is logged. When the
    connection is lost during the commit, or the caller is cancelled, it is not done: the transaction may be committed.
    """
    db.info.setdefault(_AFTER_ROLLBACK, []).append((action, db.sync_session.get_nested_transaction()))


def actions_after_commit(db: AsyncSession, *, of_savepoint: bool = True) -> list[Callable[[], Awaitable[object]]]:
    """The actions that are registered so far: within the current savepoint, or in all of the transaction."""
    current = db.sync_session.get_nested_transaction()
    registered = db.info.get(_AFTER_COMMIT, ())
    return [action for action, savepoint in registered if savepoint is current or not of_savepoint]


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


_watched: ContextVar[tuple[Watched, ...]] = ContextVar("watched_commits", default=())


@contextmanager
def around_commits(around: Around) -> Iterator[Watched]:
    """`around_commit` for the transactions that are open in this request or task, and those opened inside of this."""
    watched = Watched(around)
    for db in open_sessions():
        if isinstance(db, Transaction):
            around_commit(db, around)
            watched.transactions += 1
    before = _watched.set((*_watched.get(), watched))
    try:
        yield watched
    finally:
        _watched.reset(before)


def open_transactions() -> tuple[AsyncSession, ...]:
    """The sessions of `async_get_db` and `transaction` that are open in this request or task."""
    return tuple(db for db in open_sessions() if isinstance(db, Transaction))


def begin_request() -> None:
    """Whatever is open belongs to somebody else: in a test, requests share a context with the one who asks."""
    forget_sessions()


async def end_open_sessions() -> None:
    """Commits and closes what is open in this request, before its users are done with it.

    For a WebSocket that is accepted, and then lasts: a session of its handshake is not to keep a connection. One that
    is a transaction refuses to be used again. Raises what a commit raises.
    """
    for db in reversed(open_sessions()):  # The innermost first, which may use the connection of another one.
        if isinstance(db, Transaction):
            await _TransactionScope.end(db, of_request=True)
        await _close(db)


def _adopt(db: AsyncSession) -> None:
    add_session(db)
    for watched in _watched.get():
        around_commit(db, watched.around)
        watched.transactions += 1


def reading() -> AbstractAsyncContextManager[AsyncSession]:
    """A session in which each statement is a transaction of its own: one round trip, and no lock that lasts.

    For a question that is answered before what a request then does in its own transaction. While a session that is
    open in this request, job or task holds a connection, the statements go through that one: they see what its
    transaction has written, and are part of it.

    Raises: DatabaseUnavailable when PostgreSQL cannot be reached or asks to try again.
    """
    if _readers is None or _limited_readers is None:
        raise RuntimeError(_NOT_OPEN)
    return _Reading(_readers if request_limit() is None else _limited_readers)


def separate_reading() -> AbstractAsyncContextManager[AsyncSession]:
    """`reading`, which is never part of an open transaction. Its caller must not hold a connection of the pool."""
    if _readers is None:
        raise RuntimeError(_NOT_OPEN)
    return _Reading(_readers, shares=False)


def reader_of(engine: AsyncEngine) -> Callable[[], AbstractAsyncContextManager[AsyncSession]]:
    """`separate_reading` on another engine's connections."""
    return partial(_Reading, _readers_of(engine), shares=False)


def open_transaction() -> "Transaction | None":
    """The transaction that is open in this request, job or task: the innermost one. None where none is."""
    for db in reversed(open_sessions()):
        if isinstance(db, Transaction) and db.sync_session.can_be_joined:
            return db
    return None


class _Reading(AbstractAsyncContextManager[AsyncSession]):
    """Not a generator: half of what the opening of a session takes would go to its frames, for every question."""

    __slots__ = ("_db", "_readers", "_shares")

    def __init__(self, readers: async_sessionmaker[Reader], *, shares: bool = True) -> None:
        self._readers = readers
        self._shares = shares

    async def __aenter__(self) -> AsyncSession:
        self._db = self._readers()
        if self._shares:
            add_session(self._db)
        else:
            self._db.sync_session.shares = False
        return self._db

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            # Also after an error: in autocommit, what it has written would be there as well.
            if (error is None or isinstance(error, Exception)) and isinstance(self._db, _OneTransaction):
                await self._commit()
        finally:
            await _close(self._db)
        if isinstance(error, PoolTimeoutError):
            raise DatabaseUnavailable from error

    async def _commit(self) -> None:
        try:
            await self._db.commit()
        except SQLAlchemyError as error:
            if not is_aborted(error):
                raise
            log.warning("reading session was rolled back", caught=type(error).__name__)


async def _close(db: AsyncSession) -> None:
    """Closes a session, whoever is cancelled meanwhile; at once when there is nothing to wait for."""
    remove_session(db)
    session = db.sync_session
    guests = session.guests if isinstance(session, SharingSession) else None
    if guests or db.in_transaction() or db.info.get(_ROLLED_BACK) or db.info.get(_AFTER_ROLLBACK):
        # In a task of its own: in a scope of anyio that is cancelled, each further await here is cancelled as well.
        await asyncio.shield(asyncio.create_task(_end_use(db, asyncio.current_task())))
    else:
        session.close()
        if isinstance(session, ReadingSession):
            session.end_use()


async def _end_use(db: AsyncSession, user: asyncio.Task[Any] | None) -> None:
    session = db.sync_session
    try:
        if isinstance(session, SharingSession):
            await wait_for_guests(session, besides=user)
        await db.close()
    finally:
        if isinstance(session, ReadingSession):
            session.end_use()
        if isinstance(db, Transaction):
            await db.run_rollback_actions()


def violated_constraint(error: IntegrityError) -> str | None:
    """The name of the constraint a statement violated."""
    cause = getattr(error.orig, "__cause__", None)
    return getattr(cause, "constraint_name", None)
