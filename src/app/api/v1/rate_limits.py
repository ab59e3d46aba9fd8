"""The rate limits of a tier."""

from fastapi import APIRouter
from starlette.status import HTTP_201_CREATED

from app.api.dependencies import (
    ChangedRateLimit,
    CurrentSuperuser,
    NewRateLimit,
    PagingDep,
    ParentTier,
    RateLimitDep,
    SessionDep,
)
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.schemas import Message, Page
from app.crud.crud_rate_limit import RateLimitNotFound, RateLimitPathTaken, crud_rate_limits
from app.crud.crud_tier import TierNotFound
from app.models.rate_limit import RateLimit, RateLimitRead

router = APIRouter(prefix="/tier/{tier_name}", tags=["rate limits"])


@router.post(
    "/rate_limit",
    response_model=RateLimitRead,
    status_code=HTTP_201_CREATED,
    responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitPathTaken),
)
async def create_rate_limit(_: CurrentSuperuser, tier: ParentTier, values: NewRateLimit, db: SessionDep) -> RateLimit:
    """Add a rate limit to a tier. Superusers only."""
    return await crud_rate_limits.create(db, RateLimit.model_validate(values.model_dump() | {"tier_id": tier.id}))


@router.get("/rate_limits", response_model=Page[RateLimitRead], responses=problems(TierNotFound))
async def read_rate_limits(tier: ParentTier, paging: PagingDep, db: SessionDep) -> Page[RateLimit]:
    """List the rate limits of a tier."""
    return await crud_rate_limits.page_of_tier(db, paging, tier.id)


@router.get("/rate_limit/{id}", response_model=RateLimitRead, responses=problems(TierNotFound, RateLimitNotFound))
async def read_rate_limit(rate_limit: RateLimitDep) -> RateLimit:
    """Read a rate limit."""
    return rate_limit


@router.patch(
    "/rate_limit/{id}",
    response_model=RateLimitRead,
    responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitNotFound, RateLimitPathTaken),
)
async def update_rate_limit(
    _: CurrentSuperuser, rate_limit: RateLimitDep, values: ChangedRateLimit, db: SessionDep
) -> RateLimit:
    """Change a rate limit. Superusers only."""
    return await crud_rate_limits.update(db, rate_limit, values)


@router.delete("/rate_limit/{id}", responses=problems(Unauthorized, Forbidden, TierNotFound, RateLimitNotFound))
async def delete_rate_limit(_: CurrentSuperuser, rate_limit: RateLimitDep, db: SessionDep) -> Message:
    """Delete a rate limit. Superusers only."""
    await crud_rate_limits.delete(db, rate_limit)
    return Message(message="Rate limit deleted.")
