"""The caches that are open in this process."""

from dataclasses import dataclass

from starlette.requests import Request

from app.core.config import RedisCacheSettings, SettingsGroup
from app.core.connection import state_of
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


_open: list[Cache] = []  # more than one where several apps run in a process, as in tests


def current() -> Cache | None:
    """The cache that was opened last, of those that are open."""
    return _open[-1] if _open else None


def add(cache: Cache) -> None:
    """It is open from now on."""
    _open.append(cache)


def remove(cache: Cache) -> None:
    """It is open no more, if it ever was."""
    if cache in _open:
        _open.remove(cache)


def cache_of(request: Request) -> Cache | None:
    """The cache of the app that is asked; None when its settings switch it off.

    Raises: MissingClientError when they do not, and it is not open.
    """
    state = state_of(request)
    if hasattr(state, "cache"):
        found: Cache | None = state.cache
        return found
    settings = getattr(state, "settings", None)
    if isinstance(settings, SettingsGroup) and not isinstance(settings, RedisCacheSettings):
        return None
    if not _open:
        raise MissingClientError
    return _open[-1]
