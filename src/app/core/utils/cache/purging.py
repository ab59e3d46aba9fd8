"""Drops what an operator wants dropped: one resource, or all that a prefix has."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Final

from app.core.db.outbox import Targets
from app.core.exceptions.http_exceptions import NotFound
from app.core.utils.cache import scripts
from app.core.utils.cache.inspection import KnownPrefix, pieces
from app.core.utils.cache.keys import encoded, resource_key
from app.core.utils.cache.opened import Cache
from app.core.utils.cache.store import ANY_PATTERN, NOTES, RECENTLY
from app.core.utils.redis_link import ClusterLink, Link, LinkError

PAGE: Final = 1_000  # keys that are looked at in one command
RESERVED: Final = ("slipway:", "{slipway:", "rate:", "arq:")  # of others there: what a parameter must not stand for
_SPECIAL: Final = re.compile(r"[*?\[\]\\]")
_VALUE: Final = r"[^:*?\[\]\\{}\x00-\x1f\x7f]*"  # what `encoded` can make of a value


class UnknownPrefix(NotFound):
    text = "No route of this app is cached under this prefix."


async def purge(
    cache: Cache,
    prefix_template: str,
    resource_id: object = None,
    *,
    known: Iterable[KnownPrefix],
    values: Mapping[str, object] | None = None,
) -> int | None:
    """Drops resources with all their variants, and voids the leases on them. Says how many there were.

    Nothing else is touched: a parameter of the template stands for one that could be filled in, and not for any text.

    Args:
        prefix_template: as in `@cache`.
        resource_id: the one to drop; all of the prefix without it.
        known: `known_prefixes(app)`.
        values: of the prefix's parameters, all of them; without these, whatever they are.

    Returns: how many; None when Redis/Valkey does not take it now. One resource of one prefix is then dropped as soon
    as it does.

    Raises: UnknownPrefix, also for values with which it would be a key of somebody else; LinkError for more than one
    resource, some of which can have been dropped.
    """
    prefix = next((one for one in known if one.template == prefix_template), None)
    if prefix is None:
        raise UnknownPrefix
    parts = pieces(prefix_template)
    if resource_id is None or not (values or {}).keys() >= set(prefix.parameters):
        return await _purge_all(cache, parts, None if resource_id is None else encoded(resource_id))
    key = resource_key(prefix.fill(**(values or {})), resource_id)
    if not _Search(parts, None).fits(key.encode()):
        raise UnknownPrefix
    return await _purge_one(cache, key)


async def _purge_one(cache: Cache, key: str) -> int | None:
    try:
        number: int | None = await cache.store.link.ask("EXISTS", key)
    except LinkError:
        number = None
    await cache.invalidator.now(Targets((key,)))
    return number if cache.usable else None


async def _purge_all(cache: Cache, parts: list[tuple[str, str | None]], resource_id: str | None) -> int | None:
    search = _Search(parts, resource_id)
    link = cache.store.link
    # Whoever has read before this, and takes a lease after, must not store.
    await link.call(scripts.NOTE, NOTES, RECENTLY * 1000, ANY_PATTERN)
    number = 0
    # In a cluster, a key can move to where it was looked for already: as in `Store.void`.
    for _ in range(2 if isinstance(link, ClusterLink) else 1):
        servers = await link.parts(anew=True)
        number += sum(await asyncio.gather(*(_purge_at(cache, server, search) for server in servers)))
    return number if cache.usable else None


async def _purge_at(cache: Cache, server: Link, search: "_Search") -> int:
    number, cursor = 0, b"0"
    while True:
        cursor, found = await server.send("SCAN", cursor, "MATCH", search.glob, "COUNT", PAGE, "TYPE", "hash")
        keys = tuple(key.decode() for key in found if search.fits(key))
        if keys:
            await cache.invalidator.now(Targets(keys))
            number += len(keys)
        if cursor == b"0":
            return number


class _Search:
    """Keys of a template: a pattern for the server, which finds too much, and what fits exactly."""

    def __init__(self, parts: list[tuple[str, str | None]], resource_id: str | None) -> None:
        pieces_of_key = [*parts, (":", None), ("", "id") if resource_id is None else (resource_id, None)]
        self.glob = "".join(_SPECIAL.sub(r"\\\g<0>", text) + ("*" if name else "") for text, name in pieces_of_key)
        pattern = "".join(re.escape(text) + (_VALUE if name else "") for text, name in pieces_of_key)
        self._pattern = re.compile(pattern)
        variable = next((number for number, (_, name) in enumerate(pieces_of_key) if name), len(pieces_of_key))
        head = "".join(text for text, _ in pieces_of_key[: variable + 1])
        self._reserved = tuple(prefix for prefix in RESERVED if not head.startswith(prefix))

    def fits(self, key: bytes) -> bool:
        """Whether this is a resource's key."""
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return False
        return self._pattern.fullmatch(text) is not None and not text.startswith(self._reserved)
