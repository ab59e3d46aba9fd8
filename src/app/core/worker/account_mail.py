"""The mails about an account. Each job finds out by itself to whom, so that whoever asked learns nothing from it."""

from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, get_settings
from app.core.mail import Mail, send_mail
from app.crud.crud_mail_token import LIFETIMES, crud_mail_tokens
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_users import crud_users
from app.models.mail_token import MailPurpose
from app.models.security_event import EventKind
from app.models.user import User

Context = dict[Any, Any]


async def send_password_reset(ctx: Context, email: str) -> None:
    """Sends whoever has this address a token for a new password; nobody anything when nobody has it."""
    db = ctx["db"]
    user = await crud_users.get_by_login(db, email)
    if user is not None and await _send(db, user, MailPurpose.PASSWORD_RESET):
        await crud_security_events.record(db, EventKind.PASSWORD_RESET_REQUESTED, Client(), user_id=user.id)


async def send_email_verification(ctx: Context, user_id: int) -> None:
    """Sends a user a token that shows that the mail to their address is read."""
    db = ctx["db"]
    user = await crud_users.get(db, user_id)
    if user is not None and not user.is_deleted and user.email_verified_at is None:
        await _send(db, user, MailPurpose.EMAIL_VERIFICATION)


async def _send(db: AsyncSession, user: User, purpose: MailPurpose) -> bool:
    """Issues a token and sends it, both or neither. Says whether it did. Raises: MailNotSent."""
    settings = get_settings()
    token = await crud_mail_tokens.issue(db, purpose, user)
    if token is None:
        return False
    await send_mail(settings, _mail(settings, user, purpose, token))
    return True


_SUBJECTS = {
    MailPurpose.PASSWORD_RESET: "A new password",
    MailPurpose.EMAIL_VERIFICATION: "Is this your address?",
}
_REQUESTS = {
    MailPurpose.PASSWORD_RESET: "Somebody, probably you, asked for a new password",
    MailPurpose.EMAIL_VERIFICATION: "Somebody, probably you, signed up with this address",
}


def _mail(settings: Settings, user: User, purpose: MailPurpose, token: str) -> Mail:
    page = settings.PASSWORD_RESET_URL if purpose is MailPurpose.PASSWORD_RESET else settings.EMAIL_VERIFICATION_URL
    way = f"Follow this link:\n\n{page}?token={token}" if page else f"This is the token:\n\n{token}"
    hours = LIFETIMES[purpose].total_seconds() / 3600
    good_for = f"{hours:.0f} hours" if hours > 1 else f"{hours * 60:.0f} minutes"
    # Not the name they gave: it can hold a link, and anybody can sign up with anybody's address.
    text = (
        f"Hello {user.username},\n\n{_REQUESTS[purpose]} at {settings.APP_NAME}. {way}\n\n"
        f"It works once, within {good_for}. If it was not you, there is nothing to do.\n"
    )
    return Mail(to=user.email, subject=f"{settings.APP_NAME}: {_SUBJECTS[purpose]}", text=text)
