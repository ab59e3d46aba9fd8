"""Builders: one for each thing a test needs to be there."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db import prepared_select
from app.core.db.models import utc_now
from app.core.db.outbox import ANY_DUE
from app.core.security import create_access_token
from app.core.utils.rate_limit.rules import FINGERPRINT
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
from app.models.login_session import LoginSession
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User

PASSWORD = "correct horse battery"
# Of PASSWORD with cheap parameters: tests that sign in for real verify it, and do not wait for it.
HASHED_PASSWORD = "$argon2id$v=19$m=8,t=1,p=1$WeI5lfC4gBM3cjdbog8A5Q$UmNUMVjgRoy7SstytZ/geeJbF5WgcmJD4E2UK38ytIM"
_number = count(1)


async def create_user(db: AsyncSession, **values: Any) -> User:
    """A committed user with a name of their own, whose password is PASSWORD."""
    username = values.get("username", f"user{next(_number)}")
    defaults = {
        "name": "A Person",
        "username": username,
        "email": f"{username}@example.com",
        "hashed_password": HASHED_PASSWORD,
    }
    user = await crud_users.create(db, User(**defaults | values))
    await create_session(db, user, id=session_of(user))
    return user


def session_of(user: User) -> UUID:
    """The login that every user of `create_user` has, for `signed_in`."""
    return uuid5(user.uuid, "the first login")


async def create_session(db: AsyncSession, user: User, **values: Any) -> LoginSession:
    """A committed login of a user."""
    session = LoginSession(user_id=user.id, expires_at=utc_now() + timedelta(days=1), **values)
    db.add(session)
    await db.commit()
    return session


async def create_superuser(db: AsyncSession, **values: Any) -> User:
    """A committed superuser."""
    return await create_user(db, is_superuser=True, **values)


async def create_tier(db: AsyncSession, name: str = "pro") -> Tier:
    """A committed tier."""
    tier = await crud_tiers.create(db, Tier(name=name))
    await db.commit()
    return tier


async def create_rate_limit(db: AsyncSession, tier: Tier, **values: Any) -> RateLimit:
    """A committed rate limit of a tier."""
    defaults: dict[str, Any] = {"name": "all", "path": "*", "limit": 10, "period": 60}
    rate_limit = await crud_rate_limits.create(db, RateLimit(tier_id=tier.id, **defaults | values))
    await db.commit()
    return rate_limit


def signed_in(user: User, settings: Settings, session_id: UUID | None = None) -> dict[str, str]:
    """The headers of somebody who is signed in, by the login they have from `create_user` or another one."""
    token = create_access_token(settings, user.uuid, session_id or session_of(user))
    return {"Authorization": f"Bearer {token}"}


async def all_rows(db: AsyncSession) -> dict[str, set[str]]:
    """Every row of every table, to compare with what is there later; but for what the cache has yet to drop."""
    connection = await db.connection()
    tables = [table for table in SQLModel.metadata.sorted_tables if table.name != "cache_invalidation"]
    return {table.name: set(map(repr, await connection.execute(select(table)))) for table in tables}


async def make_room(connection: AsyncConnection, *tables: str) -> None:
    """Drops tables of the application that have the names of tables which a test is about to create."""
    names = ", ".join(f'"{name}"' for name in tables)
    await connection.execute(text(f"DROP TABLE IF EXISTS {names} CASCADE"))


async def until_waited_for(db: AsyncSession) -> None:
    """Returns once another session waits for what this transaction has locked."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")
    connection = await db.connection()
    async with asyncio.timeout(10):
        while not await connection.scalar(waiting):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.01)


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Every statement that is sent to PostgreSQL meanwhile, by this process; but for those that come with time."""
    statements: list[str] = []
    fetch = prepared_select.fetch

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement not in {ANY_DUE.text, FINGERPRINT.text}:
            statements.append(statement)

    async def noted(connection: Any, statement: str, values: Sequence[Any]) -> list[Any]:
        statements.append(statement)
        return await fetch(connection, statement, values)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(prepared_select, "fetch", noted)
            yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A server that takes connections and never says anything. Yields its port."""

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
