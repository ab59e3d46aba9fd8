"""Changing one's password."""

from fastapi import APIRouter, Depends

from app.api.credentials import PasswordTooObvious, WrongPassword, change_password
from app.api.dependencies import ClientDep, CurrentToken, CurrentUser, SessionDep, SettingsDep, never_cached
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.openapi import problems
from app.core.passwords import HashingBusy
from app.models.login_session import SessionsEnded
from app.models.user import PasswordChange

router = APIRouter(tags=["passwords"], dependencies=[Depends(never_cached)])


@router.post("/user/me/password", responses=problems(Unauthorized, WrongPassword, PasswordTooObvious, HashingBusy))
async def change_my_password(
    values: PasswordChange,
    user: CurrentUser,
    token: CurrentToken,
    db: SessionDep,
    settings: SettingsDep,
    client: ClientDep,
) -> SessionsEnded:
    """Change your password. It needs the current one, and ends all of your logins but this one."""
    return SessionsEnded(ended=await change_password(values, user, token, db, settings, client))
