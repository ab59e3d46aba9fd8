"""Showing that one reads the mail to one's address. Present when mail can be sent."""

from fastapi import APIRouter, Depends
from starlette.status import HTTP_202_ACCEPTED

from app.api.credentials import InvalidMailToken, verify_email
from app.api.dependencies import ClientDep, CurrentUser, SessionDep, never_cached
from app.core.exceptions.http_exceptions import Unauthorized
from app.core.openapi import problems
from app.core.schemas import Message
from app.core.utils import queue
from app.models.user import MailTokenUse

router = APIRouter(prefix="/email_verification", tags=["users"], dependencies=[Depends(never_cached)])


@router.post("", status_code=HTTP_202_ACCEPTED, responses=problems(Unauthorized))
async def request_email_verification(user: CurrentUser) -> Message:
    """Ask for another mail with a link, to your address."""
    await queue.pool.enqueue_job("send_email_verification", user.id)
    return Message(message="A mail is on its way, unless one was sent within the last minute.")


@router.post("/confirm", responses=problems(InvalidMailToken))
async def confirm_email_verification(values: MailTokenUse, db: SessionDep, client: ClientDep) -> Message:
    """Verify the address with the token from the mail. It works once; nobody has to be signed in for it."""
    await verify_email(values.token, db, client)
    return Message(message="The e-mail address is verified.")
