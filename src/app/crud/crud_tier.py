"""Tiers in the database."""

from typing import ClassVar

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.exceptions.http_exceptions import Conflict, NotFound, Problem
from app.crud.crud_base import CRUDBase
from app.models.tier import Tier


class TierNotFound(NotFound):
    text = "There is no such tier."


class TierNameTaken(Conflict):
    text = "Tier name is already taken."


class TierInUse(Conflict):
    text = "Users still have this tier: move them to another one first."


class CRUDTier(CRUDBase[Tier]):
    model = Tier
    not_found = TierNotFound
    problems: ClassVar[dict[str, type[Problem]]] = {
        "uq_tier_name": TierNameTaken,
        "fk_user_tier_id_tier": TierInUse,
    }

    async def get_by_name(self, db: AsyncSession, name: str) -> Tier | None:
        """The tier of this name."""
        return (await db.exec(select(Tier).where(col(Tier.name) == name))).first()


crud_tiers = CRUDTier()
