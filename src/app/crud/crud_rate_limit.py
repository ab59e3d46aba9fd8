"""Rate limits in the database."""

from typing import ClassVar

from pydantic import BaseModel
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.exceptions.http_exceptions import Conflict, NotFound, Problem
from app.core.schemas import Page
from app.core.utils.rate_limit import rules_changed
from app.crud.crud_base import CRUDBase
from app.crud.crud_tier import TierNotFound
from app.crud.helper import Paging
from app.models.rate_limit import RateLimit


class RateLimitNotFound(NotFound):
    text = "The tier has no such rate limit."


class RateLimitPathTaken(Conflict):
    text = "The tier already has a rate limit for this path."


class CRUDRateLimit(CRUDBase[RateLimit]):
    """Whatever changes a rule has it in force, once committed, in all processes."""

    model = RateLimit
    not_found = RateLimitNotFound
    problems: ClassVar[dict[str, type[Problem]]] = {
        "uq_rate_limit_tier_id_path": RateLimitPathTaken,
        "fk_rate_limit_tier_id_tier": TierNotFound,
    }

    async def create(self, db: AsyncSession, row: RateLimit) -> RateLimit:
        """Inserts a rule. Raises: RateLimitPathTaken, TierNotFound."""
        rules_changed(db)
        return await super().create(db, row)

    async def update(self, db: AsyncSession, row: RateLimit, values: BaseModel) -> RateLimit:
        """Changes the fields that were given. Raises: RateLimitPathTaken, RateLimitNotFound."""
        rules_changed(db)
        return await super().update(db, row, values)

    async def delete(self, db: AsyncSession, row: RateLimit) -> None:
        """Removes a rule. Raises: RateLimitNotFound."""
        rules_changed(db)
        await super().delete(db, row)

    async def get_of_tier(self, db: AsyncSession, tier_id: int, rate_limit_id: int) -> RateLimit | None:
        """The rate limit with this id, if it is that tier's."""
        mine = (col(RateLimit.id) == rate_limit_id, col(RateLimit.tier_id) == tier_id)
        return (await db.exec(select(RateLimit).where(*mine))).first()

    async def list_of_tier(self, db: AsyncSession, tier_id: int | None) -> list[RateLimit]:
        """All rate limits of a tier, by path."""
        rows = await db.exec(select(RateLimit).where(col(RateLimit.tier_id) == tier_id).order_by(col(RateLimit.path)))
        return list(rows)

    async def page_of_tier(self, db: AsyncSession, paging: Paging, tier_id: int) -> Page[RateLimit]:
        """One page of a tier's rate limits."""
        return await self.page(db, paging, col(RateLimit.tier_id) == tier_id)


crud_rate_limits = CRUDRateLimit()
