"""How many logins failed lately, by account and by address."""

from datetime import datetime

from sqlmodel import Field, SQLModel


class LoginThrottle(SQLModel, table=True):
    """The table: one row for each key under which something failed."""

    __tablename__ = "login_throttle"

    key: str = Field(primary_key=True, max_length=150)
    failures: int
    last_failure_at: datetime = Field(index=True)
    locked_until: datetime | None = None
