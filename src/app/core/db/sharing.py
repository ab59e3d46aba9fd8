"""One connection for all sessions of a request, job or task.

A session that needs a connection uses the one that another session of its context holds. Otherwise requests that hold
one connection and wait for a second one block each other as soon as the pool is used up.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.util import await_
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.not_loaded import ExplainingSession

MAX_WAIT: Final = 5.0  # seconds that one task waits for another one's use of their session
POLL_INTERVAL: Final = 0.002  # seconds

# The sessions that are open in this context, the innermost last. Tasks that are started inside inherit them.
_open: ContextVar[tuple[AsyncSession, ...]] = ContextVar("open_sessions", default=())


class SharingSession(ExplainingSession):
    """Knows the connection that it holds, and the tasks that use it.

    Attributes:
        connection_held: its own connection, between the first statement of a transaction and the end of that.
        is_closed: whether it was closed for good. Tasks that outlive it must not use it.
        is_ending: whether its transaction is being committed or rolled back.
        is_aborted: whether an error of PostgreSQL has ended its transaction, which nothing can be a part of any more.
        is_cancelled: whether a statement of its transaction was cancelled in this process, which has ended it as well.
        beginner: the task that executes the first statement of a transaction.
        guests: how often each task uses it from another session.
        has_waited: whether its end has waited for them for `MAX_WAIT` already.
    """

    connection_held: Connection | None = None
    is_closed = False
    is_ending = False
    is_aborted = False
    is_cancelled = False
    beginner: asyncio.Task[Any] | None = None
    guests: dict[asyncio.Task[Any], int] | None = None
    has_waited = False

    @property
    def can_be_joined(self) -> bool:
        """Whether another session may use its transaction."""
        return not (self.is_closed or self.is_ending or self.is_aborted or self.is_cancelled)

    @property
    def shared_connection(self) -> Connection | None:
        """The connection that other sessions may use."""
        held = self.connection_held
        return held if held is not None and not held.closed and self.can_be_joined else None

    def enter(self) -> asyncio.Task[Any]:
        """Notes that the current task uses its transaction, which does not end before `leave`. Returns: the task."""
        task = _current_task()
        if self.guests is None:
            self.guests = {}
        self.guests[task] = self.guests.get(task, 0) + 1
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """Reverses `enter`."""
        if self.guests is not None:
            self.guests[task] -= 1
            if not self.guests[task]:
                del self.guests[task]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Keeps its transaction from ending while the current task uses it."""
        task = self.enter()
        try:
            yield
        finally:
            self.leave(task)

    def wait_for_first_statement(self) -> None:
        """Waits, in a greenlet, while another task executes the first statement of the transaction."""
        task, deadline = _current_task(), monotonic() + MAX_WAIT
        while (
            self.connection_held is None
            and (beginner := self.beginner) is not None
            and beginner is not task
            and not beginner.done()
            and monotonic() < deadline
        ):
            await_(asyncio.sleep(POLL_INTERVAL))


class WritingSession(SharingSession):
    """The synchronous part of a transaction's session."""

    @property
    def was_rolled_back(self) -> bool:
        """Whether its transaction was aborted, and rolled back by another session on its connection after a flush."""
        held = self.connection_held
        return self.is_aborted and held is not None and not held.closed and not held.in_transaction()

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """SQLAlchemy's, which is called before each statement."""
        if self.connection_held is None:
            self.wait_for_first_statement()
            if self.connection_held is None:
                self.beginner = _current_task()
                _release_idle_readers()
        return super().get_bind(*args, **kwargs)

    def _connection_for_bind(self, *args: Any, **kwargs: Any) -> Connection:
        """SQLAlchemy's, which takes a connection. Where it gets none, nobody has to wait for it any more."""
        try:
            return super()._connection_for_bind(*args, **kwargs)
        except BaseException:
            self.beginner = None
            raise


class ReadingSession(SharingSession):
    """The synchronous part of a session in which each statement is a transaction of its own.

    Attributes:
        shares: whether it uses the connection of another session.
        host: the session whose connection it uses.
        guest: the task that began to use it.
        users: the tasks that have executed statements.
    """

    shares = True
    host: SharingSession | None = None
    guest: asyncio.Task[Any]
    users: frozenset[asyncio.Task[Any]] = frozenset()

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """SQLAlchemy's, which is called before each statement."""
        if self.shares:
            self.users |= {_current_task()}
            if self.connection_held is None and (host := self._find_host()) is not None:
                connection = host.shared_connection
                if connection is not None:
                    return connection
        return super().get_bind(*args, **kwargs)

    def release(self) -> None:
        """Gives its connection back, in a greenlet. What it has loaded stays loaded."""
        if (transaction := self.get_transaction()) is not None:
            transaction.close()

    def end_use(self) -> None:
        """Lets the host's transaction end."""
        if self.host is not None:
            self.host.leave(self.guest)
            self.host = None

    def _find_host(self) -> SharingSession | None:
        host = holder(self)
        if host is not self.host:
            self.end_use()
            self.host = host
            if host is not None:
                self.guest = host.enter()
        return host


@event.listens_for(SharingSession, "after_begin", propagate=True)
def _note_connection(session: SharingSession, _: SessionTransaction, connection: Connection) -> None:
    if not (isinstance(session, ReadingSession) and session.host is not None):
        session.connection_held = connection
        session.beginner = None


@event.listens_for(SharingSession, "after_transaction_end", propagate=True)
def _forget_connection(session: SharingSession, ended: SessionTransaction) -> None:
    if ended.parent is None:
        session.connection_held = session.beginner = None
        session.is_aborted = session.is_cancelled = False


def note_error(context: ExceptionContext) -> None:
    """Listens to the errors of an engine, for those that abort a transaction.

    These are the errors that the server reports outside of a savepoint, and the cancellation of a statement.
    """
    connection, error = context.connection, context.original_exception
    is_cancelled = isinstance(error, asyncio.CancelledError)
    is_reported = bool(getattr(error, "sqlstate", 0))
    if connection is None or not (is_cancelled or (is_reported and not connection.in_nested_transaction())):
        return
    for db in _open.get():
        session = db.sync_session
        if isinstance(session, WritingSession) and session.connection_held is connection:
            session.is_cancelled = session.is_cancelled or is_cancelled
            session.is_aborted = session.is_aborted or is_reported


def holder(besides: SharingSession) -> SharingSession | None:
    """The innermost open session of this context, other than this one, that holds a connection to share.

    In a greenlet: waits for one that is about to get its connection in another task.
    """
    for db in reversed(_open.get()):
        session = db.sync_session
        if session is besides or not isinstance(session, SharingSession) or session.is_closed:
            continue
        if session.connection_held is None and session.beginner not in (None, _current_task()):
            session.wait_for_first_statement()
        if session.shared_connection is not None:
            return session
    return None


def has_holder(besides: SharingSession) -> bool:
    """Whether this session would use another one's connection."""
    others = _open.get()
    return len(others) > 1 and any(_may_share(db.sync_session) for db in others if db.sync_session is not besides)


def _may_share(session: Session) -> bool:
    return isinstance(session, SharingSession) and (
        session.shared_connection is not None or (session.beginner is not None and session.can_be_joined)
    )


def is_part_of_a_transaction(db: AsyncSession) -> bool:
    """Whether what this reading session has written is committed by another session."""
    session = db.sync_session
    return isinstance(session, ReadingSession) and isinstance(session.host, WritingSession)


def is_host_used(session: Session) -> bool:
    """Whether a session uses the connection of another one."""
    return isinstance(session, ReadingSession) and session.host is not None


# ---- Which sessions are open ----


def open_sessions() -> tuple[AsyncSession, ...]:
    """The sessions that are open in this context, the innermost last."""
    return _open.get()


def add_session(db: AsyncSession) -> None:
    """Opens a session in this context."""
    _open.set((*_open.get(), db))


def remove_session(db: AsyncSession) -> None:
    """Closes it for all tasks that have inherited it."""
    session = db.sync_session
    if isinstance(session, SharingSession):
        session.is_closed = True
    hide_session(db)


def hide_session(db: AsyncSession) -> None:
    """Has nothing that follows in this context use its connection."""
    _open.set(tuple(other for other in _open.get() if other is not db))


def forget_sessions() -> None:
    """Hides what is open from what follows in this context."""
    _open.set(())


# ---- The end of a transaction ----


@asynccontextmanager
async def ending(session: SharingSession) -> AsyncIterator[None]:
    """Waits for other tasks that use this transaction, and lets none in while it ends."""
    session.is_ending = True
    try:
        await wait_for_guests(session)
        yield
    finally:
        session.is_ending = False


async def wait_for_guests(session: SharingSession, *, besides: asyncio.Task[Any] | None = None) -> None:
    """Returns when no task uses this transaction, but the current one and `besides`; after `MAX_WAIT` in any case.

    After one wait in vain it does not wait for this session again.
    """
    known, deadline = (_current_task(), besides), monotonic() + MAX_WAIT
    while any(guest not in known and not guest.done() for guest in session.guests or ()):
        if session.has_waited or monotonic() > deadline:
            session.has_waited = True
            return
        await asyncio.sleep(POLL_INTERVAL)


def _release_idle_readers() -> None:
    """Has a transaction that begins take the connection of a reading session of its task, not a second one."""
    for db in _open.get():
        reader = db.sync_session
        if (
            isinstance(reader, ReadingSession)
            and reader.connection_held is not None
            and reader.users <= {_current_task()}
        ):
            reader.release()


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("A session is used by tasks of asyncio only.")
    return task
