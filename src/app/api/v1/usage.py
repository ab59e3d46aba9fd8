"""What a user has used of their rate limits."""

from fastapi import APIRouter, Depends

from app.api.dependencies import CurrentUser, RateLimiterDep, never_cached
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.openapi import problems
from app.core.utils.rate_limit import user_subject
from app.models.rate_limit import RateLimitUsage

router = APIRouter(prefix="/user/me", tags=["rate limits"], dependencies=[Depends(never_cached)])


@router.get("/usage", responses=problems(Unauthorized))
async def read_usage(user: CurrentUser, limiter: RateLimiterDep) -> list[RateLimitUsage]:
    """List the rate limits that apply to you, and what you have used of each; this request included."""
    found = await limiter.usage(user_subject(user.id), user.tier_id)
    return [RateLimitUsage.of(rule, usage) for rule, usage in found]
