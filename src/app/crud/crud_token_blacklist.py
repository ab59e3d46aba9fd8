"""Revoked tokens in the database."""

from datetime import datetime

from sqlalchemy import Exists, exists
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.models.token_blacklist import TokenBlacklist


class CRUDTokenBlacklist:
    """Not a resource with rows to read and change: ids go in, and are asked for."""

    async def revoke(self, db: AsyncSession, token_id: str, expires_at: datetime) -> bool:
        """Revokes a token or a login by its id, until it expires by itself.

        Returns: whether this call did it. Of several at once, exactly one is told so.
        """
        statement = insert(TokenBlacklist).values(token=token_id, expires_at=expires_at)
        result = await db.exec(statement.on_conflict_do_nothing(index_elements=["token"]))
        return result.rowcount == 1

    def holds(self, *token_ids: str) -> Exists:
        """The condition that any of these is revoked, for use within another query."""
        return exists().where(col(TokenBlacklist.token).in_(token_ids))


crud_token_blacklist = CRUDTokenBlacklist()
