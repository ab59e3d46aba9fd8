"""A new password for somebody who has forgotten theirs. Present when mail can be sent."""

from fastapi import APIRouter, Depends
from starlette.status import HTTP_202_ACCEPTED

from app.api.credentials import InvalidMailToken, PasswordTooObvious, reset_password
from app.api.dependencies import ClientDep, SessionDep, SettingsDep, never_cached
from app.core.openapi import problems
from app.core.passwords import HashingBusy
from app.core.schemas import Message
from app.core.utils import queue
from app.models.user import MailRequest, PasswordReset

router = APIRouter(prefix="/password_reset", tags=["passwords"], dependencies=[Depends(never_cached)])


@router.post("", status_code=HTTP_202_ACCEPTED)
async def request_password_reset(values: MailRequest) -> Message:
    """Ask for a mail with a link. The answer is the same, and comes as fast, whether anybody has the address."""
    # To whom is for the job to find out, so that whoever asks learns nothing from it.
    await queue.pool.enqueue_job("send_password_reset", values.email)
    return Message(message="If somebody has this address, a mail is on its way to it.")


@router.post("/confirm", responses=problems(InvalidMailToken, PasswordTooObvious, HashingBusy))
async def confirm_password_reset(
    values: PasswordReset, db: SessionDep, settings: SettingsDep, client: ClientDep
) -> Message:
    """Set a new password with the token from the mail. It works once, and ends all of your logins."""
    await reset_password(values, db, settings, client)
    return Message(message="The password is changed. Sign in with the new one.")
