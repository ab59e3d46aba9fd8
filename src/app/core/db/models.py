"""What every table shares: constraint names, time, and the mixins for common columns."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import func, text
from sqlmodel import Field, SQLModel

import app.core.db.not_loaded  # noqa: F401 -- relations are not loaded by accident, wherever their tables are used
from app.core.db.column_types import store_enums_as_text

# Predictable names let the code translate a violated constraint and let a migration drop it.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
store_enums_as_text(SQLModel.metadata)


def utc_now() -> datetime:
    """The current time, with its time zone."""
    return datetime.now(UTC)


class UUIDMixin(SQLModel):
    """A public identifier that is never used again, unlike a name, and cannot be counted, unlike an id."""

    uuid: UUID = Field(
        default_factory=uuid4, unique=True, sa_column_kwargs={"server_default": text("gen_random_uuid()")}
    )


class TimestampMixin(SQLModel):
    """When a row was made and last changed."""

    created_at: datetime = Field(default_factory=utc_now, sa_column_kwargs={"server_default": func.now()})
    updated_at: datetime | None = Field(default=None, sa_column_kwargs={"onupdate": utc_now})


class SoftDeleteMixin(SQLModel):
    """A row that is kept but no longer served."""

    deleted_at: datetime | None = None
    is_deleted: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
