"""Errors of the database that say "not now" rather than "not like this", and transactions that are aborted."""

from typing import ClassVar, Final

from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError

from app.core.exceptions.http_exceptions import ServiceUnavailable

# SQLSTATE classes (PostgreSQL's manual, appendix A): connection, transaction rollback, insufficient resources, operator
# intervention (shutdown).
_TRANSIENT: Final = ("08", "40", "53", "57")
_IN_FAILED_TRANSACTION: Final = "25P02"
# What a statement gets whose table was altered since it was prepared. The next one is prepared anew.
_OUTDATED: Final = "InvalidCachedStatementError"


class DatabaseUnavailable(ServiceUnavailable):
    text = "The database is not available. Try again shortly."


class StatementTimeout(DatabaseUnavailable):
    """A statement was cancelled at its limit, or by an administrator. The database is there."""

    status = 504
    text = "A database statement of this request took longer than it may, and was cancelled."
    extra_headers: ClassVar[dict[str, str]] = {}


class TransactionTimeout(DatabaseUnavailable):
    status = 504
    text = "The database transaction of this request took longer than it may, and was ended."
    extra_headers: ClassVar[dict[str, str]] = {}


class LockTimeout(DatabaseUnavailable):
    text = "Another request holds a lock that this one needs. Try again shortly."


class TransactionConflict(DatabaseUnavailable):
    """A deadlock, or a serialization failure."""

    text = "This request collided with another one. Try again."


_BY_STATE: Final[dict[str, type[DatabaseUnavailable]]] = {
    "25P03": TransactionTimeout,  # idle_in_transaction_session_timeout
    "25P04": TransactionTimeout,  # transaction_timeout
    "40001": TransactionConflict,
    "40P01": TransactionConflict,
    "55P03": LockTimeout,  # lock_timeout, and NOWAIT
    "57014": StatementTimeout,  # statement_timeout, and pg_cancel_backend()
}


class TransactionAborted(SQLAlchemyError):  # noqa: N818 -- a state, with what to do about it
    """An error had aborted the transaction before it was to be committed: nothing of it is written."""

    def __init__(self) -> None:
        super().__init__(
            "An error or a cancellation that was caught has aborted the transaction, and nothing of it is written. For "
            "a time limit, use `statement_timeout` in place of `asyncio.timeout`. Run statements whose "
            "errors you handle in `async with db.begin_nested():`, or call `await db.rollback()` before you go on."
        )


def outage_of(error: BaseException) -> type[DatabaseUnavailable] | None:
    """The problem that a driver's error is when it says "not now"; None when it says "not like this"."""
    states = _states(error)
    for state in states:
        if state in _BY_STATE:
            return _BY_STATE[state]
    transient = any(state.startswith(_TRANSIENT) for state in states)
    if transient or isinstance(error, TimeoutError) or type(error).__name__ == _OUTDATED:
        return DatabaseUnavailable
    return None


def _states(error: BaseException) -> list[str]:
    """The SQLSTATEs of an error and of its causes, one of which is why the server has ended a connection."""
    states: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        states.append(getattr(cause, "sqlstate", None) or "")
        cause = cause.__cause__
    return states


def is_aborted(error: BaseException) -> bool:
    """Whether an error says that the transaction was aborted by an earlier one."""
    if isinstance(error, PendingRollbackError | TransactionAborted):
        return True
    return getattr(getattr(error, "orig", error), "sqlstate", None) == _IN_FAILED_TRANSACTION
