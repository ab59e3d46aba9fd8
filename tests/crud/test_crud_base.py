"""What happens to a row that somebody else changes or removes at the same time."""

import pytest
from sqlalchemy.exc import IntegrityError

from app.core.config import Settings
from app.crud.crud_rate_limit import RateLimitNotFound, crud_rate_limits
from app.crud.crud_tier import TierNotFound, crud_tiers
from app.crud.crud_users import crud_users
from app.models.rate_limit import RateLimit
from app.models.tier import Tier, TierUpdate
from app.models.user import UserTierUpdate
from tests.conftest import opened_session, second_session
from tests.helper import create_rate_limit, create_tier, create_user

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("removing", [True, False])
async def test_a_row_that_was_removed_meanwhile_is_not_found(settings: Settings, removing: bool) -> None:
    async with opened_session(settings) as db:
        tier = await create_tier(db)
        async with second_session() as other:
            await crud_tiers.delete(other, tier)

        with pytest.raises(TierNotFound):
            await (crud_tiers.delete(db, tier) if removing else crud_tiers.update(db, tier, TierUpdate(name="new")))
        await db.rollback()


async def test_a_rate_limit_of_a_tier_that_was_removed_meanwhile_finds_no_tier(settings: Settings) -> None:
    async with opened_session(settings) as db:
        tier = await create_tier(db)
        rule = await create_rate_limit(db, tier)
        async with second_session() as other:
            await crud_tiers.delete(other, tier)

        with pytest.raises(RateLimitNotFound):
            await crud_rate_limits.delete(db, rule)
        with pytest.raises(TierNotFound):
            await crud_rate_limits.create(db, RateLimit(tier_id=tier.id, name="x", path="*", limit=1, period=1))
        await db.rollback()


async def test_a_user_is_not_moved_to_a_tier_that_is_not_there(settings: Settings) -> None:
    async with opened_session(settings) as db:
        user = await create_user(db)
        with pytest.raises(TierNotFound):
            await crud_users.update(db, user, UserTierUpdate(tier_id=99))
        await db.rollback()


async def test_a_constraint_nobody_has_a_word_for_is_not_hidden(settings: Settings) -> None:
    """It would be a mistake of ours, and wants a traceback."""
    async with opened_session(settings) as db:
        tier = await create_tier(db)
        rule = RateLimit(tier_id=tier.id, name="x", path="*", limit=0, period=1)
        with pytest.raises(IntegrityError, match="ck_rate_limit_limit_positive"):
            await crud_rate_limits.create(db, rule)
        await db.rollback()


async def test_a_row_is_got_by_its_id(settings: Settings) -> None:
    async with opened_session(settings) as db:
        tier = await create_tier(db)
        assert await crud_tiers.get(db, tier.id) is tier
        assert await crud_tiers.get(db, 99) is None
        assert isinstance(tier, Tier)
