"""Tokens: functions without a database."""

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from uuid import UUID

import jwt

from app.core.config import CryptSettings
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.keyring import Key, Keyring, keyring

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105  (RFC 9068: one kind of token is never taken for another)
CLOCK_SKEW = timedelta(seconds=5)  # so that a server whose clock is behind takes what another has just signed
_HEADER = {"alg", "typ", "kid"}
_CLAIMS = ["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"]
_REFRESH_TOKEN = re.compile(r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})\.([A-Za-z0-9_-]{43})", re.ASCII)


class InvalidToken(Unauthorized):
    text = "The token is invalid, expired or revoked."


# ---- Access tokens ----


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a verified access token says.

    Attributes:
        user_uuid: whose token it is. A uuid, so that a reused or changed user name inherits nothing.
        session_id: the login it belongs to.
        jti: this token's own id.
    """

    user_uuid: UUID
    session_id: UUID
    jti: str
    expires_at: datetime


def create_access_token(settings: CryptSettings, user_uuid: UUID, session_id: UUID) -> str:
    """A signed token (RFC 7519) for a user's login."""
    now, key = utc_now(), settings.keyring.signing
    claims = {
        "iss": settings.TOKEN_ISSUER,
        "aud": settings.TOKEN_ISSUER,
        "sub": str(user_uuid),
        "sid": session_id.hex,
        "jti": secrets.token_urlsafe(24),
        "iat": now - CLOCK_SKEW,
        "nbf": now - CLOCK_SKEW,
        "exp": now + timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES),
    }
    return jwt.encode(claims, key.secret, settings.ALGORITHM, headers={"typ": ACCESS_TOKEN_TYPE, "kid": key.kid})


def decode_access_token(token: str, settings: CryptSettings, *, allow_expired: bool = False) -> AccessToken:
    """Verifies a token, strictly (RFC 8725): its header may hold `alg`, `typ` and `kid` and nothing else.

    Raises: InvalidToken for any fault, without saying which.
    """
    keys = settings.SECRET_KEY.get_secret_value(), settings.OTHER_SECRET_KEYS.get_secret_value()
    found, key = _genuine(token, keys, settings.ALGORITHM, settings.TOKEN_ISSUER)
    now = utc_now()
    if not key.is_good(now) or (found.expires_at <= now and not allow_expired):
        raise InvalidToken
    return found


@lru_cache(maxsize=4096)
def _genuine(token: str, keys: tuple[str, str], algorithm: str, issuer: str) -> tuple[AccessToken, Key]:
    """What the token says and the key that made it, whatever the time has done to both since.

    Remembered, since a caller sends the same token again and again and PyJWT takes 50 microseconds for it. Only genuine
    ones are: an error is not remembered, so that nobody can push others out with what they made up.

    Raises: InvalidToken.
    """
    try:
        key = _key_of(jwt.get_unverified_header(token), keyring(*keys))
        claims = jwt.decode(
            token,
            key.secret,
            algorithms=[algorithm],
            issuer=issuer,
            audience=issuer,
            options={"require": _CLAIMS, "verify_exp": False, "strict_aud": True},
        )
        found = AccessToken(
            user_uuid=UUID(claims["sub"]),
            session_id=UUID(claims["sid"]),
            jti=str(claims["jti"]),
            expires_at=datetime.fromtimestamp(claims["exp"], tz=UTC),
        )
        return found, key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidToken from error


def _key_of(header: dict[str, object], keys: Keyring) -> Key:
    key = keys.find(header.get("kid"), utc_now())
    if key is None or header.keys() != _HEADER or header["typ"] != ACCESS_TOKEN_TYPE:
        raise InvalidToken
    return key


# ---- Refresh tokens ----


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a refresh token says; whether it is genuine only the login's salt can tell.

    Attributes:
        session_id: the login it belongs to.
        generation: how many refreshes came before it.
        secret: its proof, in base64url.
    """

    session_id: UUID
    generation: int
    secret: str

    def is_genuine(self, salt: bytes, settings: CryptSettings) -> bool:
        """Whether one of our keys made it for this login and generation."""
        return any(
            hmac.compare_digest(_secret(key.secret, self.session_id, salt, self.generation), self.secret)
            for key in settings.keyring.good(utc_now())
        )


def create_refresh_token(settings: CryptSettings, session_id: UUID, salt: bytes, generation: int) -> str:
    """The refresh token of a login's generation: always the same one, and not to be had from the database alone."""
    secret = _secret(settings.keyring.signing.secret, session_id, salt, generation)
    return f"{session_id.hex}.{generation}.{secret}"


def parse_refresh_token(token: str) -> RefreshToken:
    """Reads a refresh token. Raises: InvalidToken for what has not the form of one."""
    parts = _REFRESH_TOKEN.fullmatch(token)
    if parts is None:
        raise InvalidToken
    return RefreshToken(UUID(parts[1]), int(parts[2]), parts[3])


def _secret(key: str, session_id: UUID, salt: bytes, generation: int) -> str:
    """HMAC-SHA256 under a label of its own, so that no signature of another kind can serve as one."""
    message = b"slipway refresh token\0" + session_id.bytes + salt + generation.to_bytes(8)
    return base64.urlsafe_b64encode(hmac.digest(key.encode(), message, "sha256")).rstrip(b"=").decode()


# ---- Tokens in e-mails ----


def create_mail_token() -> str:
    """A token nobody can guess, of 256 bits."""
    return secrets.token_urlsafe(32)


def hash_of_mail_token(token: str) -> str:
    """What the database keeps of it: 256 random bits need no salt and no slow hash."""
    return sha256(token.encode()).hexdigest()
