"""Tiers: the golden resource, the one to copy for a new one (docs/add-a-resource.md)."""

from fastapi import APIRouter
from starlette.status import HTTP_201_CREATED

from app.api.dependencies import CurrentSuperuser, ExistingTierName, PagingDep, SessionDep, TierDep, get_tier
from app.core.db.database import reading
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.schemas import Message, Page
from app.core.utils.cache import cache
from app.crud.crud_tier import TierInUse, TierNameTaken, TierNotFound, crud_tiers
from app.models.tier import Tier, TierCreate, TierRead, TierUpdate

router = APIRouter(tags=["tiers"])

ALL_OF_A_TIER = {"tiers": "all", "tier_rate_limits": "{name}"}  # what else is cached about a tier


@router.post(
    "/tier",
    response_model=TierRead,
    status_code=HTTP_201_CREATED,
    responses=problems(Unauthorized, Forbidden, TierNameTaken),
)
@cache("tiers", resource_id="all")
async def create_tier(_: CurrentSuperuser, values: TierCreate, db: SessionDep) -> Tier:
    """Create a tier. Superusers only."""
    return await crud_tiers.create(db, Tier.model_validate(values.model_dump()))


@router.get("/tiers", response_model=Page[TierRead])
@cache("tiers", resource_id="all")
async def read_tiers(paging: PagingDep) -> Page[Tier]:
    """List tiers."""
    async with reading() as db:  # Not as a dependency: what is cached needs no session.
        return await crud_tiers.page(db, paging)


@router.get("/tier/{name}", response_model=TierRead, responses=problems(TierNotFound))
@cache("tier", resource_id_name="name")
async def read_tier(name: ExistingTierName) -> Tier:
    """Read a tier."""
    async with reading() as db:
        return await get_tier(name, db)


@router.patch(
    "/tier/{name}",
    response_model=TierRead,
    responses=problems(Unauthorized, Forbidden, TierNotFound, TierNameTaken),
)
@cache("tier", resource_id_name="name", to_invalidate_extra=ALL_OF_A_TIER)
async def update_tier(
    _: CurrentSuperuser, name: ExistingTierName, tier: TierDep, values: TierUpdate, db: SessionDep
) -> Tier:
    """Rename a tier. Superusers only."""
    return await crud_tiers.update(db, tier, values)


@router.delete("/tier/{name}", responses=problems(Unauthorized, Forbidden, TierNotFound, TierInUse))
@cache("tier", resource_id_name="name", to_invalidate_extra=ALL_OF_A_TIER)
async def delete_tier(_: CurrentSuperuser, name: ExistingTierName, tier: TierDep, db: SessionDep) -> Message:
    """Delete a tier that nobody has, and its rate limits. Superusers only."""
    await crud_tiers.delete(db, tier)
    return Message(message="Tier deleted.")
