"""Creates the tier that TIER_NAME names.

`python -m src.scripts.create_first_tier`: running it again changes nothing.
"""

from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.utils.cache import invalidate_on_commit
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier, TierCreate

from .database_script import run_in_database
from .first_rows import first_values


async def create_first_tier(db: AsyncSession, settings: Settings) -> str:
    """Creates the tier unless it exists, and says which. Raises: SettingsError for a name that cannot be one."""
    values = first_values(TierCreate, Tier, "TIER_", {"name": settings.TIER_NAME})
    name = values["name"]
    if await crud_tiers.get_by_name(db, name) is not None:
        return f"Tier {name} exists already."
    await crud_tiers.create(db, Tier.model_validate(values))
    invalidate_on_commit(db, "tiers", "all")
    return f"Tier {name} created."


run = partial(run_in_database, create_first_tier)

if __name__ == "__main__":
    run()
