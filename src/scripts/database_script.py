"""How a script works on the database: one transaction, one line of what it did, one line when it could not."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, get_settings
from app.core.db.database import async_get_db, close_database, open_database
from app.core.db.engine import DatabaseUnavailable
from app.core.exceptions.http_exceptions import Problem
from app.subscriptions import SUBSCRIPTIONS

LOCK_KEY = 7_541_609_921  # any number of our own

Work = Callable[[AsyncSession, Settings], Awaitable[str]]


def run_in_database(work: Work) -> None:
    """Runs the work and prints the line it returns.

    Raises: SystemExit with one line of what went wrong, so that the exit code is not 0.
    """
    settings = get_settings()
    try:
        print(asyncio.run(_in_transaction(work, settings)))
    except DatabaseUnavailable as error:
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise SystemExit(f"{error.detail}{cause}") from None
    except Problem as error:
        raise SystemExit(error.detail) from None
    except ProgrammingError:
        raise SystemExit("The database lacks the tables: run `make migrate` first.") from None
    except DBAPIError as error:  # Of a constraint that the application has added: a column without a value, say.
        raise SystemExit(f"The row cannot be written: {first_line(error.orig or error)}") from None


def first_line(error: BaseException) -> str:
    """What the error says in one line, or its kind when it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


async def _in_transaction(work: Work, settings: Settings) -> str:
    engine = open_database(settings, subscriptions=SUBSCRIPTIONS)
    try:
        async with asynccontextmanager(async_get_db)() as db:
            # Servers that start together take turns, so that the second finds what the first has made.
            await (await db.connection()).execute(text(f"SELECT pg_advisory_xact_lock({LOCK_KEY})"))
            return await work(db, settings)
    finally:
        await close_database(engine)
