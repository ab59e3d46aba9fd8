"""A user: somebody who can sign in."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, EmailStr, SecretStr, StringConstraints, ValidationInfo
from pydantic import Field as PydanticField
from sqlalchemy import CheckConstraint, Index, text
from sqlmodel import Field

from app.core.db.models import SoftDeleteMixin, TimestampMixin, UUIDMixin
from app.core.passwords import is_common
from app.core.schemas import MAX_ID, RequestModel, ResponseModel, VisibleText, may_be_omitted

RESERVED_USERNAMES = {"me"}  # it is the caller's own address: /user/me/


def _not_reserved(username: str) -> str:
    if username in RESERVED_USERNAMES:
        raise ValueError("This user name is reserved")
    return username


PersonName = Annotated[str, VisibleText(30)]
ExistingUsername = Annotated[str, StringConstraints(min_length=2, max_length=20, pattern=r"^[a-z0-9]+$")]
Username = Annotated[
    ExistingUsername,
    AfterValidator(_not_reserved),
    PydanticField(json_schema_extra={"not": {"enum": sorted(RESERVED_USERNAMES)}}),
]
Email = Annotated[EmailStr, PydanticField(max_length=254)]


def _is_unicode(password: SecretStr) -> SecretStr:
    if any("\ud800" <= character <= "\udfff" for character in password.get_secret_value()):
        raise ValueError("This password holds half of a surrogate pair, which is no character")
    return password


# Whatever there is to type, and as long as a sentence.
AnyPassword = Annotated[SecretStr, PydanticField(min_length=1, max_length=128), AfterValidator(_is_unicode)]


def _not_common(password: SecretStr, info: ValidationInfo) -> SecretStr:
    words = (str(info.data[name]) for name in ("username", "email") if name in info.data)
    if is_common(password.get_secret_value(), *words):
        raise ValueError("This password is among the first that are tried: take another one")
    return password


Password = Annotated[
    SecretStr, PydanticField(min_length=8, max_length=128), AfterValidator(_is_unicode), AfterValidator(_not_common)
]
MailTokenText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{20,100}$")]
ImageUrl = Annotated[str, StringConstraints(max_length=500, pattern=r"^https?://[!#-;=?-\[\]_a-z~]+$")]


class User(UUIDMixin, TimestampMixin, SoftDeleteMixin, table=True):
    """The table. A soft-deleted user keeps their name and address, so nobody can take them over."""

    __table_args__ = (
        Index("uq_user_email", text("lower(email)"), unique=True),
        CheckConstraint("NOT is_deleted OR tier_id IS NULL", name="deleted_has_no_tier"),
    )

    id: int = Field(default=None, primary_key=True)
    name: str = Field(max_length=30)
    username: str = Field(max_length=20, unique=True)
    email: str = Field(max_length=254)
    hashed_password: str = Field(repr=False)
    password_changed_at: datetime | None = Field(
        default=None, description="Unlike the hash, not changed by renewing it."
    )
    password_expires_at: datetime | None = Field(
        default=None, description="Of a temporary one: it opens nothing from then on."
    )
    profile_image_url: str | None = Field(default=None, max_length=500)
    tier_id: int | None = Field(default=None, foreign_key="tier.id", ondelete="RESTRICT", index=True)
    email_verified_at: datetime | None = Field(default=None, description="When mail to the address was answered.")
    is_superuser: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})


class UserCreate(RequestModel):
    name: PersonName
    username: Username
    email: Email
    password: Password


class UserUpdate(RequestModel):
    name: PersonName = may_be_omitted()
    username: Username = may_be_omitted()
    email: Email = may_be_omitted()
    profile_image_url: ImageUrl | None = None


class UserTierUpdate(RequestModel):
    tier_id: Annotated[int, PydanticField(strict=True, ge=1, le=MAX_ID)] | None


class PasswordChange(RequestModel):
    current_password: AnyPassword
    new_password: Password


class PasswordReset(RequestModel):
    token: MailTokenText
    new_password: Password


class MailTokenUse(RequestModel):
    token: MailTokenText


class MailRequest(RequestModel):
    email: Email


class UserPublic(ResponseModel):
    """What anybody may see."""

    id: int
    name: str
    username: str
    profile_image_url: str | None
    tier_id: int | None


class UserRead(UserPublic):
    """What the user and superusers see."""

    uuid: UUID
    email: str
    email_verified_at: datetime | None
    is_superuser: bool
    created_at: datetime
    updated_at: datetime | None
