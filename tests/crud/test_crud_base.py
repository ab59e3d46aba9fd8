"""What happens to a row that somebody else changes or removes at the same time."""

from typing import assert_type

import pytest
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from app.core.config import Settings
from app.crud.crud_rate_limit import RateLimitNotFound, crud_rate_limits
from app.crud.crud_tier import TierNotFound, crud_tiers
from app.crud.crud_users import crud_users
from app.models.rate_limit import RateLimit
from app.models.tier import Tier, TierRead, TierUpdate
from app.models.user import UserRead, UserTierUpdate
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


async def test_a_row_is_got_as_a_schema(settings: Settings) -> None:
    """The founding document's `crud_posts.get(db=db, schema_to_select=PostRead, id=post_id)`."""
    async with opened_session(settings) as db:
        tier = await create_tier(db, "pro")
        user = await create_user(db, name="Ada")

        found = await crud_tiers.get(db=db, schema_to_select=TierRead, id=tier.id)
        assert_type(found, TierRead | None)
        assert type(found) is TierRead
        assert found.model_dump() == {"id": tier.id, "name": "pro"}
        shown = await crud_users.get(db, user.id, schema_to_select=UserRead)
        assert isinstance(shown, UserRead)
        assert (shown.name, shown.uuid) == ("Ada", user.uuid)
        assert await crud_tiers.get(db=db, schema_to_select=TierRead, id=99) is None
        assert_type(await crud_tiers.get(db=db, id=tier.id), Tier | None)


async def test_a_schema_needs_no_configuration_of_its_own(settings: Settings) -> None:
    class Plain(BaseModel):
        name: str

    class PlainTable(SQLModel):
        name: str

    async with opened_session(settings) as db:
        tier = await create_tier(db, "pro")
        for schema in (Plain, PlainTable):
            found = await crud_tiers.get(db=db, schema_to_select=schema, id=tier.id)
            assert found is not None
            assert found.model_dump() == {"name": "pro"}


async def test_what_was_changed_and_not_yet_flushed_is_in_the_schema(settings: Settings) -> None:
    async with opened_session(settings) as db:
        tier = await create_tier(db, "pro")
        tier.name = "gold"
        found = await crud_tiers.get(db=db, schema_to_select=TierRead, id=tier.id)
        assert found is not None
        assert found.name == "gold"


async def test_a_row_that_does_not_fit_the_schema_is_an_error(settings: Settings) -> None:
    class Longer(BaseModel):
        name: str
        colour: str

    async with opened_session(settings) as db:
        tier = await create_tier(db)
        with pytest.raises(ValidationError, match="colour"):
            await crud_tiers.get(db=db, schema_to_select=Longer, id=tier.id)
