"""Rate limits: exact, per tier and route. Handlers can have a cost; what changes rules has to say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import PostgresSettings, RedisRateLimiterSettings
from app.core.db.database import after_commit
from app.core.utils.rate_limit.enforcement import RateLimited, limit, limit_as, rate_limit_cost, user_subject
from app.core.utils.rate_limit.keeper import Keeper
from app.core.utils.rate_limit.limiter import Limiter, Usage
from app.core.utils.rate_limit.routes import limited_paths, limits_routes
from app.core.utils.rate_limit.rules import EVERY_PATH, Rule, Rules, as_documented, default_rule
from app.core.utils.redis_link import AnyLink, link_to

__all__ = [
    "EVERY_PATH",
    "Limiter",
    "RateLimited",
    "Rule",
    "Usage",
    "as_documented",
    "limit",
    "limit_as",
    "limited_paths",
    "limits_routes",
    "open_rate_limiter",
    "rate_limit_cost",
    "rules_changed",
    "user_subject",
]

_keepers: list[Keeper] = []  # more than one where several apps run in a process, as in tests


@asynccontextmanager
async def open_rate_limiter(
    settings: RedisRateLimiterSettings, shared: AnyLink | None = None
) -> AsyncIterator[Limiter]:
    """The limiter, while an app runs. It opens, and counts in this process, while Redis/Valkey is away.

    Args:
        settings: where the server is.
        shared: an open link to the same server, to use instead of another one.
    """
    link = shared or link_to(settings.redis_rate_limit_url, "rate limits")
    default = default_rule(settings)
    limiter = Limiter(link, settings.RATE_LIMIT_MODE, Rules({}, default))
    keeper = Keeper(limiter, settings.redis_rate_limit_url, default, stored=isinstance(settings, PostgresSettings))
    try:
        if link is not shared:
            await link.open()
        await keeper.open()
        _keepers.append(keeper)
        yield limiter
    finally:
        if keeper in _keepers:
            _keepers.remove(keeper)
        await keeper.close()
        if link is not shared:
            await link.close()


def rules_changed(db: AsyncSession) -> None:
    """Has every process go by the changed rules once this transaction is committed, this one before it answers.

    Where no limiter is open, as in a script, the others notice within a second.
    """
    for keeper in _keepers:
        after_commit(db, keeper.changed)
