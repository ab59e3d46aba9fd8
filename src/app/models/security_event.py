"""A security event: who signed in from where, what was refused, whose rights changed."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from app.core.db.models import utc_now
from app.core.schemas import ResponseModel


class EventKind(StrEnum):
    """What happened."""

    LOGIN = "login"
    LOGIN_FAILED = "login_failed"
    LOGIN_LOCKED = "login_locked"
    LOGOUT = "logout"
    REFRESH_REUSED = "refresh_reused"
    SESSIONS_ENDED = "sessions_ended"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    PASSWORD_RESET_REQUESTED = "password_reset_requested"  # noqa: S105
    PASSWORD_RESET = "password_reset"  # noqa: S105
    EMAIL_VERIFIED = "email_verified"
    EMAIL_CHANGED = "email_changed"
    RIGHTS_CHANGED = "rights_changed"
    USER_DELETED = "user_deleted"
    USER_RESTORED = "user_restored"


class SecurityEvent(SQLModel, table=True):
    """The table."""

    __tablename__ = "security_event"

    id: int = Field(default=None, sa_type=BigInteger, primary_key=True)
    created_at: datetime = Field(default_factory=utc_now, index=True)
    kind: str = Field(max_length=40)
    user_id: int | None = Field(default=None, foreign_key="user.id", ondelete="SET NULL", index=True)
    actor_id: int | None = Field(default=None, description="Who did it, if not the user.")
    session_id: UUID | None = None
    address: str | None = Field(default=None, max_length=45)
    user_agent: str | None = Field(default=None, max_length=255)
    request_id: str | None = Field(default=None, max_length=64)
    details: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)


class SecurityEventRead(ResponseModel):
    """An event, as superusers see it."""

    id: int
    created_at: datetime
    kind: str
    user_id: int | None
    actor_id: int | None
    session_id: UUID | None
    address: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]
