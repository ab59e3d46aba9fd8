"""The cache that is open in this process, if one is."""

from dataclasses import dataclass

from starlette.requests import Request

from app.core.config import RedisCacheSettings, SettingsGroup
from app.core.exceptions.cache_exceptions import MissingClientError
from app.core.utils.cache.invalidation import Invalidator
from app.core.utils.cache.store import Store


@dataclass(frozen=True, slots=True)
class Cache:
    """An open cache."""

    store: Store
    invalidator: Invalidator

    @property
    def usable(self) -> bool:
        """Whether its server is there, and what is stored in it can be trusted."""
        return self.store.link.up and self.invalidator.trusted

    async def ping(self) -> None:
        """Returns when its server is there, and takes changes. Raises: LinkError."""
        await self.store.probe()


current: Cache | None = None


def cache_of(request: Request) -> Cache | None:
    """The cache of the app that is asked; None when its settings switch it off.

    Raises: MissingClientError when they do not, and it is not open.
    """
    state = request.app.state
    if hasattr(state, "cache"):
        found: Cache | None = state.cache
        return found
    settings = getattr(state, "settings", None)
    if isinstance(settings, SettingsGroup) and not isinstance(settings, RedisCacheSettings):
        return None
    if current is None:
        raise MissingClientError
    return current
