"""Revoked access tokens in the database."""

from datetime import datetime

from sqlalchemy import BindParameter, Exists, delete, exists
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.models.token_blacklist import TokenBlacklist


class CRUDTokenBlacklist:
    """Not a resource with rows to read and change: ids go in, and are asked for."""

    async def revoke(self, db: AsyncSession, jti: str, expires_at: datetime) -> None:
        """Revokes a token by its id, until it expires by itself. Once more is no error."""
        statement = insert(TokenBlacklist).values(token=jti, expires_at=expires_at)
        await db.exec(statement.on_conflict_do_nothing(index_elements=["token"]))

    def holds(self, jti: str | BindParameter[str]) -> Exists:
        """The condition that this token is revoked, for use within another query."""
        return exists().where(col(TokenBlacklist.token) == jti)

    async def purge(self, db: AsyncSession) -> int:
        """Removes tokens that have expired by themselves. Says how many."""
        return (await db.exec(delete(TokenBlacklist).where(col(TokenBlacklist.expires_at) < utc_now()))).rowcount


crud_token_blacklist = CRUDTokenBlacklist()
