"""Signing out."""

from fastapi import APIRouter, Depends, Response

from app.api.dependencies import BearerToken, RefreshCookie, SessionDep, SettingsDep, never_cached
from app.api.sign_in import forget_tokens, verified_session_ids
from app.core.db.models import utc_now
from app.core.openapi import problems
from app.core.schemas import Message
from app.core.security import InvalidToken, TokenKind, lifetime
from app.crud.crud_token_blacklist import crud_token_blacklist

router = APIRouter(tags=["login"], dependencies=[Depends(never_cached)])


@router.post("/logout", responses=problems(InvalidToken))
async def logout(
    response: Response,
    bearer: BearerToken,
    db: SessionDep,
    settings: SettingsDep,
    cookie: RefreshCookie,
) -> Message:
    """End the login that the access token, the cookie or both belong to. An expired access token will do."""
    session_ids = verified_session_ids(settings, access=bearer, refresh=cookie)
    if not session_ids:
        raise InvalidToken
    until = utc_now() + lifetime(TokenKind.REFRESH, settings)
    for session_id in session_ids:
        await crud_token_blacklist.revoke(db, session_id, until)
    forget_tokens(response, settings)
    return Message(message="Signed out.")
