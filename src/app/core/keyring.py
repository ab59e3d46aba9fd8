"""The keys that sign tokens: one signs, all of them verify, until they expire or are taken away."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Self


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its public name.

    Attributes:
        kid: what a token's header calls it (RFC 7515, section 4.1.4).
        until: when it stops to verify; None while it is listed.
    """

    kid: str
    secret: str = field(repr=False)
    until: datetime | None = None

    def is_good(self, now: datetime) -> bool:
        """Whether it verifies at this moment."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key that signs, and all that verify by their names; it is one of them."""

    signing: Key
    by_kid: dict[str, Key]

    @classmethod
    def of(cls, signing: Key, others: Iterable[Key]) -> Self:
        """The signing key first, which stays one key, and without a moment, if it is among the others too."""
        return cls(signing, {signing.kid: signing} | {key.kid: key for key in others if key.kid != signing.kid})

    @property
    def others(self) -> list[Key]:
        """All keys but the one that signs, expired ones included, in their order."""
        return [key for key in self.by_kid.values() if key.kid != self.signing.kid]

    def find(self, kid: object, now: datetime) -> Key | None:
        """The key of this name, if it verifies at this moment."""
        key = self.by_kid.get(kid) if isinstance(kid, str) else None
        return key if key is not None and key.is_good(now) else None

    def good(self, now: datetime) -> list[Key]:
        """All keys that verify at this moment, the signing one first."""
        return [key for key in self.by_kid.values() if key.is_good(now)]


@lru_cache(maxsize=8)
def keyring(signing: str, others: str) -> Keyring:
    """The keys of `SECRET_KEY` and `OTHER_SECRET_KEYS`. Raises: ValueError, see `parse_key`."""
    return Keyring.of(Key(kid_of(signing), signing), map(parse_key, others.split()))


def parse_key(word: str) -> Key:
    """One of `OTHER_SECRET_KEYS`: `KEY`, or `KEY@2026-12-31T00:00:00+00:00` with the moment it stops to verify.

    Raises: ValueError for a key under 32 characters, or what is no moment with its time zone.
    """
    secret, separator, moment = word.partition("@")
    until = datetime.fromisoformat(moment) if separator else None
    if len(secret) < 32 or (until is not None and until.tzinfo is None):
        raise ValueError("not a key")
    return Key(kid_of(secret), secret, until)


def format_key(key: Key) -> str:
    """The word that `parse_key` reads as this key. Raises: ValueError when there is none, see `parse_key`."""
    word = key.secret if key.until is None else f"{key.secret}@{key.until.isoformat()}"
    if word.split() != [word] or parse_key(word) != key:
        raise ValueError("not a key that can be listed")
    return word


def kid_of(secret: str) -> str:
    """A key's name: part of its hash, so that all servers call it the same and nobody has to invent one."""
    return hashlib.sha256(b"slipway kid\0" + secret.encode()).hexdigest()[:12]
