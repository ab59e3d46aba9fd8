"""Signing out."""

from fastapi import APIRouter, Depends, Request, Response

from app.api.dependencies import (
    BearerToken,
    ClientDep,
    CrossSiteRequest,
    RefreshCookie,
    SessionDep,
    SettingsDep,
    never_cached,
    require_same_site,
)
from app.api.refresh_cookie import drop_refresh_cookie
from app.api.sign_in import sign_out
from app.core.openapi import problems
from app.core.schemas import Message
from app.core.security import InvalidToken

router = APIRouter(tags=["login"], dependencies=[Depends(never_cached)])


@router.post("/logout", dependencies=[Depends(require_same_site)], responses=problems(InvalidToken, CrossSiteRequest))
async def logout(
    request: Request,
    response: Response,
    bearer: BearerToken,
    cookie: RefreshCookie,
    db: SessionDep,
    settings: SettingsDep,
    client: ClientDep,
) -> Message:
    """End the login that the access token, the cookie or both belong to. An expired access token will do."""
    await sign_out(bearer, cookie, db, settings, client)
    drop_refresh_cookie(request, response)
    return Message(message="Signed out.")
