"""Tables with every type of column, a composite key, and relations in both directions."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any
from uuid import UUID, uuid4

from pydantic import Field as PydanticField
from pydantic import WithJsonSchema
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    Computed,
    Dialect,
    Double,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlmodel import Field, Relationship, SQLModel

from app.core.db.models import TimestampMixin, UUIDMixin
from app.core.schemas import RequestModel, ResponseModel, VisibleText, may_be_omitted

ArticleTitle = Annotated[str, VisibleText(80)]
# JSON Schema's format "time" has an offset from UTC, which a time of day has not.
TimeOfDay = Annotated[time, WithJsonSchema({"type": "string", "pattern": r"^\d\d:\d\d:\d\d(\.\d+)?$"})]


class Status(StrEnum):
    DRAFT = "draft"
    PUBLISHED = "published"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Cents(TypeDecorator[Decimal]):
    """An amount of money, stored as whole cents."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Everything(UUIDMixin, TimestampMixin, table=True):
    """A column of every type."""

    id: int = Field(default=None, primary_key=True)
    small: int = Field(default=1, sa_type=SmallInteger)
    whole: int = 2
    big: int = Field(default=2**40, sa_type=BigInteger)
    ratio: float = 0.5
    double: float = Field(default=0.25, sa_type=Double)
    price: Decimal = Field(default=Decimal("9.99"), max_digits=10, decimal_places=2)
    exact: Decimal = Field(default=Decimal("0.1"), sa_type=Numeric)
    money: Decimal = Field(default=Decimal("1.50"), sa_type=Cents)
    flag: bool = False
    line: str = Field(default="line", max_length=80)
    note: str = Field(default="several\nlines", sa_type=Text)
    day: date = date(2026, 1, 31)
    moment: time = time(12, 30)
    at: datetime | None = None
    duration: timedelta = Field(default=timedelta(hours=36), sa_type=Interval)
    other: UUID = Field(default_factory=uuid4)
    data: bytes = Field(default=b"\x00\xff", sa_type=LargeBinary)
    status: Status = Status.DRAFT
    priority: Priority = Priority.LOW
    colour: Colour | None = None
    address: IPv4Address | None = Field(default=None, sa_type=INET)
    settings: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    tags: list[str] = Field(
        default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": text("'[]'::jsonb")}
    )
    numbers: list[int] = Field(default_factory=list, sa_type=ARRAY(Integer))
    renamed: str = Field(default="x", sa_column=Column("stored_under_another_name", Text, nullable=False))
    twice: int | None = Field(default=None, sa_column=Column(Integer, Computed("whole * 2")))


class EverythingCreate(RequestModel):
    """What the schema of a route can say about most of them."""

    small: Annotated[int, PydanticField(strict=True, ge=-(2**15), lt=2**15)] = 1
    big: Annotated[int, PydanticField(strict=True, ge=-(2**63), lt=2**63)] = 2**40
    price: Annotated[Decimal, PydanticField(max_digits=10, decimal_places=2)] = Decimal("9.99")
    line: ArticleTitle = "line"
    status: Status = Status.DRAFT
    tags: Annotated[list[ArticleTitle], PydanticField(max_length=5)] = PydanticField(default_factory=list)


class EverythingRead(ResponseModel):
    """All of them."""

    id: int
    uuid: UUID
    created_at: datetime
    small: int
    whole: int
    big: int
    ratio: float
    double: float
    price: Decimal
    exact: Decimal
    money: Decimal
    flag: bool
    line: str
    note: str
    day: date
    moment: TimeOfDay
    at: datetime | None
    duration: timedelta
    other: UUID
    status: Status
    priority: Priority
    colour: Colour | None
    address: IPv4Address | None
    settings: dict[str, Any]
    tags: list[str]
    numbers: list[int]
    renamed: str
    twice: int | None


class Article(TimestampMixin, table=True):
    """One side of a relation, and a row that a user owns."""

    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(foreign_key="user.id", ondelete="RESTRICT", index=True)
    title: str = Field(max_length=80, unique=True)
    remarks: list["Remark"] = Relationship(back_populates="article", passive_deletes="all")


class Remark(SQLModel, table=True):
    """The other side, with a composite primary key."""

    article_id: int = Field(foreign_key="article.id", ondelete="CASCADE", primary_key=True)
    number: int = Field(primary_key=True)
    body: str = Field(sa_type=Text)
    article: Article = Relationship(back_populates="remarks")


class ArticleCreate(RequestModel):
    title: ArticleTitle


class ArticleUpdate(RequestModel):
    title: ArticleTitle = may_be_omitted()


class RemarkRead(ResponseModel):
    article_id: int
    number: int
    body: str


class ArticleRead(ResponseModel):
    id: int
    author_id: int
    title: str
    remarks: list[RemarkRead]
