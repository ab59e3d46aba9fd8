"""How long a statement may take where the setting's limit does not fit: in a block, or in a request."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import open_transactions
from app.core.db.outages import DatabaseUnavailable
from app.core.db.sharing import ReadingSession
from app.core.db.timeouts import LIMIT, NO_LIMIT, limit_statements, request_limit, set_request_limit


@asynccontextmanager
async def statement_timeout(db: AsyncSession, seconds: float | None) -> AsyncIterator[None]:
    """Limits each statement of this session within the block: `async with statement_timeout(db, 60):`.

    It goes before the limit of the request and the setting. It costs a statement at the begin of the block and one at
    its end.

    Args:
        db: the session.
        seconds: how long one statement may take; None for any time.

    Raises: ValueError for a limit that is not above 0. In the block, a statement that takes longer is StatementTimeout.
    """
    outer, limit = db.info.get(LIMIT), _checked(seconds)
    await _apply(db, limit)
    db.info[LIMIT] = limit  # For a transaction that begins within the block.
    try:
        yield
    finally:
        if outer is None:
            del db.info[LIMIT]
        else:
            db.info[LIMIT] = outer
        if db.in_transaction():
            await _restore(db, outer)


def request_statement_timeout(seconds: float | None) -> Callable[[], AsyncIterator[None]]:
    """Makes a dependency that limits each statement of a request: `Depends(request_statement_timeout(60))`.

    For a route (`dependencies=[...]`) or a router. The innermost one counts, whatever the session: `SessionDep`,
    `ReadingSessionDep`, `reading()`. Each transaction then begins with one statement more.

    Args:
        seconds: how long one statement may take; None for any time.

    Raises: ValueError for a limit that is not above 0. A statement that takes longer is StatementTimeout.
    """
    limit = _checked(seconds)

    async def limit_statements_of_request() -> AsyncIterator[None]:
        before = request_limit()
        set_request_limit(limit)
        for db in open_transactions():
            if db.in_transaction():
                await _apply(db, limit)
        try:
            yield
        finally:
            set_request_limit(before)

    return limit_statements_of_request


def _checked(seconds: float | None) -> float:
    if seconds is None:
        return NO_LIMIT
    if not seconds > 0:
        raise ValueError("A statement timeout is a number of seconds above 0, or None.")
    return float(seconds)


async def _apply(db: AsyncSession, seconds: float | None) -> None:
    await (await db.connection()).run_sync(limit_statements, seconds)


async def _restore(db: AsyncSession, outer: float | None) -> None:
    session = db.sync_session
    if outer is None and isinstance(session, ReadingSession) and session.host is not None:
        outer = session.host.info.get(LIMIT)  # Its connection has the limit of the block around this one.
    try:
        await _apply(db, request_limit() if outer is None else outer)
    except (SQLAlchemyError, DatabaseUnavailable):
        return  # The transaction is aborted, or its connection lost: the limit has ended with it.
