"""Whatever column a table has, a prepared select returns what a session returns."""

import enum
import math
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    Computed,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    Text,
    TypeDecorator,
    Unicode,
    event,
    func,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import CITEXT, INET, INT4RANGE, JSONB, MONEY, OID, TSVECTOR, Range
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import column_property, composite, deferred, reconstructor, registry
from sqlalchemy.types import UserDefinedType
from sqlmodel import Field, Relationship, SQLModel, col, select

from app.core.config import Settings
from app.core.db import prepared_select
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.db.detached import needs_session
from app.core.db.prepared_select import PreparedSelect
from tests.helper import make_room

pytestmark = pytest.mark.anyio


class Base(SQLModel, registry=registry(metadata=MetaData())):
    """Of tables that are the tests' own."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cents(TypeDecorator[Decimal]):
    """Money as whole cents."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Scaled(TypeDecorator[Decimal]):
    """A decorated number with decimals."""

    impl = Numeric(20, 4)
    cache_ok = True

    def process_result_value(self, value: Decimal | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else value + 1


class Shouting(UserDefinedType[str]):
    """A type that looks at the type of the answer for each value."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "text"

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        return lambda value: None if value is None else f"{value.upper()} {coltype}"


# Type, and values that are written; whatever they are, both ways read the same.
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "decimal": (Numeric(12, 4), [Decimal("12.3400"), Decimal("-0.0001"), Decimal("NaN")]),
    "decimal_as_float": (Numeric(12, 4, asdecimal=False), [12.34, -0.5]),
    "decimal_any": (Numeric(), [Decimal("1e20"), Decimal("1.000")]),
    "float": (Float(), [1.5, -0.0, math.inf]),
    "float_as_decimal": (Float(asdecimal=True), [1.5]),
    "double": (Double(), [math.pi]),
    "real": (postgresql.REAL(), [1.25]),
    "integer_as_decimal": (Integer(), [7]),
    "big": (BigInteger(), [2**62]),
    "array": (ARRAY(Integer()), [[1, None, 3], []]),
    "array_of_decimals": (ARRAY(Numeric(10, 2)), [[Decimal("1.50"), None]]),
    "array_of_arrays": (postgresql.ARRAY(Float(), dimensions=2), [[[1.0, 2.0], [3.0, 4.0]]]),
    "array_of_enums": (postgresql.ARRAY(Enum(Colour, name="colours")), [[Colour.RED, None]]),
    "enum": (Enum(Colour, name="colour"), [Colour.BLUE]),
    "enum_as_text": (Enum(Colour, native_enum=False), [Colour.RED]),
    "cents": (Cents(), [Decimal("12.34")]),
    "scaled": (Scaled(), [Decimal("1.5")]),
    "shouting": (Shouting(), ["loud"]),
    "json": (JSON(), [{"a": [1, None, 1.5]}, [], None]),
    "json_null": (JSON(none_as_null=True), [None, "text"]),
    "jsonb": (JSONB(), [{"ü": {"b": True}}]),
    "hstore": (postgresql.HSTORE(), []),
    "bytes": (LargeBinary(), [b"\x00\xff"]),
    "pickled": (PickleType(), [{"a": {1}}]),
    "interval": (Interval(), [timedelta(days=40, seconds=1, microseconds=1)]),
    "moment": (DateTime(timezone=True), [datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]),
    "naive": (DateTime(timezone=False), [datetime(2026, 3, 29, 1, 30)]),  # noqa: DTZ001 -- it is what the type holds
    "date": (postgresql.DATE(), [date(2026, 2, 28)]),
    "time": (postgresql.TIME(), [time(1, 2, 3, 4)]),
    "uuid": (postgresql.UUID(), [UUID(int=7)]),
    "uuid_as_text": (postgresql.UUID(as_uuid=False), [str(UUID(int=7))]),
    "inet": (INET(), [IPv4Address("192.0.2.1")]),
    "range": (INT4RANGE(), [Range(1, 5), Range(empty=True)]),
    "multirange": (postgresql.INT4MULTIRANGE(), [[Range(1, 3), Range(5, 7)]]),
    "bits": (postgresql.BIT(3), []),
    "money": (MONEY(), []),
    "oid": (OID(), [7]),
    "tsvector": (TSVECTOR(), []),
    "citext": (CITEXT(), []),
    "unicode": (Unicode(20), ["é"]),
    "text": (Text(), ["a\nb"]),
    "char": (postgresql.CHAR(5), ["ab"]),
}
EXTENSIONS = {"hstore", "citext"}  # that the embedded server may lack
TYPES = sorted(set(COLUMNS) - EXTENSIONS)


class AnyType(Base, table=True):
    id: int = Field(default=None, primary_key=True)


for _name in TYPES:
    AnyType.__table__.append_column(Column(f"{_name}_in_db", COLUMNS[_name][0], nullable=True))  # type: ignore[attr-defined]
    setattr(AnyType, f"{_name}_value", AnyType.__table__.columns[f"{_name}_in_db"])  # type: ignore[attr-defined]


class Named(Base, table=True):
    """Columns with names of their own in the database, two of them each other's."""

    id: int = Field(default=None, sa_column=Column("named_id", Integer, primary_key=True))
    price: Decimal = Field(sa_column=Column("cost", Numeric(10, 2)))
    cost: Decimal = Field(sa_column=Column("price", Numeric(10, 2)))
    title: str = Field(sa_column_kwargs={"name": "Title of it"})
    doubled: Decimal = Field(default=None, sa_column=Column("twice", Numeric(10, 2), Computed("cost * 2")))
    made: datetime = Field(
        default=None, sa_column=Column("made at", DateTime(timezone=True), server_default=text("now()"))
    )


class TwoKeys(Base, table=True):
    left: int = Field(primary_key=True)
    right: str = Field(primary_key=True)
    ratio: float = 0.5


class WithDeferred(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str


WithDeferred.bio = deferred(Column("biography", Text))


class WithExpression(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str


WithExpression.length = column_property(col(WithExpression.name) + "!")


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"({self.x}, {self.y})"


class WithComposite(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    x: int
    y: int


WithComposite.point = composite(Point, WithComposite.__table__.c.x, WithComposite.__table__.c.y)  # type: ignore[attr-defined]


class Reconstructed(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str

    @reconstructor
    def _on_load(self) -> None:
        self.__dict__["greeting"] = f"Hello {self.name}"


class Listened(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str


@event.listens_for(Listened, "load")
def _on_load(row: Listened, _: object) -> None:
    row.__dict__["greeting"] = f"Hello {row.name}"


class Author(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str
    books: list["Book"] = Relationship(back_populates="author", sa_relationship_kwargs={"lazy": "joined"})
    letters: list["Letter"] = Relationship(back_populates="author")


class Book(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(default=None, foreign_key="author.id")
    author: Author = Relationship(back_populates="books")


class Letter(Base, table=True):
    """One whose relation is not loaded with it."""

    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(default=None, foreign_key="author.id")
    author: Author = Relationship(back_populates="letters")


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    opened = open_database(settings, pool_size=2)
    async with opened.begin() as connection:
        await make_room(connection, *Base.metadata.tables)
        await connection.run_sync(Base.metadata.create_all)
    yield opened
    await close_database(opened)


async def both_ways(model: Any) -> tuple[list[Any], list[Any], int]:
    """All rows by a session, and by a prepared select; and how many statements the latter put to the driver."""
    statement = select(model).order_by(*model.__table__.primary_key)
    prepared: PreparedSelect[Any] = PreparedSelect(statement)
    direct, fetch = 0, prepared_select.fetch

    async def counted(*arguments: Any) -> list[Any]:
        nonlocal direct
        direct += 1
        return await fetch(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepared_select, "fetch", counted)
        async with reading() as db:
            by_prepared = await prepared.all(db)
    async with reading() as db:
        by_session = list((await db.exec(statement)).unique())
    async with transaction() as db:
        in_transaction = await prepared.all(db)
    assert list(map(state_of, in_transaction)) == list(map(state_of, by_session))
    return by_session, by_prepared, direct


def state_of(row: Any) -> dict[str, str]:
    """A row's attributes as text that tells types apart, and NaN from nothing."""
    return {name: repr(value) for name, value in vars(row).items() if name != "_sa_instance_state"}


async def write(*rows: Any) -> None:
    async with transaction() as db:
        db.add_all(rows)


@pytest.mark.parametrize("name", TYPES)
async def test_every_type(engine: AsyncEngine, name: str) -> None:
    table = AnyType.__table__  # type: ignore[attr-defined]
    async with transaction() as db:
        await (await db.connection()).execute(table.insert(), {})
        for value in COLUMNS[name][1]:
            await (await db.connection()).execute(table.insert().values({f"{name}_in_db": value}))
    by_session, by_prepared, direct = await both_ways(AnyType)
    assert direct == 1
    assert list(map(state_of, by_prepared)) == list(map(state_of, by_session))
    assert len(by_prepared) == 1 + len(COLUMNS[name][1])
    assert getattr(by_prepared[0], f"{name}_value") is None


async def test_other_names_in_the_database(engine: AsyncEngine) -> None:
    await write(Named(price=Decimal("1.50"), cost=Decimal("2.25"), title="a"))
    by_session, by_prepared, direct = await both_ways(Named)
    assert direct == 1
    assert list(map(state_of, by_prepared)) == list(map(state_of, by_session))
    assert (by_prepared[0].price, by_prepared[0].cost, by_prepared[0].doubled) == (1.5, 2.25, 3)


async def test_a_composite_key(engine: AsyncEngine) -> None:
    await write(TwoKeys(left=2, right="b"), TwoKeys(left=1, right="a", ratio=0.25))
    by_session, by_prepared, direct = await both_ways(TwoKeys)
    assert direct == 1
    assert by_prepared == by_session
    async with transaction() as db:
        merged = await db.merge(by_prepared[0])
        assert (merged.left, merged.right) == (1, "a")


@pytest.mark.parametrize(
    ("model", "values", "attribute", "value"),
    [
        (WithDeferred, {"name": "a"}, None, None),
        (WithExpression, {"name": "a"}, "length", "a!"),
        (WithComposite, {"x": 1, "y": 2}, "point", Point(1, 2)),
        (Reconstructed, {"name": "Ada"}, "greeting", "Hello Ada"),
        (Listened, {"name": "Ada"}, "greeting", "Hello Ada"),
        (Author, {"name": "Ada", "books": [Book(), Book()]}, None, None),
    ],
)
async def test_what_only_a_session_can_do_is_left_to_it(
    engine: AsyncEngine, model: Any, values: dict[str, Any], attribute: str | None, value: Any
) -> None:
    await write(model(**values))
    by_session, by_prepared, direct = await both_ways(model)
    assert direct == 0
    assert needs_session(model) is not None
    assert len(by_prepared) == len(by_session) == 1
    if attribute is not None:
        assert getattr(by_prepared[0], attribute) == value
    if model is Author:
        assert [book.id for book in by_prepared[0].books] == [1, 2]


async def test_a_relation_that_is_not_loaded_costs_nothing(engine: AsyncEngine) -> None:
    await write(Author(name="Ada", letters=[Letter()]))
    _, by_prepared, direct = await both_ways(Letter)
    assert direct == 1
    assert by_prepared[0].author_id == 1


async def test_other_statements_that_a_session_has_to_run(engine: AsyncEngine) -> None:
    await write(TwoKeys(left=1, right="a"), TwoKeys(left=2, right="b"))
    in_list = PreparedSelect(select(col(TwoKeys.left)).where(col(TwoKeys.right).in_(["a", "c"])))
    pair: PreparedSelect[tuple[TwoKeys, str]] = PreparedSelect(
        select(TwoKeys, col(TwoKeys.right)).where(col(TwoKeys.left) == 2)
    )
    async with reading() as db:
        assert await in_list.all(db) == [1]
    async with reading() as db:
        ((row, right),) = await pair.all(db)
    assert (row.left, row.ratio, right) == (2, 0.5, "b")


async def test_a_column_with_the_name_of_another_result(engine: AsyncEngine) -> None:
    await write(TwoKeys(left=1, right="a"), TwoKeys(left=2, right="b"))
    count = select(func.count()).select_from(TwoKeys).scalar_subquery()
    pair: PreparedSelect[tuple[TwoKeys, int]] = PreparedSelect(
        select(TwoKeys, count.label("ratio")).order_by(col(TwoKeys.left))
    )
    for opener in (reading, transaction):
        async with opener() as db:
            assert [(row.left, row.ratio, total) for row, total in await pair.all(db)] == [(1, 0.5, 2), (2, 0.5, 2)]


async def test_listeners_on_the_engine_see_the_statement(engine: AsyncEngine) -> None:
    seen: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *values: seen.append(values[2]))
    _, _, direct = await both_ways(TwoKeys)
    assert direct == 0
    assert len(seen) == 3


async def test_a_statement_that_cannot_be_compiled_alone_is_run_in_a_session(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise NotImplementedError

    await write(TwoKeys(left=1, right="a"))
    monkeypatch.setattr(prepared_select, "_types_of_answer", fail)
    by_session, by_prepared, direct = await both_ways(TwoKeys)
    assert direct == 0
    assert by_prepared == by_session
