"""What was done in the operator's console: who, to what, and how it was before and after."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from app.core.db.models import utc_now


class ConsoleAction(SQLModel, table=True):
    """The table. Rows are only ever added, and go after `CONSOLE_AUDIT_DAYS`.

    Attributes:
        actor_id, actor: who did it, by id and by the user name of that day. No foreign key: it outlives the user.
        action: what was done, such as `user.edit`.
        target: to what, such as `user 5`.
        before, after: what of it was changed; nothing secret.
    """

    __tablename__ = "console_action"

    id: int = Field(default=None, sa_type=BigInteger, primary_key=True)
    created_at: datetime = Field(default_factory=utc_now, index=True)
    actor_id: int = Field(index=True)
    actor: str = Field(max_length=20)
    action: str = Field(max_length=40, index=True)
    target: str = Field(max_length=200, index=True)
    before: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)
    after: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)
    address: str | None = Field(default=None, max_length=45)
    user_agent: str | None = Field(default=None, max_length=255)
    request_id: str | None = Field(default=None, max_length=64)
