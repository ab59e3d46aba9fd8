"""Passwords and tokens: functions without a database."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TypeVar
from uuid import UUID

import anyio.to_thread
import jwt
from anyio import CapacityLimiter
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from app.core.config import CryptSettings
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import ServiceUnavailable, Unauthorized

# OWASP's minimum for argon2id: 19 MiB, two passes, one lane. Here that is some 20 ms and 19 MiB per hash.
_PASSWORD_HASH = PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19_456, parallelism=1),))

# Verified in place of the missing hash when nobody has the given name, so that the answer takes as long.
_NOBODYS_HASH = "$argon2id$v=19$m=19456,t=2,p=1$ttmc1AVjJWSvEsKd6vom5A$6LhJJF31g9W3FttmZC5Zw0pO+Xh6MjKAnpP7XfsxwpI"

HASHES_AT_ONCE = 2  # more would only compete for cores, each with 19 MiB
HASHES_WAITING = 100  # about a second of work; past it the caller is told to come back

ResultT = TypeVar("ResultT")

_hashing = CapacityLimiter(HASHES_AT_ONCE)
_hashes_pending = 0  # running and waiting


class TokenKind(StrEnum):
    """The `typ` of a token (RFC 9068 for the access token): one kind is never taken for the other."""

    ACCESS = "at+jwt"
    REFRESH = "rt+jwt"


@dataclass(frozen=True, slots=True)
class Token:
    """What a verified token says.

    Attributes:
        user_uuid: whose token it is. A uuid, so that a reused or changed user name inherits nothing.
        session_id: the login it belongs to; shared by all tokens that descend from that login.
        jti: this token's own id.
    """

    user_uuid: UUID
    session_id: str
    jti: str
    expires_at: datetime


class InvalidToken(Unauthorized):
    text = "The token is invalid, expired or revoked."


class HashingBusy(ServiceUnavailable):
    text = "Too many sign-ins at once. Try again shortly."


async def hash_password(password: str) -> str:
    """The argon2id hash of a password, computed off the event loop.

    Raises: HashingBusy when too many are waiting.
    """
    return await _hash_in_thread(partial(_PASSWORD_HASH.hash, password))


async def verify_password(password: str, hashed: str | None) -> bool:
    """Whether the password belongs to the hash; takes as long for a missing hash, and is then false.

    Raises: HashingBusy when too many are waiting.
    """
    try:
        matches = await _hash_in_thread(partial(_PASSWORD_HASH.verify, password, hashed or _NOBODYS_HASH))
    except UnknownHashError:  # a row brought over from elsewhere: nobody can sign in with it
        return False
    return matches and hashed is not None


async def _hash_in_thread(work: Callable[[], ResultT]) -> ResultT:
    global _hashes_pending
    if _hashes_pending >= HASHES_AT_ONCE + HASHES_WAITING:
        raise HashingBusy
    _hashes_pending += 1
    try:
        return await anyio.to_thread.run_sync(work, limiter=_hashing)
    finally:
        _hashes_pending -= 1


def new_token_id() -> str:
    """An id nobody can guess, for a token or a login."""
    return secrets.token_urlsafe(24)


def create_token(
    kind: TokenKind, settings: CryptSettings, user_uuid: UUID, session_id: str, *, jti: str | None = None
) -> str:
    """A signed token (RFC 7519) with this kind's lifetime."""
    now = utc_now()
    claims = {
        "iss": settings.TOKEN_ISSUER,
        "aud": settings.TOKEN_ISSUER,
        "sub": str(user_uuid),
        "sid": session_id,
        "jti": jti or new_token_id(),
        "iat": now,
        "nbf": now,
        "exp": now + lifetime(kind, settings),
    }
    key = settings.SECRET_KEY.get_secret_value()
    return jwt.encode(claims, key, settings.ALGORITHM, headers={"typ": kind})


def lifetime(kind: TokenKind, settings: CryptSettings) -> timedelta:
    """How long a token of this kind is good for."""
    if kind is TokenKind.ACCESS:
        return timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES)
    return timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)


def decode_token(token: str, kind: TokenKind, settings: CryptSettings, *, allow_expired: bool = False) -> Token:
    """Verifies a token, strictly (RFC 8725): its header may hold `alg` and `typ` and nothing else.

    Raises: InvalidToken for any fault, without saying which.
    """
    try:
        decoded = jwt.decode_complete(
            token,
            settings.SECRET_KEY.get_secret_value(),
            algorithms=[settings.ALGORITHM],
            issuer=settings.TOKEN_ISSUER,
            audience=settings.TOKEN_ISSUER,
            options={
                "require": ["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"],
                "verify_exp": not allow_expired,
                "strict_aud": True,
            },
        )
        claims = decoded["payload"]
        if decoded["header"].keys() != {"alg", "typ"} or decoded["header"]["typ"] != kind:
            raise InvalidToken
        return Token(
            user_uuid=UUID(claims["sub"]),
            session_id=str(claims["sid"]),
            jti=str(claims["jti"]),
            expires_at=datetime.fromtimestamp(claims["exp"], tz=UTC),
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise InvalidToken from error
