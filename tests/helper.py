"""Builders: one for each thing a test needs to be there."""

from itertools import count
from typing import Any

from sqlalchemy import select
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.security import TokenKind, create_token, new_token_id
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
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
    await db.commit()
    return user


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


def signed_in(user: User, settings: Settings, session_id: str | None = None) -> dict[str, str]:
    """The headers of somebody who has just signed in."""
    token = create_token(TokenKind.ACCESS, settings, user.uuid, session_id or new_token_id())
    return {"Authorization": f"Bearer {token}"}


async def all_rows(db: AsyncSession) -> dict[str, set[Any]]:
    """Every row of every table, to compare with what is there later."""
    connection = await db.connection()
    return {table.name: set(await connection.execute(select(table))) for table in SQLModel.metadata.sorted_tables}
