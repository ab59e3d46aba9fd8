"""Creates the tier that TIER_NAME names.

`python -m src.scripts.create_first_tier`: running it again changes nothing.
"""

from functools import partial

from pydantic import ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, SettingsError
from app.core.utils.cache import invalidate_on_commit
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier, TierCreate

from .database_script import run_in_database


async def create_first_tier(db: AsyncSession, settings: Settings) -> str:
    """Creates the tier unless it exists, and says which. Raises: SettingsError for a name that cannot be one."""
    try:
        name = TierCreate(name=settings.TIER_NAME).name
    except ValidationError as error:
        raise SettingsError(f"TIER_NAME: {error.errors()[0]['msg']}.") from None
    if await crud_tiers.get_by_name(db, name) is not None:
        return f"Tier {name} exists already."
    await crud_tiers.create(db, Tier(name=name))
    invalidate_on_commit(db, "tiers", "all")
    return f"Tier {name} created."


run = partial(run_in_database, create_first_tier)

if __name__ == "__main__":
    run()
