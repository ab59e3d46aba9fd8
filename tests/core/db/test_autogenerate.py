"""Migrations that are written from the models work in both directions, and leave nothing to write."""

import enum
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from pydantic import NaiveDatetime
from sqlalchemy.dialects import postgresql as pg
from sqlmodel import Field

from app.core.db.models import utc_now
from tests.migrations_kit import Project, empty_project, new_base


class Status(enum.Enum):
    DRAFT = "draft"
    PUBLISHED = "published"


class StatusMore(enum.Enum):
    DRAFT = "draft"
    SCHEDULED = "scheduled"
    PUBLISHED = "published"


class StatusLess(enum.Enum):
    PUBLISHED = "published"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue: it's %s"


class Ltree(sa.types.UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tsquery"


class Trimmed(sa.types.TypeDecorator[str]):
    impl = sa.String(30)
    cache_ok = True


@pytest.fixture
def project(tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    return empty_project(tmp_path, empty_database, monkeypatch)


def posts(*columns: sa.Column[Any] | sa.schema.SchemaItem) -> Any:
    """Models with a table `post`, with an id and these columns."""
    base = new_base()
    sa.Table("post", base.metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)
    return base


def test_every_type(project: Project) -> None:
    base = new_base()

    class Everything(base, table=True):  # type: ignore[misc, valid-type, call-arg]
        id: int = Field(default=None, primary_key=True)
        text: str
        short: str = Field(max_length=20, index=True)
        whole: int
        big: int = Field(sa_type=sa.BigInteger)
        small: int | None = Field(default=None, sa_type=sa.SmallInteger)
        ratio: float = 0.5
        price: Decimal = Field(max_digits=12, decimal_places=2)
        flag: bool = False
        moment: datetime = Field(default_factory=utc_now)
        naive: NaiveDatetime | None = None
        day: date
        hour: time
        span: timedelta
        key: UUID = Field(default_factory=uuid4)
        blob: bytes
        status: Status
        other: Status | None = None
        level: Level = Level.LOW
        colour: Colour = Colour.RED
        statuses: list[Status] = Field(sa_type=pg.ARRAY(sa.Enum(Status)))
        native: Status = Field(sa_type=pg.ENUM(Status, name="Native status"))
        natives: list[Status] = Field(sa_type=pg.ARRAY(pg.ENUM("a", "b", name="item")))
        document: dict[str, Any] = Field(sa_type=sa.JSON, sa_column_kwargs={"server_default": "{}"})
        binary: dict[str, Any] = Field(sa_type=pg.JSONB, sa_column_kwargs={"server_default": sa.text("'{}'::jsonb")})
        variant: dict[str, Any] = Field(sa_type=sa.JSON().with_variant(pg.JSONB(), "postgresql"))
        tags: list[str] = Field(sa_type=pg.ARRAY(sa.String(10)), sa_column_kwargs={"server_default": "{}"})
        grid: list[list[int]] = Field(sa_type=pg.ARRAY(sa.Integer, dimensions=2))
        address: str = Field(sa_type=pg.INET)
        network: str = Field(sa_type=pg.CIDR)
        card: str = Field(sa_type=pg.MACADDR)
        bits: str = Field(sa_type=pg.BIT(8))
        span_fields: timedelta = Field(sa_type=pg.INTERVAL(fields="DAY TO SECOND", precision=3))
        period: Any = Field(sa_type=pg.TSTZRANGE)
        periods: Any = Field(sa_type=pg.INT4MULTIRANGE)
        words: Any = Field(
            sa_column=sa.Column(pg.TSVECTOR, sa.Computed("to_tsvector('english', text)", persisted=True))
        )
        double: int = Field(sa_column=sa.Column(sa.Integer, sa.Computed("whole * 2")))
        number: int = Field(sa_column=sa.Column(sa.BigInteger, sa.Identity(start=100, always=True)))
        custom: str = Field(sa_type=Ltree)
        trimmed: str = Field(sa_type=Trimmed, sa_column_kwargs={"server_default": "it's: 'x' :y %(z)s"})
        domain: str = Field(sa_type=pg.DOMAIN("zip", sa.String(5), check=sa.text("VALUE ~ '^[0-9]+$'")))
        yes: bool = Field(sa_type=sa.Boolean(create_constraint=True, name="yes_is_boolean"))
        checked: str = Field(sa_type=sa.Enum("a", "b", native_enum=False, create_constraint=True, name="c"))
        unchecked: str = Field(sa_type=sa.Enum("a", "bc", native_enum=False, name="u"))
        made: datetime = Field(sa_column_kwargs={"server_default": sa.func.now(), "comment": 'It\'s "when": %s'})
        drawn: UUID = Field(sa_column_kwargs={"server_default": sa.text("gen_random_uuid()")})
        soon: datetime = Field(sa_column_kwargs={"server_default": sa.text("now() + interval '1 day'")})
        select: str = Field(sa_column_kwargs={"name": "Select", "server_default": ""})

    text = project.change(base)
    assert text is not None
    assert "sqlmodel" not in text
    assert "tests." not in text
    assert not project.fetch("SELECT typname FROM pg_type WHERE typname IN ('status', 'level', 'colour')")


def column(type_: Any, *rest: Any, **options: Any) -> sa.Column[Any]:
    """A column `value` that may be NULL, unless the options say otherwise."""
    return sa.Column("value", type_, *rest, **{"nullable": True} | options)


ENUMS: dict[str, tuple[list[Any], list[Any]]] = {
    "on an existing table": ([], [column(sa.Enum(Status))]),
    "required, with a default in Python": ([], [column(sa.Enum(Status), nullable=False, default=Status.DRAFT)]),
    "required, with a default of the server": ([], [column(sa.Enum(Status), nullable=False, server_default="DRAFT")]),
    "a new value": ([column(sa.Enum(Status))], [column(sa.Enum(StatusMore))]),
    "a new value that is the new default": (
        [column(sa.Enum(Status), server_default="DRAFT")],
        [column(sa.Enum(StatusMore), server_default="SCHEDULED")],
    ),
    "one value less": ([column(sa.Enum(Status))], [column(sa.Enum(StatusLess))]),
    "another value": ([column(sa.Enum("a", "b", name="x"))], [column(sa.Enum("a", "c", name="x"))]),
    "an array of them": ([], [column(pg.ARRAY(sa.Enum(Status)))]),
    "a new value in an array": ([column(sa.ARRAY(sa.Enum(Status)))], [column(sa.ARRAY(sa.Enum(StatusMore)))]),
    "with an index": ([], [column(sa.Enum(Status), index=True)]),
    "in two columns": ([], [column(sa.Enum(Status)), sa.Column("other", sa.Enum(Status))]),
    "text that becomes one": ([column(sa.String)], [column(sa.Enum(Status))]),
    "one that becomes text": ([column(sa.Enum(Status))], [column(sa.String(40))]),
    "a number that becomes one": ([column(sa.Integer, server_default="1")], [column(sa.Enum("1", "2", name="n"))]),
    "native, on an existing table": ([], [column(pg.ENUM(Status, name="status"))]),
    "native, with a new value": (
        [column(pg.ENUM(Status, name="status"), server_default="DRAFT", index=True)],
        [column(pg.ENUM(StatusMore, name="status"), server_default="SCHEDULED", index=True)],
    ),
    "native, in an array, with another value": (
        [column(pg.ARRAY(pg.ENUM("a", "b", name="Kind")), server_default="{a}")],
        [column(pg.ARRAY(pg.ENUM("a", "c", name="Kind")), server_default="{a}")],
    ),
    "native, with a partial index and a check": (
        [
            column(pg.ENUM(Status, name="status")),
            sa.Index("ix_drafts", "id", postgresql_where=sa.text("value = 'DRAFT'")),
            sa.CheckConstraint("value <> 'PUBLISHED' OR id > 0", name="published"),
        ],
        [
            column(pg.ENUM(StatusMore, name="status")),
            sa.Index("ix_drafts", "id", postgresql_where=sa.text("value = 'DRAFT'")),
            sa.CheckConstraint("value <> 'PUBLISHED' OR id > 0", name="published"),
        ],
    ),
    "native that becomes text": ([column(pg.ENUM(Status, name="status"))], [column(sa.Enum(Status))]),
    "text that becomes native": ([column(sa.Enum(Status))], [column(pg.ENUM(Status, name="status"))]),
    "no longer there": ([column(pg.ENUM(Status, name="status"))], []),
    "a domain with another check": (
        [column(pg.DOMAIN("zip", sa.String(9), check=sa.text("VALUE <> ''")))],
        [column(pg.DOMAIN("zip", sa.String(9), check=sa.text("VALUE <> '-'")))],
    ),
}


@pytest.mark.parametrize("change", ENUMS.values(), ids=ENUMS)
def test_an_enum(project: Project, change: tuple[list[Any], list[Any]]) -> None:
    before, after = change
    project.change(posts(*before))
    project.fetch("INSERT INTO post DEFAULT VALUES")
    assert project.change(posts(*after)) is not None
    assert project.change(new_base()) is not None
    assert project.schema() == []


CHANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "JSON with a default": ([], [column(sa.JSON, server_default="{}")]),
    "the default of a JSON": ([column(sa.JSON, server_default="{}")], [column(sa.JSON, server_default='{"a": 1}')]),
    "JSON that becomes JSONB": ([column(sa.JSON, server_default="{}")], [column(pg.JSONB, server_default="{}")]),
    "required JSON": ([], [column(pg.JSONB, nullable=False, default=dict)]),
    "a required list": ([], [column(pg.ARRAY(sa.Integer), nullable=False, default=list)]),
    "a required text": ([], [column(sa.String(20), nullable=False, default="it's: :x %s")]),
    "a required time": ([], [column(sa.DateTime(timezone=True), nullable=False, default=utc_now)]),
    "a required UUID": ([], [column(sa.Uuid, nullable=False, default=uuid4, unique=True)]),
    "a required amount": ([], [column(sa.Numeric(8, 2), nullable=False, default=Decimal("1.50"))]),
    "a required duration": ([], [column(sa.Interval, nullable=False, default=timedelta(hours=1))]),
    "text that becomes a number": ([column(sa.String, server_default="1")], [column(sa.Integer, server_default="2")]),
    "a number that becomes text": ([column(sa.Integer, server_default="1")], [column(sa.String, server_default="1")]),
    "a longer text": ([column(sa.String(10))], [column(sa.String(20))]),
    "text without a length": ([column(sa.String(10))], [column(sa.Text)]),
    "text that becomes an array": ([column(pg.ARRAY(sa.String))], [column(pg.ARRAY(sa.Integer))]),
    "text that becomes a date": ([column(sa.String)], [column(sa.Date)]),
    "a larger number": ([column(sa.Integer)], [column(sa.BigInteger)]),
    "another precision": ([column(sa.Numeric(8, 2))], [column(sa.Numeric(10, 4))]),
    "a time without a zone": ([column(sa.DateTime(timezone=True))], [column(sa.DateTime)]),
    "a type of one's own": ([column(sa.String)], [column(Ltree)]),
    "a type of one's own, no longer": ([column(Ltree)], []),
    "a default that is a function": ([column(sa.Float)], [column(sa.Float, server_default=sa.text("random()"))]),
    "no default": ([column(sa.String, server_default="x")], [column(sa.String)]),
    "an expression": (
        [column(sa.Integer, sa.Computed("id * 2", persisted=True))],
        [column(sa.Integer, sa.Computed("id * 3", persisted=True))],
    ),
    "a computed column that is an ordinary one": ([column(sa.Integer, sa.Computed("id * 2"))], [column(sa.Integer)]),
    "an ordinary column that is computed": (
        [column(sa.Integer)],
        [column(sa.Integer, sa.Computed("id * 2", persisted=True))],
    ),
    "an identity": ([], [sa.Column("value", sa.Integer, sa.Identity(start=5))]),
    "another identity": (
        [sa.Column("value", sa.Integer, sa.Identity(start=5))],
        [sa.Column("value", sa.Integer, sa.Identity(start=5, increment=2, always=True))],
    ),
    "a comment": ([column(sa.Integer)], [column(sa.Integer, comment="it's: :x %s")]),
    "a check": ([column(sa.Integer)], [column(sa.Integer), sa.CheckConstraint("value > 0", name="positive")]),
    "another check": (
        [column(sa.String), sa.CheckConstraint("value <> 'a: \\:b %'", name="positive")],
        [column(sa.String), sa.CheckConstraint("value <> 'b'", name="positive")],
    ),
    "an expression with a colon": (
        [column(sa.String, server_default=sa.text("'a \\:b'"))],
        [column(sa.String, server_default=sa.text("'a \\:c'")), sa.Index("ix_some", sa.text("(value || ' \\:x')"))],
    ),
    "no check": ([column(sa.Integer), sa.CheckConstraint("value > 0", name="positive")], [column(sa.Integer)]),
    "an exclusion": (
        [column(pg.INT4RANGE)],
        [column(pg.INT4RANGE), pg.ExcludeConstraint(("value", "&&"), name="no_overlap", using="gist")],
    ),
    "no exclusion": (
        [column(pg.INT4RANGE), pg.ExcludeConstraint(("value", "&&"), name="no_overlap", using="gist")],
        [column(pg.INT4RANGE)],
    ),
    "unique, with NULLs the same": (
        [column(sa.Integer)],
        [column(sa.Integer), sa.UniqueConstraint("value", postgresql_nulls_not_distinct=True)],
    ),
    "a partial index": ([], [sa.Index("ix_some", "id", postgresql_where=sa.text("id > 5"))]),
    "another predicate": (
        [sa.Index("ix_some", "id", postgresql_where=sa.text("id > 5"))],
        [sa.Index("ix_some", "id", postgresql_where=sa.text("id > 6"))],
    ),
    "an index of an expression": (
        [column(sa.String)],
        [column(sa.String), sa.Index("ix_some", sa.text("lower(value) DESC NULLS LAST"), unique=True)],
    ),
    "an index of another method": (
        [column(pg.JSONB), sa.Index("ix_some", "value", postgresql_using="gin")],
        [
            column(pg.JSONB),
            sa.Index("ix_some", "value", postgresql_using="gin", postgresql_ops={"value": "jsonb_path_ops"}),
        ],
    ),
    "an index with more columns": (
        [column(sa.String), sa.Index("ix_some", "id", postgresql_include=["value"])],
        [column(sa.String), sa.Index("ix_some", "id", postgresql_with={"fillfactor": 50})],
    ),
    "no index": (
        [
            column(sa.String),
            sa.Index("ix_a", sa.text("(value || ' :x') text_pattern_ops"), postgresql_where=sa.text("value <> ''")),
            sa.Index("ix_b", sa.desc("value"), postgresql_with={"fillfactor": 50}),
        ],
        [column(sa.String)],
    ),
    "names that are reserved, and of mixed case": (
        [],
        [
            sa.Column("Order", sa.Enum(Status), index=True),
            sa.Column("group by", sa.String, default="x", nullable=False),
        ],
    ),
    "a reference to itself": (
        [column(sa.Integer)],
        [column(sa.Integer, sa.ForeignKey("post.id", ondelete="SET NULL"), index=True)],
    ),
    "another action of a reference": (
        [column(sa.Integer, sa.ForeignKey("post.id", ondelete="SET NULL"))],
        [column(sa.Integer, sa.ForeignKey("post.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"))],
    ),
}


@pytest.mark.filterwarnings("ignore:Expression #1 .* detected to include an operator clause:UserWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change(project: Project, change: tuple[list[Any], list[Any]]) -> None:
    before, after = change
    project.change(posts(*before))
    project.fetch("INSERT INTO post DEFAULT VALUES")
    assert project.change(posts(*after)) is not None
    with_it = project.schema()
    project.use(new_base())
    project.write()
    project.run("upgrade", "head")
    assert project.schema() == []
    project.run("downgrade", "-1")
    assert project.schema() == with_it


def test_tables_that_refer_to_each_other(project: Project) -> None:
    base = new_base()

    class Author(base, table=True):  # type: ignore[misc, valid-type, call-arg]
        id: int = Field(default=None, primary_key=True)
        favourite_id: int | None = Field(default=None, foreign_key="book.id", ondelete="SET NULL")

    class Book(base, table=True):  # type: ignore[misc, valid-type, call-arg]
        id: int = Field(default=None, primary_key=True)
        author_id: int = Field(foreign_key="author.id", ondelete="CASCADE")

    class Chapter(base, table=True):  # type: ignore[misc, valid-type, call-arg]
        __table_args__ = (sa.UniqueConstraint("book_id", "title"),)
        book_id: int = Field(foreign_key="book.id", primary_key=True)
        number: int = Field(primary_key=True)
        title: str

    class Note(base, table=True):  # type: ignore[misc, valid-type, call-arg]
        __table_args__ = (sa.ForeignKeyConstraint(["book_id", "number"], ["chapter.book_id", "chapter.number"]),)
        id: int = Field(default=None, primary_key=True)
        book_id: int
        number: int

    project.change(base)
    assert len(project.fetch("SELECT FROM pg_constraint WHERE contype = 'f'")) == 4
    project.change(new_base())
    assert project.schema() == []


def test_tables_in_another_schema(project: Project) -> None:
    def in_billing(*labels: str) -> Any:
        base = posts()
        sa.Table(
            "invoice",
            base.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("post_id", sa.Integer, sa.ForeignKey("post.id"), index=True),
            sa.Column("next_id", sa.Integer, sa.ForeignKey("billing.invoice.id")),
            sa.Column("state", sa.Enum(*labels, name="state"), server_default="a"),
            sa.Column("kind", pg.ENUM(*labels, name="kind", schema="billing"), server_default="a"),
            schema="billing",
        )
        return base

    project.change(in_billing("a", "b"))
    project.fetch("INSERT INTO billing.invoice DEFAULT VALUES")
    project.change(in_billing("a", "c"))
    left = posts()
    sa.Table("account", left.metadata, sa.Column("id", sa.Integer, primary_key=True), schema="billing")
    project.change(left)
    assert project.fetch("SELECT FROM pg_class WHERE relname = 'invoice'") == []
    assert project.fetch("SELECT FROM pg_type WHERE typtype = 'e' AND typname = 'kind'") == []


def test_a_type_in_two_tables_goes_with_the_last(project: Project) -> None:
    def in_tables(*names: str) -> Any:
        base, kind = new_base(), pg.ENUM("a", "b", name="kind")
        text = sa.Enum(Status)
        for name in names:
            key = sa.Column("id", sa.Integer, primary_key=True)
            sa.Table(name, base.metadata, key, sa.Column("kind", kind), sa.Column("status", text))
        return base

    project.change(in_tables("one", "two"))
    assert len(project.fetch("SELECT FROM pg_constraint WHERE contype = 'c' AND conname LIKE '%status%'")) == 2
    project.change(in_tables("two"))
    assert project.fetch("SELECT FROM pg_type WHERE typname = 'kind'") != []
    project.change(in_tables())
    assert project.schema() == []


def test_all_migrations_run_in_one_transaction(project: Project) -> None:
    """On an empty database a new value of an enum is there for the migrations that follow."""
    for labels, default in (("a", "b"), "a"), (("a", "b", "c"), "a"), (("a", "b", "c"), "c"):
        text = column(sa.Enum(*labels, name="x"), nullable=False, server_default=default)
        native: sa.Column[Any] = sa.Column(
            "kind", pg.ENUM(*labels, name="kind"), nullable=False, server_default=default
        )
        project.change(posts(text, native))
    project.run("downgrade", "base")
    assert project.schema() == []
    project.run("upgrade", "head")
    project.fetch("INSERT INTO post DEFAULT VALUES")
    assert project.fetch("SELECT value, kind FROM post") == [("c", "c")]


def test_a_value_that_rows_have_is_not_taken_away(project: Project) -> None:
    project.change(posts(column(sa.Enum(Status))))
    project.fetch("INSERT INTO post (value) VALUES ('DRAFT')")
    project.use(posts(column(sa.Enum(StatusLess))))
    project.write()
    with pytest.raises(sa.exc.IntegrityError, match="ck_post_value_values"):
        project.run("upgrade", "head")


def test_a_required_column_without_a_default_is_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.change(posts())
    capsys.readouterr()
    project.use(posts(column(sa.Integer, nullable=False)))
    project.write()
    assert "post.value may not be NULL and has no default" in capsys.readouterr().out


def test_a_type_that_the_database_lacks_is_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Its extension may be what the migration is to create: it is written, and can be completed."""

    class Vector(sa.types.UserDefinedType[str]):
        cache_ok = True

        def get_col_spec(self, **_: Any) -> str:
            return "vector(3)"

    project.change(posts())
    project.use(posts(column(Vector), sa.Column("body", sa.JSON, server_default="{}")))
    text = project.write()
    assert text is not None
    assert "SqlType('vector(3)')" in text
    assert 'type "vector" does not exist' in capsys.readouterr().out


def test_rows_of_an_enum_are_members(project: Project) -> None:
    """What the session writes and reads, and what PostgreSQL refuses past it."""
    base = posts(column(sa.Enum(Status)), sa.Column("list", pg.ARRAY(sa.Enum(Level))))
    project.change(base)
    project.fetch("INSERT INTO post (value, list) VALUES ('DRAFT', '{LOW,HIGH}')")
    with pytest.raises(asyncpg.CheckViolationError):
        project.fetch("INSERT INTO post (value) VALUES ('other')")
    with pytest.raises(asyncpg.CheckViolationError):
        project.fetch("INSERT INTO post (list) VALUES ('{LOW,other}')")
    assert project.select(base.metadata.tables["post"]) == [(1, Status.DRAFT, [Level.LOW, Level.HIGH])]
