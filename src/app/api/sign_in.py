"""What a signed-in client holds: an access token in the answer, a refresh token in a cookie."""

from contextlib import suppress
from uuid import UUID

from fastapi import Response

from app.api.dependencies import REFRESH_COOKIE
from app.core.config import EnvironmentOption, Settings, environment_of
from app.core.security import InvalidToken, TokenKind, create_token, decode_token, lifetime
from app.models.token import AccessTokenRead

COOKIE_PATH = "/api/v1"


def issue_tokens(response: Response, settings: Settings, user_uuid: UUID, session_id: str) -> AccessTokenRead:
    """Puts a new refresh token of this login into the cookie and returns its new access token."""
    response.set_cookie(
        REFRESH_COOKIE,
        create_token(TokenKind.REFRESH, settings, user_uuid, session_id),
        max_age=int(lifetime(TokenKind.REFRESH, settings).total_seconds()),
        path=COOKIE_PATH,
        secure=_is_secure(settings),
        httponly=True,
        samesite="lax",
    )
    access = create_token(TokenKind.ACCESS, settings, user_uuid, session_id)
    return AccessTokenRead(access_token=access)


def forget_tokens(response: Response, settings: Settings) -> None:
    """Lets the browser drop the cookie."""
    response.delete_cookie(REFRESH_COOKIE, path=COOKIE_PATH, secure=_is_secure(settings), httponly=True, samesite="lax")


def verified_session_ids(settings: Settings, *, access: str | None, refresh: str | None) -> list[str]:
    """The logins that these tokens, expired or not, belong to. A token that is not ours counts as none."""
    found = set()
    for kind, raw in ((TokenKind.ACCESS, access), (TokenKind.REFRESH, refresh)):
        with suppress(InvalidToken):
            found.add(decode_token(raw or "", kind, settings, allow_expired=True).session_id)
    return sorted(found)


def _is_secure(settings: Settings) -> bool:
    # Browsers do not send Secure cookies over plain HTTP, and `local` has nothing else.
    return environment_of(settings) is not EnvironmentOption.LOCAL
