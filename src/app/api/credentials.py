"""Changing, resetting and proving what a user signs in with, between HTTP and the tables."""

import secrets
from datetime import datetime, timedelta
from math import log2
from typing import Final
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.sign_in import account_keys, may_pass
from app.core.config import RedisQueueSettings, Settings
from app.core.db.database import reading
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Forbidden, NotFound, Unprocessable
from app.core.mail import mail_is_on
from app.core.passwords import hash_password, is_common, verify_password
from app.core.security import AccessToken
from app.core.utils import queue
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_login_throttle import crud_login_throttle
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_users import crud_users
from app.models.mail_token import MailPurpose
from app.models.security_event import EventKind
from app.models.user import PasswordChange, PasswordReset, User

# Of a temporary password. Without what is taken for something else when it is read out: 0 and O, 1, I and L.
_CHARACTERS: Final = "23456789abcdefghjkmnpqrstuvwxyz"
_GROUPS, _GROUP_LENGTH = 4, 4
TEMPORARY_PASSWORD_BITS: Final = _GROUPS * _GROUP_LENGTH * log2(len(_CHARACTERS))


class WrongPassword(Forbidden):
    text = "The current password is wrong."
    keeps_changes = True


class InvalidMailToken(NotFound):
    text = "This link is invalid, was used before or has expired: ask for a new one."


class PasswordTooObvious(Unprocessable):
    text = "This password is among the first that are tried for this user: take another one."


async def ask_to_verify(user: User, db: AsyncSession, settings: Settings) -> None:
    """Has a mail sent to the user's address once the transaction is committed, where mail can be sent."""
    if settings.inherits(RedisQueueSettings) and mail_is_on(settings):
        await queue.enqueue(db, "send_email_verification", user.id)


async def change_password(
    values: PasswordChange, user: User, token: AccessToken, db: AsyncSession, settings: Settings, client: Client
) -> int:
    """Gives the caller, who knows the current password, another one, and ends their other logins. Says how many.

    Raises: WrongPassword, PasswordTooObvious, HashingBusy.
    """
    # All of it whether the current password is right or not: who holds a stolen token is not to learn that by the way.
    hashed = await hash_new_password(values.new_password.get_secret_value(), user, settings)
    current = crud_users.good_hash(user)
    matches, _ = await verify_password(values.current_password.get_secret_value(), current, settings)
    if not await may_pass(db, user, client, matches=matches) or await crud_users.lock_unchanged(db, user) is None:
        raise WrongPassword
    ended = await _store_password(db, user, hashed, spared=token.session_id)
    await crud_security_events.record(
        db, EventKind.PASSWORD_CHANGED, client, user_id=user.id, session_id=token.session_id, sessions_ended=ended
    )
    return ended


async def reset_password(values: PasswordReset, db: AsyncSession, settings: Settings, client: Client) -> None:
    """Gives the user to whose address the token went another password, and ends all of their logins.

    Raises: InvalidMailToken, PasswordTooObvious, HashingBusy.
    """
    async with reading() as questions:
        user = await crud_mail_tokens.get_user(questions, MailPurpose.PASSWORD_RESET, values.token)
    if user is None:
        raise InvalidMailToken
    hashed = await hash_new_password(values.new_password.get_secret_value(), user, settings)
    # In the order of a login, which counts its failure before it locks the user: the other way round is a deadlock.
    await crud_login_throttle.forgive(db, *await account_keys(db, user))
    user = await crud_mail_tokens.use(db, MailPurpose.PASSWORD_RESET, values.token)
    if user is None:  # Somebody was faster, or the address has changed.
        raise InvalidMailToken
    ended = await _store_password(db, user, hashed)
    user.email_verified_at = user.email_verified_at or utc_now()  # They have read what we sent there.
    await crud_security_events.record(db, EventKind.PASSWORD_RESET, client, user_id=user.id, sessions_ended=ended)


async def set_temporary_password(db: AsyncSession, user: User, settings: Settings, client: Client, actor: User) -> str:
    """Gives a user a random password for `TEMPORARY_PASSWORD_HOURS`, and ends all of their logins.

    After that time it opens nothing, and neither does a login that was started with it, unless the user has chosen a
    password of their own by then.

    Returns: the password, which stands nowhere else.

    Raises: UserNotFound, HashingBusy.
    """
    password = _random_password()
    hashed = await hash_password(password, settings)
    await crud_login_throttle.forgive(db, *await account_keys(db, user))  # First, as in `reset_password`.
    expires_at = utc_now() + timedelta(hours=settings.TEMPORARY_PASSWORD_HOURS)
    ended = await _store_password(db, user, hashed, expires_at=expires_at)
    await crud_security_events.record(
        db,
        EventKind.PASSWORD_CHANGED,
        client,
        user_id=user.id,
        actor_id=actor.id,
        temporary=True,
        sessions_ended=ended,
    )
    return password


def _random_password() -> str:
    groups = ("".join(secrets.choice(_CHARACTERS) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


async def _store_password(
    db: AsyncSession, user: User, hashed: str, *, spared: UUID | None = None, expires_at: datetime | None = None
) -> int:
    """Replaces what let somebody in as this user: password, reset tokens, logins. Says how many of those ended."""
    await crud_users.set_password(db, user.id, hashed, expires_at=expires_at)
    await crud_mail_tokens.void(db, MailPurpose.PASSWORD_RESET, user.id)
    return await crud_login_sessions.end_all_of_user(db, user.id, but=spared)


async def verify_email(token: str, db: AsyncSession, client: Client) -> None:
    """Notes that the user read what was sent to their address. Raises: InvalidMailToken."""
    user = await crud_mail_tokens.use(db, MailPurpose.EMAIL_VERIFICATION, token)
    if user is None:
        raise InvalidMailToken
    user.email_verified_at = utc_now()
    await crud_security_events.record(db, EventKind.EMAIL_VERIFIED, client, user_id=user.id)


async def hash_new_password(password: str, user: User, settings: Settings) -> str:
    """The hash of a password that is to be this user's. Raises: PasswordTooObvious, HashingBusy."""
    if is_common(password, user.username, user.email):
        raise PasswordTooObvious
    return await hash_password(password, settings)
