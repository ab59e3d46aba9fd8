"""Signing in, and staying so."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Response
from starlette.status import HTTP_200_OK

from app.api.dependencies import RefreshCookie, SessionDep, SettingsDep, never_cached
from app.api.sign_in import issue_tokens
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.openapi import problems
from app.core.security import (
    HashingBusy,
    InvalidToken,
    TokenKind,
    decode_token,
    new_token_id,
    verify_password,
)
from app.crud.crud_token_blacklist import crud_token_blacklist
from app.crud.crud_users import crud_users
from app.models.token import AccessTokenRead, LoginForm

router = APIRouter(tags=["login"], dependencies=[Depends(never_cached)])


class WrongCredentials(Unauthorized):
    text = "Wrong user name, e-mail address or password."


@router.post("/login", status_code=HTTP_200_OK, responses=problems(WrongCredentials, HashingBusy))
async def login(
    response: Response, form: Annotated[LoginForm, Form()], db: SessionDep, settings: SettingsDep
) -> AccessTokenRead:
    """Sign in with a user name or e-mail address and a password."""
    user = await crud_users.get_by_login(db, form.username)
    await db.close()  # Hashing takes a while, and the connection can serve others meanwhile.
    known_hash = user.hashed_password if user else None
    if not await verify_password(form.password.get_secret_value(), known_hash) or user is None:
        raise WrongCredentials
    return issue_tokens(response, settings, user.uuid, session_id=new_token_id())


@router.post("/refresh", responses=problems(InvalidToken))
async def refresh(response: Response, db: SessionDep, settings: SettingsDep, cookie: RefreshCookie) -> AccessTokenRead:
    """Exchange the refresh token in the cookie for an access token and the next refresh token."""
    token = decode_token(cookie or "", TokenKind.REFRESH, settings)
    user = await crud_users.get_by_token(db, token.user_uuid, token.jti, token.session_id)
    if user is None or not await crud_token_blacklist.revoke(db, token.jti, token.expires_at):
        raise InvalidToken
    return issue_tokens(response, settings, user.uuid, token.session_id)
