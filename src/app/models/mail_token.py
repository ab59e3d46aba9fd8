"""A token that went out by e-mail, and comes back once."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel


class MailPurpose(StrEnum):
    """What a token is good for."""

    PASSWORD_RESET = "password_reset"  # noqa: S105
    EMAIL_VERIFICATION = "email_verification"


class MailToken(SQLModel, table=True):
    """The table. It holds hashes only: nobody who reads it can use one."""

    __tablename__ = "mail_token"

    id: int = Field(default=None, primary_key=True)
    user_id: int = Field(foreign_key="user.id", ondelete="CASCADE", index=True)
    purpose: str = Field(max_length=20)
    token_hash: str = Field(max_length=64, unique=True, repr=False)
    email: str = Field(max_length=254, description="Where it went: it proves that address and no later one.")
    created_at: datetime
    expires_at: datetime = Field(index=True)
