"""The rate limits of a tier."""

from functools import partial

from fastapi import APIRouter
from starlette.status import HTTP_201_CREATED

from app.api.dependencies import (
    ChangedRateLimit,
    CurrentSuperuser,
    NewRateLimit,
    PagingDep,
    ParentTier,
    ParentTierName,
    RateLimitDep,
    RateLimitId,
    SessionDep,
    get_parent_tier,
    get_rate_limit,
)
from app.core.db.database import reading
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.schemas import Message, Page
from app.core.utils.cache import cache
from app.crud.crud_rate_limit import RateLimitNotFound, RateLimitPathTaken, crud_rate_limits
from app.crud.crud_tier import TierNotFound
from app.models.rate_limit import RateLimit, RateLimitRead

router = APIRouter(prefix="/tier/{tier_name}", tags=["rate limits"])

# All that is cached about the rate limits of one tier, and is dropped together.
of_tier = partial(cache, "tier_rate_limits", resource_id_name="tier_name")


@router.post(
    "/rate_limit",
    response_model=RateLimitRead,
    status_code=HTTP_201_CREATED,
    responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitPathTaken),
)
@of_tier()
async def create_rate_limit(
    _: CurrentSuperuser, tier_name: ParentTierName, tier: ParentTier, values: NewRateLimit, db: SessionDep
) -> RateLimit:
    """Add a rate limit to a tier. Superusers only."""
    return await crud_rate_limits.create(db, RateLimit.model_validate(values.model_dump() | {"tier_id": tier.id}))


@router.get("/rate_limits", response_model=Page[RateLimitRead], responses=problems(TierNotFound))
@of_tier()
async def read_rate_limits(tier_name: ParentTierName, paging: PagingDep) -> Page[RateLimit]:
    """List the rate limits of a tier."""
    async with reading() as db:
        tier = await get_parent_tier(tier_name, db)
        return await crud_rate_limits.page_of_tier(db, paging, tier.id)


@router.get("/rate_limit/{id}", response_model=RateLimitRead, responses=problems(TierNotFound, RateLimitNotFound))
@of_tier()
async def read_rate_limit(tier_name: ParentTierName, rate_limit_id: RateLimitId) -> RateLimit:
    """Read a rate limit."""
    async with reading() as db:
        return await get_rate_limit(await get_parent_tier(tier_name, db), rate_limit_id, db)


@router.patch(
    "/rate_limit/{id}",
    response_model=RateLimitRead,
    responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitNotFound, RateLimitPathTaken),
)
@of_tier()
async def update_rate_limit(
    _: CurrentSuperuser,
    tier_name: ParentTierName,
    rate_limit: RateLimitDep,
    values: ChangedRateLimit,
    db: SessionDep,
) -> RateLimit:
    """Change a rate limit. Superusers only."""
    return await crud_rate_limits.update(db, rate_limit, values)


@router.delete("/rate_limit/{id}", responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitNotFound))
@of_tier()
async def delete_rate_limit(
    _: CurrentSuperuser, tier_name: ParentTierName, rate_limit: RateLimitDep, db: SessionDep
) -> Message:
    """Delete a rate limit. Superusers only."""
    await crud_rate_limits.delete(db, rate_limit)
    return Message(message="Rate limit deleted.")
