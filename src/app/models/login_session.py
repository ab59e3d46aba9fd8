"""A login: what its tokens belong to, and end with."""

import secrets
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlmodel import Field, SQLModel

from app.core.db.models import utc_now
from app.core.schemas import ResponseModel


class LoginKind(StrEnum):
    """What a login opens: one of them never opens the other."""

    API = "api"
    CONSOLE = "console"


class LoginSession(SQLModel, table=True):
    """The table. A row without our keys is worth nothing: see `create_refresh_token`."""

    __tablename__ = "login_session"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    user_id: int = Field(foreign_key="user.id", ondelete="CASCADE", index=True)
    kind: str = Field(default=LoginKind.API, max_length=10, sa_column_kwargs={"server_default": text("'api'")})
    salt: bytes = Field(default_factory=lambda: secrets.token_bytes(16), repr=False)
    generation: int = Field(default=0, description="Of the refresh token that is good now.")
    rotated_at: datetime = Field(default_factory=utc_now, description="When that one was first given out.")
    created_at: datetime = Field(default_factory=utc_now)
    last_used_at: datetime = Field(default_factory=utc_now)
    expires_at: datetime = Field(index=True)
    revoked_at: datetime | None = None
    address: str | None = Field(default=None, max_length=45)
    user_agent: str | None = Field(default=None, max_length=255)

    def is_live(self, now: datetime) -> bool:
        """Whether its tokens are good at this moment."""
        return self.revoked_at is None and now < self.expires_at

    def use(self, now: datetime, idle: timedelta, longest: timedelta) -> None:
        """Puts off its end: by the time it may lie unused, but never past the longest a login lasts."""
        self.last_used_at = now
        self.expires_at = self.end_if_used(now, idle, longest)

    def end_if_used(self, now: datetime, idle: timedelta, longest: timedelta) -> datetime:
        """When it ends, if it is used at this moment."""
        return min(self.created_at + longest, now + idle)


class LoginSessionRead(ResponseModel):
    """A login, as its user sees it.

    Attributes:
        kind: `api`, or `console` for one of the operator's console.
        last_used_at: when it was last refreshed.
        expires_at: when it ends, unless it is refreshed before.
        current: whether this request belongs to it.
    """

    id: UUID
    kind: LoginKind
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str | None
    user_agent: str | None
    current: bool = False


class SessionsEnded(ResponseModel):
    """How many logins were ended."""

    ended: int
