"""What an operator sees of the cache: which prefixes there are, and what is stored of a resource. Never a body."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any, Final

from fastapi import FastAPI

from app.core.mounts import all_routes
from app.core.utils.cache.decorator import reading_plan
from app.core.utils.cache.entry import Entry
from app.core.utils.cache.keys import DIGEST_BYTES, encoded, resource_key
from app.core.utils.cache.opened import Cache
from app.core.utils.cache.store import MOST_FIELDS
from app.core.utils.redis_link import Script

SHOWN_HEADERS: Final = ("content-type", "content-encoding", "content-language", "etag", "last-modified", "vary")
MOST_BYTES: Final = 8_388_608  # of stored answers that one look reads; of what is left, only the size is told
LONGEST_HEAD: Final = 16_384  # bytes
_SIZE_AT: Final = 34  # where in a stored answer the size of its headers is; it is followed by that of its body
_HEAD_SIZE: Final = 42

# KEYS: the resource. ARGV: most fields, most bytes to read, the longest head. The time in ms, and three for each field:
# its name; a lease, or a stored answer without its body; and how long it is with that. The bodies stay in the server.
_LOOK: Final = Script(
    "local t = redis.call('TIME') local reply = {t[1] * 1000 + math.floor(t[2] / 1000)}"
    f" local SIZE_AT, HEAD_SIZE = {_SIZE_AT}, {_HEAD_SIZE}"
    """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return reply end
local left = tonumber(ARGV[2])
for number, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if number > tonumber(ARGV[1]) then break end
  local size, head = redis.call('HSTRLEN', KEYS[1], field), ''
  if size <= left then
    left = left - size
    head = redis.call('HGET', KEYS[1], field)
    if string.sub(field, 1, 1) == 'v' then
      local a, b, c, d = string.byte(head, SIZE_AT + 1, SIZE_AT + 4)
      local headers = d and ((a * 256 + b) * 256 + c) * 256 + d or 0
      head = string.sub(head, 1, HEAD_SIZE + math.min(headers, tonumber(ARGV[3])))
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = field, head, size
end
return reply
"""
)


@dataclass(frozen=True, slots=True)
class KnownPrefix:
    """A prefix under which this app keeps answers.

    Attributes:
        template: as in `@cache`, such as `{username}_posts`.
        parameters: the names in its braces.
        paths: the templates of the routes whose answers these are, sorted.
        fixed_ids: the ids of resources that are the same for every call, such as `all`, sorted.
    """

    template: str
    parameters: tuple[str, ...]
    paths: tuple[str, ...]
    fixed_ids: tuple[str, ...]

    def fill(self, **values: object) -> str:
        """The prefix of some resources, for `entries_of` and `invalidate`. Raises: KeyError for a missing value."""
        return "".join(text if name is None else text + encoded(values[name]) for text, name in pieces(self.template))


@dataclass(frozen=True, slots=True)
class CachedVariant:
    """One variant of a resource: for one path and query, one caller, and so on.

    Attributes:
        id: the first digits of what distinguishes it: a hash.
        is_being_computed: whether a request has the lease.
        status, age_seconds: of the stored answer; None when there is none, or it was too much to read.
        body_bytes: its size; None when there is no stored answer.
        fresh_seconds: for how long it is fresh.
        stale_seconds: for how long after that it may be served, while a fresh one is computed.
        headers: those of `SHOWN_HEADERS`.
    """

    id: str
    is_being_computed: bool
    status: int | None = None
    body_bytes: int | None = None
    age_seconds: float | None = None
    fresh_seconds: float = 0.0
    stale_seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


def pieces(template: str) -> list[tuple[str, str | None]]:
    """The fixed texts of a template, each with the name of the parameter that follows it."""
    return [(text, name) for text, name, _, _ in Formatter().parse(template)]


def known_prefixes(app: FastAPI) -> list[KnownPrefix]:
    """The prefixes of the cached routes of an app, sorted."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path, route in all_routes(app):
        if route.path and (plan := reading_plan(route)) is not None:
            paths, ids = found.setdefault(plan.key_prefix, (set(), set()))
            paths.add(path)
            ids |= {str(getattr(plan.fixed_id, "value", plan.fixed_id))} if plan.fixed_id is not None else set()
    return [
        KnownPrefix(
            template,
            tuple(name for _, name in pieces(template) if name is not None),
            tuple(sorted(paths)),
            tuple(sorted(ids)),
        )
        for template, (paths, ids) in sorted(found.items())
    ]


async def entries_of(cache: Cache, key_prefix: str, resource_id: object) -> list[CachedVariant]:
    """What is stored of a resource, or being computed: the newest first. One command; at most `MOST_FIELDS` fields.

    Args:
        key_prefix: the resource's, its parameters filled in (`KnownPrefix.fill`).
        resource_id: its id.

    Raises: LinkError when Redis/Valkey is away.
    """
    key = resource_key(key_prefix, resource_id)
    now, *rest = await cache.store.link.call(_LOOK, key, MOST_FIELDS, MOST_BYTES, LONGEST_HEAD)
    answers: dict[bytes, tuple[bytes, int]] = {}
    leased: set[bytes] = set()
    for field, value, size in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        kind, variant = field[:1], field[1:]
        if len(variant) != DIGEST_BYTES:
            continue  # Not ours.
        if kind == b"v":
            answers[variant] = (value, size)
        elif kind == b"l" and _is_held(value, now):
            leased.add(variant)
    variants = [_variant(one, answers.get(one), one in leased) for one in answers.keys() | leased]
    return sorted(variants, key=lambda one: (one.age_seconds is None, one.age_seconds or 0.0, one.id))


def _variant(variant: bytes, answer: tuple[bytes, int] | None, is_leased: bool) -> CachedVariant:
    name = variant.hex()[:8]
    if answer is None:
        return CachedVariant(name, is_leased)
    head, size = answer
    # As if it had no body, and no more headers than were read.
    headers = head[_HEAD_SIZE:]
    entry = Entry.load(head[:_SIZE_AT] + len(headers).to_bytes(4) + bytes(4) + headers)
    if entry is None:  # Too much to read, or of another release.
        return CachedVariant(name, is_leased, body_bytes=size)
    now = time.time() * 1000
    return CachedVariant(
        name,
        is_leased,
        status=entry.status,
        body_bytes=int.from_bytes(head[_SIZE_AT + 4 : _HEAD_SIZE]),
        age_seconds=max(0.0, (now - entry.created) / 1000),
        fresh_seconds=max(0.0, (entry.soft - now) / 1000),
        stale_seconds=max(0.0, (entry.hard - max(now, entry.soft)) / 1000),
        headers=_shown(entry.headers),
    )


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    decoded = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return tuple((name, value) for name, value in decoded if name in SHOWN_HEADERS)


def _is_held(lease: bytes, now: int) -> bool:
    """Whether somebody computes, or did so a moment ago; without a token, nobody needs a lease for a while."""
    match: Any = re.fullmatch(rb"([^:]+):(\d+)", lease)
    return match is not None and int(match[2]) > now
