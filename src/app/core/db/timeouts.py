"""Limits on how long a statement may take, other than the setting's: how they get to the driver and to the server."""

from contextvars import ContextVar
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session

from app.core.db.engine import milliseconds
from app.core.db.not_loaded import ExplainingSession
from app.core.db.sharing import is_host_used

NO_LIMIT: Final = 0.0
LIMIT: Final = "statement_timeout"  # of a session, in its `info`

_of_request: ContextVar[float | None] = ContextVar("statement_timeout_of_the_request", default=None)


def request_limit() -> float | None:
    """The limit of the current request in seconds, `NO_LIMIT`, or None for the usual one."""
    return _of_request.get()


def set_request_limit(seconds: float | None) -> None:
    """Sets what `request_limit` returns from now on, in this request or task."""
    _of_request.set(seconds)


class LimitedSession(ExplainingSession):
    """Its transactions begin with the limit of the session, or else of the request.

    One that uses the connection of another session has the limit of that.
    """


@event.listens_for(LimitedSession, "after_begin")
def _limit_transaction(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    seconds = session.info.get(LIMIT, _of_request.get())
    if seconds is not None and not transaction.nested and not is_host_used(session):
        limit_statements(connection, seconds)


def limit_statements(connection: Connection, seconds: float | None) -> None:
    """Limits the statements that follow: until the transaction ends, or in autocommit the connection's use.

    Args:
        connection: in a transaction.
        seconds: the limit, `NO_LIMIT`, or None for the usual one.
    """
    driver: Any = connection.connection.driver_connection
    autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    if seconds is None:
        driver.restore_limit()
    else:
        driver.limit_statements(seconds or None, of_server=autocommit)
    value = "DEFAULT" if seconds is None else milliseconds(seconds or None)
    connection.exec_driver_sql(f"SET {'SESSION' if autocommit else 'LOCAL'} statement_timeout TO {value}")
