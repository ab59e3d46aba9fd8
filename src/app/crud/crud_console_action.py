"""What was done in the operator's console, in the database and as lines of the log."""

from collections.abc import Mapping, Set
from datetime import date, datetime, time
from enum import Enum
from functools import partial
from math import isfinite
from typing import Any, Final

import structlog
from pydantic import BaseModel
from sqlalchemy import delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import after_commit
from app.crud.crud_base import CRUDBase
from app.crud.crud_security_event import Client
from app.models.console_action import ConsoleAction
from app.models.user import User

LONGEST_TEXT: Final = 500  # characters of a value
LONGEST_TARGET: Final = 200
SECRET_WORDS: Final = ("password", "hash", "secret", "token")

log = structlog.stdlib.get_logger("slipway.console")


class CRUDConsoleAction(CRUDBase[ConsoleAction]):
    model = ConsoleAction

    async def record(
        self,
        db: AsyncSession,
        actor: User,
        client: Client,
        action: str,
        target: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> None:
        """Writes a row in this transaction and, once that is committed, a line of the log.

        Args:
            action: what was done, such as `user.edit`.
            target: to what, such as `user 5`.
            before, after: what was changed, as it was and as it is: nothing secret. What JSON cannot hold is made a
                text, and a text is cut at LONGEST_TEXT characters.

        Raises: ValueError for a name in `before` or `after`, at any depth, that is a secret's, unless what it names is
        true or false.
        """
        row = ConsoleAction(
            actor_id=actor.id,
            actor=actor.username,
            action=action,
            target=_as_text(target, LONGEST_TARGET),
            before=_as_json(before),
            after=_as_json(after),
            address=client.address,
            user_agent=client.user_agent,
            request_id=client.request_id,
        )
        db.add(row)
        after_commit(db, partial(_log, row))

    async def purge(self, db: AsyncSession, before: datetime) -> int:
        """Removes what was done before this moment. Says how many rows."""
        return (await db.exec(delete(ConsoleAction).where(col(ConsoleAction.created_at) < before))).rowcount


async def _log(row: ConsoleAction) -> None:
    facts = row.model_dump(exclude={"created_at", "request_id"}, exclude_none=True)
    log.info("console action", **facts)


def _as_json(value: Any) -> Any:
    """The same as JSON can hold it. Raises: ValueError for what a secret's name names."""
    match value:
        case Enum():
            return _as_json(value.value)
        case None | bool() | int():
            return value
        case float() if isfinite(value):
            return value
        case datetime() | date() | time():
            return value.isoformat()
        case BaseModel():
            return _as_json(value.model_dump())
        case Mapping():
            return {_checked_name(name, named): _as_json(named) for name, named in value.items()}
        case list() | tuple() | Set():
            return [_as_json(item) for item in value]
        case _:  # A text, a UUID, and whatever else there may be.
            return _as_text(str(value), LONGEST_TEXT)


def _checked_name(name: Any, named: Any) -> str:
    text = _as_text(str(name), LONGEST_TEXT)
    if not isinstance(named, bool) and any(word in text.lower() for word in SECRET_WORDS):
        raise ValueError(f"{text!r} is the name of a secret, which is not written down.")
    return text


def _as_text(text: str, longest: int) -> str:
    """As much of it as is kept, without what PostgreSQL does not take: NUL, and halves of surrogate pairs."""
    return text[:longest].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


crud_console_actions = CRUDConsoleAction()
