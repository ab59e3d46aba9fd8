"""Logins: what a user is signed in with, and how to end it."""

from fastapi import APIRouter, Depends, Request, Response

from app.api.accounts import end_logins
from app.api.dependencies import (
    ClientDep,
    CurrentSuperuser,
    CurrentToken,
    CurrentUser,
    PagingDep,
    ReadingSessionDep,
    SessionDep,
    SessionId,
    UserDep,
    never_cached,
)
from app.api.refresh_cookie import drop_refresh_cookie
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.schemas import Page
from app.crud.crud_login_session import LoginSessionNotFound, crud_login_sessions
from app.crud.crud_security_event import crud_security_events
from app.crud.crud_users import UserNotFound
from app.models.login_session import LoginSession, LoginSessionRead, SessionsEnded
from app.models.security_event import EventKind

router = APIRouter(tags=["sessions"], dependencies=[Depends(never_cached)])


@router.get("/user/me/sessions", responses=problems(Unauthorized))
async def read_my_sessions(
    user: CurrentUser, token: CurrentToken, paging: PagingDep, db: ReadingSessionDep
) -> Page[LoginSessionRead]:
    """List your logins, the last used first."""
    page = await crud_login_sessions.page_of_user(db, paging, user.id)
    rows = [LoginSessionRead.model_validate(row) for row in page.data]
    marked = [row.model_copy(update={"current": row.id == token.session_id}) for row in rows]
    return paging.page_of(marked, page.total_count)


@router.delete("/user/me/sessions/{id}", responses=problems(Unauthorized, LoginSessionNotFound))
async def end_my_session(user: CurrentUser, session_id: SessionId, db: SessionDep, client: ClientDep) -> SessionsEnded:
    """End one of your logins. Its tokens are refused from the next request on."""
    if not await crud_login_sessions.end(db, session_id, user.id):
        raise LoginSessionNotFound
    await crud_security_events.record(db, EventKind.SESSIONS_ENDED, client, user_id=user.id, session_id=session_id)
    return SessionsEnded(ended=1)


@router.delete("/user/me/sessions", responses=problems(Unauthorized))
async def end_my_sessions(
    request: Request, response: Response, user: CurrentUser, db: SessionDep, client: ClientDep
) -> SessionsEnded:
    """Sign out everywhere, here included."""
    ended = await end_logins(db, user, client, actor=user)
    drop_refresh_cookie(request, response)
    return SessionsEnded(ended=ended)


@router.get(
    "/user/{username}/sessions",
    response_model=Page[LoginSessionRead],
    responses=problems(Unauthorized, Forbidden, UserNotFound),
)
async def read_user_sessions(
    _: CurrentSuperuser, user: UserDep, paging: PagingDep, db: SessionDep
) -> Page[LoginSession]:
    """List a user's logins. Superusers only."""
    return await crud_login_sessions.page_of_user(db, paging, user.id)


@router.delete("/user/{username}/sessions", responses=problems(Unauthorized, Forbidden, UserNotFound))
async def end_user_sessions(admin: CurrentSuperuser, user: UserDep, db: SessionDep, client: ClientDep) -> SessionsEnded:
    """End all logins of a user. Superusers only."""
    return SessionsEnded(ended=await end_logins(db, user, client, admin))
