"""The console's cookie, and the CSRF tokens that belong to it: functions without a database.

A cookie is a login's id and an HMAC over it and the login's salt, under labels of their own: a dump of the database
makes none, a refresh token is none, and none is a refresh token. Whoever has not signed in yet has a random one, so
that the form for signing in can have a token as well.
"""

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from starlette.responses import Response

from app.core.config import CryptSettings, EnvironmentOption, environment_of
from app.core.db.models import utc_now

_SESSION: Final = b"slipway console session\0"
_CSRF: Final = b"slipway console csrf\0"
_FORM: Final = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{43})", re.ASCII)
_VISITOR: Final = re.compile(r"visitor\.[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ConsoleCookie:
    """What a cookie says; whether it is genuine only the login's salt can tell."""

    session_id: UUID
    secret: str

    def is_genuine(self, salt: bytes, settings: CryptSettings) -> bool:
        """Whether one of our keys made it for this login."""
        message = _SESSION + self.session_id.bytes + salt
        return _is_signed(message, self.secret, settings)


def cookie_name(settings: CryptSettings) -> str:
    """`__Host-`: browsers take it from this very host only, over TLS, for all paths; `local` has no TLS."""
    return "__Host-slipway_console" if is_secure(settings) else "slipway_console"


def is_secure(settings: CryptSettings) -> bool:
    """Whether cookies are for TLS only. Browsers send none of those over plain HTTP, and `local` has nothing else."""
    return environment_of(settings) is not EnvironmentOption.LOCAL


def put_cookie(response: Response, settings: CryptSettings, value: str) -> None:
    """Has the browser keep a cookie until it is closed."""
    response.set_cookie(
        cookie_name(settings), value, path="/", secure=is_secure(settings), httponly=True, samesite="lax"
    )


def drop_cookie(response: Response, settings: CryptSettings) -> None:
    """Has the browser forget it."""
    response.delete_cookie(cookie_name(settings), path="/", secure=is_secure(settings), httponly=True, samesite="lax")


def create_cookie(settings: CryptSettings, session_id: UUID, salt: bytes) -> str:
    """The cookie of a login."""
    return f"{session_id.hex}.{_sign(_SESSION + session_id.bytes + salt, settings)}"


def create_visitor() -> str:
    """A cookie for somebody who has not signed in: 256 random bits."""
    return f"visitor.{secrets.token_urlsafe(32)}"


def is_visitor(value: str) -> bool:
    """Whether it is one of those."""
    return _VISITOR.fullmatch(value) is not None


def parse_cookie(value: str) -> ConsoleCookie | None:
    """Reads a login's cookie. None for what has not the form of one."""
    parts = _FORM.fullmatch(value)
    return ConsoleCookie(UUID(parts[1]), parts[2]) if parts is not None else None


def csrf_token(settings: CryptSettings, cookie: str) -> str:
    """The token that changes have to bring along with this cookie (OWASP's HMAC-based token pattern)."""
    return _sign(_CSRF + cookie.encode(), settings)


def is_csrf_token(settings: CryptSettings, cookie: str, token: str) -> bool:
    """Whether a token belongs to this cookie."""
    return _is_signed(_CSRF + cookie.encode(), token, settings)


def _sign(message: bytes, settings: CryptSettings) -> str:
    return _hmac(settings.keyring.signing.secret, message)


def _is_signed(message: bytes, signature: str, settings: CryptSettings) -> bool:
    given = signature.encode("utf-8", "surrogatepass")
    keys = settings.keyring.good(utc_now())
    return any(hmac.compare_digest(_hmac(key.secret, message).encode(), given) for key in keys)


def _hmac(key: str, message: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key.encode(), message, "sha256")).rstrip(b"=").decode()
