"""The cache: `@cache` for handlers, and what those who change data in other ways have to say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import RedisCacheSettings
from app.core.db.database import around_commit
from app.core.db.outbox import Targets
from app.core.exceptions.cache_exceptions import MissingClientError
from app.core.utils.cache import opened
from app.core.utils.cache.decorator import cache, check_cached_routes, reading_plan
from app.core.utils.cache.inspection import CachedVariant, KnownPrefix, entries_of, known_prefixes
from app.core.utils.cache.invalidation import Invalidator, write_down
from app.core.utils.cache.keys import filled_pattern, resource_key
from app.core.utils.cache.opened import Cache
from app.core.utils.cache.purging import UnknownPrefix, purge
from app.core.utils.cache.reading import identify_caller
from app.core.utils.cache.store import Store
from app.core.utils.redis_link import link_to

__all__ = [
    "Cache",
    "CachedVariant",
    "KnownPrefix",
    "UnknownPrefix",
    "cache",
    "check_cached_routes",
    "entries_of",
    "identify_caller",
    "invalidate",
    "invalidate_on_commit",
    "invalidate_pattern_on_commit",
    "known_prefixes",
    "open_cache",
    "purge",
    "reading_plan",
]


@asynccontextmanager
async def open_cache(settings: RedisCacheSettings, *, durable: bool) -> AsyncIterator[Cache]:
    """The cache, while an app or a worker runs. It opens, and is not used, while Redis/Valkey is away.

    Args:
        settings: where the server is.
        durable: whether the database is open as well, to remember what has to be dropped.
    """
    link = link_to(settings.redis_cache_url, "cache")
    store = Store(link)
    invalidator = Invalidator(store, durable=durable)
    cache = Cache(store, invalidator)
    try:
        await link.open()
        await invalidator.open()
        opened.add(cache)
        yield cache
    finally:
        opened.remove(cache)
        await invalidator.close()
        await link.close()


async def invalidate(key_prefix: str, resource_id: object) -> None:
    """Drops a resource from the cache, with all its variants; when that is not possible now, as soon as it is.

    For what was changed outside of `transaction()` and requests. Raises: MissingClientError.
    """
    cache = opened.current()
    if cache is None:
        raise MissingClientError
    await cache.invalidator.now(Targets((resource_key(key_prefix, resource_id),)))


def invalidate_on_commit(db: AsyncSession, key_prefix: str, resource_id: object) -> None:
    """Drops a resource from the cache when this transaction is committed. For jobs and scripts.

    Where the cache is not open, as in a script, it is written down, and an API process drops it a moment later.
    """
    _drop_on_commit(db, Targets((resource_key(key_prefix, resource_id),)))


def invalidate_pattern_on_commit(db: AsyncSession, pattern: str, **values: object) -> None:
    """Drops all keys that match a pattern when this transaction is committed, such as `"{username}_posts:*"`.

    It goes through all keys of the server, in a cluster twice: where the keys are known, `invalidate_on_commit` is
    better.

    Args:
        db: the transaction.
        pattern: with a `*`, and something fixed before it. What is in braces is replaced by the value of that name.
        values: for what is in braces; encoded, so that no value can match another key.

    Raises: InvalidRequestError for a pattern without a `*`, or nothing before it; KeyError for a missing value.
    """
    _drop_on_commit(db, Targets(patterns=(filled_pattern(pattern, values),)))


def _drop_on_commit(db: AsyncSession, targets: Targets) -> None:
    cache = opened.current()
    around = cache.invalidator.around if cache else write_down
    around_commit(db, partial(around, targets=targets))
