"""A tier: what a user may use, by way of its rate limits."""

from typing import Annotated

from sqlmodel import Field

from app.core.db.models import TimestampMixin
from app.core.schemas import RequestModel, ResponseModel, VisibleText, may_be_omitted

TierName = Annotated[str, VisibleText(50, names_a_path=True)]


class Tier(TimestampMixin, table=True):
    """The table."""

    id: int = Field(default=None, primary_key=True)
    name: str = Field(max_length=50, unique=True)


class TierCreate(RequestModel):
    name: TierName


class TierUpdate(RequestModel):
    name: TierName = may_be_omitted()


class TierRead(ResponseModel):
    id: int
    name: str
