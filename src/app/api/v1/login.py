"""Signing in, and staying so."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.status import HTTP_200_OK

from app.api.dependencies import (
    ClientDep,
    CrossSiteRequest,
    RefreshCookie,
    SessionDep,
    SettingsDep,
    never_cached,
    require_same_site,
)
from app.api.sign_in import WrongCredentials, issue_tokens, rotate, sign_in
from app.core.openapi import problems
from app.core.passwords import HashingBusy
from app.core.security import InvalidToken, parse_refresh_token
from app.models.token import AccessTokenRead, LoginForm

router = APIRouter(tags=["login"], dependencies=[Depends(never_cached)])


@router.post(
    "/login",
    status_code=HTTP_200_OK,
    dependencies=[Depends(require_same_site)],  # Nobody is to be signed in to an account that is not theirs.
    responses=problems(WrongCredentials, HashingBusy, CrossSiteRequest),
)
async def login(
    request: Request,
    response: Response,
    form: Annotated[LoginForm, Form()],
    db: SessionDep,
    settings: SettingsDep,
    client: ClientDep,
) -> AccessTokenRead:
    """Sign in with a user name or e-mail address and a password."""
    user, session = await sign_in(form, db, settings, client)
    return issue_tokens(request, response, settings, user, session)


@router.post("/refresh", dependencies=[Depends(require_same_site)], responses=problems(InvalidToken, CrossSiteRequest))
async def refresh(
    request: Request,
    response: Response,
    db: SessionDep,
    settings: SettingsDep,
    client: ClientDep,
    cookie: RefreshCookie,
) -> AccessTokenRead:
    """Exchange the refresh token in the cookie for an access token and the next refresh token."""
    user, session = await rotate(parse_refresh_token(cookie or ""), db, settings, client)
    return issue_tokens(request, response, settings, user, session)
