"""What signing in, staying so and signing out do, between HTTP and the tables."""

from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from fastapi import Request, Response
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.refresh_cookie import put_refresh_cookie
from app.core.client_address import network_of
from app.core.config import Settings
from app.core.db.database import reading
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.passwords import verify_password
from app.core.security import (
    InvalidToken,
    RefreshToken,
    create_access_token,
    create_refresh_token,
    decode_access_token,
    parse_refresh_token,
)
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_login_throttle import crud_login_throttle
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_token_blacklist import crud_token_blacklist
from app.crud.crud_users import crud_users
from app.models.login_session import LoginKind, LoginSession
from app.models.security_event import EventKind
from app.models.token import AccessTokenRead, LoginForm
from app.models.user import User

FREE_FAILURES_OF_ACCOUNT = 5
FREE_FAILURES_OF_ADDRESS = 100  # many people can share one


class WrongCredentials(Unauthorized):
    """The same for an unknown, deleted or locked account and for a wrong password."""

    text = "Wrong user name, e-mail address or password."
    keeps_changes = True


class ReusedToken(InvalidToken):
    """Looks like any other invalid token: who stole one learns nothing from it."""

    keeps_changes = True

    @classmethod
    def problem_type(cls) -> str:
        return InvalidToken.problem_type()


# ---- Signing in ----


async def sign_in(
    form: LoginForm, db: AsyncSession, settings: Settings, client: Client, kind: LoginKind = LoginKind.API
) -> tuple[User, LoginSession]:
    """Checks name and password and starts a login. `db` is not touched until the hash is computed.

    Raises: WrongCredentials, also for whom the console is not; HashingBusy.
    """
    async with reading() as questions:
        user = await crud_users.get_by_login(questions, form.username)
    matches, renewed = await verify_password(form.password.get_secret_value(), crud_users.good_hash(user), settings)
    told: dict[str, Any] = {"console": True} if kind is LoginKind.CONSOLE else {}
    if not await may_pass(db, user, client, matches=matches, **told) or user is None:
        raise WrongCredentials
    user = await crud_users.lock_unchanged(db, user)
    if user is None:  # Deleted, or given another password, while the hash was computed.
        raise WrongCredentials
    if renewed is not None:
        user.hashed_password = renewed
    if kind is LoginKind.CONSOLE and not user.is_superuser:
        await crud_security_events.record(db, EventKind.LOGIN_FAILED, client, user_id=user.id, rank=False, **told)
        raise WrongCredentials
    session = LoginSession(user_id=user.id, kind=kind, expires_at=utc_now())
    session.sqlmodel_update(_from(client))
    session.use(utc_now(), *lifetimes(settings, kind))
    db.add(session)
    await crud_security_events.record(db, EventKind.LOGIN, client, user_id=user.id, session_id=session.id, **told)
    return user, session


def lifetimes(settings: Settings, kind: LoginKind) -> tuple[timedelta, timedelta]:
    """For how long a login may lie unused, and how long it lasts at most."""
    if kind is LoginKind.CONSOLE:
        return timedelta(minutes=settings.CONSOLE_IDLE_MINUTES), timedelta(hours=settings.CONSOLE_SESSION_HOURS)
    return timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS), timedelta(days=settings.SESSION_EXPIRE_DAYS)


async def may_pass(db: AsyncSession, user: User | None, client: Client, *, matches: bool, **told: Any) -> bool:
    """Whether a password that was given opens the account; counts it when it was wrong.

    Decided after the hash was computed and one after the other for each account, so that of many guesses at once
    no more are answered than of as many in turn. `told` is what the events say besides.
    """
    keys = await _throttle_keys(db, user, client)
    user_id = user.id if user else None
    if await crud_login_throttle.is_locked(db, keys):
        await crud_security_events.record(db, EventKind.LOGIN_FAILED, client, user_id=user_id, locked=True, **told)
        return False
    if matches:
        await crud_login_throttle.forgive(db, *(key for key in keys if key.startswith("account:")))
        return True
    await crud_security_events.record(db, EventKind.LOGIN_FAILED, client, user_id=user_id, **told)
    if await crud_login_throttle.fail(db, keys):
        await crud_security_events.record(db, EventKind.LOGIN_LOCKED, client, user_id=user_id, **told)
    return False


async def _throttle_keys(db: AsyncSession, user: User | None, client: Client) -> dict[str, int]:
    """What failures count under. An account has a count of its own for each network its user has signed in from:
    strangers who guess from elsewhere lock the others out, and not the user.
    """
    network = network_of(client.address)
    keys = {f"address:{network}": FREE_FAILURES_OF_ADDRESS}
    if user is not None:
        elsewhere, *known = await account_keys(db, user)
        here = f"{elsewhere}@{network}"
        keys[here if here in known else elsewhere] = FREE_FAILURES_OF_ACCOUNT
    return keys


async def account_keys(db: AsyncSession, user: User) -> list[str]:
    """All that failures of this account count under: from anywhere first, then from where the user has signed in."""
    known = {network_of(address) for address in await crud_login_sessions.addresses_of_user(db, user.id)}
    account = f"account:{user.uuid}"
    return [account, *(f"{account}@{network}" for network in sorted(known))]


def _from(client: Client) -> dict[str, str | None]:
    return {"address": client.address, "user_agent": client.user_agent}


# ---- Staying signed in ----


async def rotate(
    token: RefreshToken, db: AsyncSession, settings: Settings, client: Client
) -> tuple[User, LoginSession]:
    """Steps a login to the next generation, or repeats the last step within the grace (two tabs, a lost answer).

    Anything older, or later, is a stolen token or its victim's, and nobody knows which: the login ends
    (RFC 9700, section 4.14.2).

    Raises: InvalidToken.
    """
    found = await crud_login_sessions.lock_with_user(db, token.session_id)
    now = utc_now()
    if found is None or not token.is_genuine(found[0].salt, settings) or not found[0].is_live(now):
        raise InvalidToken
    session, user = found
    if token.generation == session.generation:
        session.generation += 1
        session.rotated_at = now
        session.use(now, *lifetimes(settings, LoginKind.API))
        session.sqlmodel_update(_from(client))
    elif token.generation != session.generation - 1 or now - session.rotated_at >= _grace(settings):
        session.revoked_at = now
        await crud_security_events.record(
            db, EventKind.REFRESH_REUSED, client, user_id=user.id, session_id=session.id, generation=token.generation
        )
        raise ReusedToken
    return user, session


def _grace(settings: Settings) -> timedelta:
    return timedelta(seconds=settings.REFRESH_GRACE_SECONDS)


# ---- What a signed-in client holds ----


def issue_tokens(
    request: Request, response: Response, settings: Settings, user: User, session: LoginSession
) -> AccessTokenRead:
    """Puts the login's refresh token into the cookie and returns a new access token."""
    token = create_refresh_token(settings, session.id, session.salt, session.generation)
    put_refresh_cookie(request, response, token, max_age=int((session.expires_at - utc_now()).total_seconds()))
    return AccessTokenRead(access_token=create_access_token(settings, user.uuid, session.id))


# ---- Signing out ----


async def sign_out(
    access: str | None, cookie: str | None, db: AsyncSession, settings: Settings, client: Client
) -> None:
    """Ends the logins that the tokens, expired or not, belong to. A token that is not ours counts as none.

    Raises: InvalidToken when neither is ours.
    """
    ended: set[UUID] = set()
    with suppress(InvalidToken):
        token = decode_access_token(access or "", settings, allow_expired=True)
        await crud_token_blacklist.revoke(db, token.jti, token.expires_at)
        ended.add(token.session_id)
    with suppress(InvalidToken):
        refresh = parse_refresh_token(cookie or "")
        session = await crud_login_sessions.get(db, refresh.session_id)
        if session is not None and refresh.is_genuine(session.salt, settings):
            ended.add(session.id)
    if not ended:
        raise InvalidToken
    for session_id in sorted(ended):
        session = await crud_login_sessions.get(db, session_id)
        if session is not None and await crud_login_sessions.end(db, session.id, session.user_id):
            await crud_security_events.record(
                db, EventKind.LOGOUT, client, user_id=session.user_id, session_id=session.id
            )
