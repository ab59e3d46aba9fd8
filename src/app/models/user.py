"""A user: somebody who can sign in."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, EmailStr, SecretStr, StringConstraints
from pydantic import Field as PydanticField
from sqlalchemy import CheckConstraint, Index, text
from sqlmodel import Field

from app.core.db.models import SoftDeleteMixin, TimestampMixin, UUIDMixin
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
Password = Annotated[SecretStr, PydanticField(min_length=8, max_length=128)]
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
    profile_image_url: str | None = Field(default=None, max_length=500)
    tier_id: int | None = Field(default=None, foreign_key="tier.id", ondelete="RESTRICT", index=True)
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
    is_superuser: bool
    created_at: datetime
    updated_at: datetime | None
