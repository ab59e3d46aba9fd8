"""What PostgreSQL or its driver refuses because of a request's data is the caller's error, whatever the resource.

The application is one as users write it: tables, routes and dependencies that nothing here prepares for.
"""

import json
from collections.abc import AsyncIterator
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, cast
from uuid import UUID

import asyncpg
import httpx2
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Column,
    DateTime,
    Numeric,
    String,
    bindparam,
    func,
    insert,
    literal,
    select,
    text,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, col
from sqlmodel import select as select_scalar
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.api.dependencies import ReadingSessionDep, SessionDep
from app.core.config import Settings
from app.core.db.data_errors import hide_values, problem_of
from app.core.db.database import reading, transaction
from app.core.db.prepared_select import PreparedSelect
from app.core.setup import create_application
from app.crud.crud_base import CRUDBase
from tests.conftest import client_of
from tests.helper import make_room

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-of-a-caller"


class Base(SQLModel, registry=registry()):
    """Tables of this module alone."""


class Colour(Enum):
    RED = "red"


class Author(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str


class Post(Base, table=True):
    __table_args__ = (CheckConstraint("stars >= 0", name="ck_post_stars"),)

    id: int = Field(default=None, primary_key=True)
    title: str = Field(sa_type=String(60), unique=True)
    stars: int = 0
    price: Decimal | None = Field(default=None, sa_type=Numeric(5, 2))
    key: UUID | None = None
    at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    day: date | None = None
    tags: list[str] | None = Field(default=None, sa_column=Column(ARRAY(String(10))))
    data: Any = Field(default=None, sa_column=Column(JSONB))
    colour: str | None = Field(default=None, sa_column=Column(EnumType(Colour, native_enum=False)))
    author_id: int | None = Field(default=None, foreign_key="author.id")
    note: str = Field(default="", sa_column=Column(String, nullable=False))


class PostCreate(BaseModel):
    title: str = "A title"
    stars: int = 0
    price: Any = None
    key: Any = None
    at: Any = None
    day: Any = None
    tags: Any = None
    data: Any = None
    colour: str | None = None
    author_id: int | None = None
    note: str | None = ""


class CRUDPost(CRUDBase[Post]):
    model = Post


class CRUDAuthor(CRUDBase[Author]):
    model = Author


crud_posts, crud_authors = CRUDPost(), CRUDAuthor()
posts = Post.__table__  # type: ignore[attr-defined]
_TITLED: PreparedSelect[int] = PreparedSelect(select_scalar(col(Post.id)).where(col(Post.stars) == bindparam("stars")))
_POST = {"title": "A title", "note": ""}


async def get_post(key: int, db: SessionDep) -> Post | None:
    return await crud_posts.get(db, key)


router = APIRouter()


@router.post("/post", status_code=201)
async def create_post(values: PostCreate, db: SessionDep) -> int:
    db.add(Author(name="written before"))
    post = await crud_posts.create(db, Post(**values.model_dump()))
    return post.id


@router.get("/post/{key}")
async def read_post(key: int, db: ReadingSessionDep) -> int:
    return 200 if await db.get(Post, key) else 404


@router.get("/dependency/post/{key}")
async def read_post_of_a_dependency(post: Annotated[Post | None, Depends(get_post)]) -> bool:
    return post is not None


@router.get("/core/{key}")
async def read_by_core(key: int, db: SessionDep) -> int:
    return len((await (await db.connection()).execute(select(posts).where(posts.c.id == key))).all())


@router.get("/direct/{stars}")
async def read_directly(stars: int) -> int:
    async with reading() as db:
        return len(await _TITLED.all(db, stars=stars))


@router.post("/flushed")
async def flush_later(db: SessionDep, title: str) -> str:
    db.add(Post(title=title))  # Nothing is asked of the database before the commit.
    return "created"


@router.post("/savepoint")
async def in_a_savepoint(db: SessionDep, title: str) -> str:
    db.add(Author(name="written before"))
    async with db.begin_nested():
        await (await db.connection()).execute(insert(posts).values(_POST | {"title": title}))
    return "created"


@router.post("/many")
async def many(db: SessionDep, titles: list[str]) -> str:
    await (await db.connection()).execute(insert(posts), [_POST | {"title": title} for title in titles])
    return "created"


@router.post("/search")
async def search(db: ReadingSessionDep, how: Annotated[str, Body()], q: Annotated[str, Body()]) -> int:
    conditions = {
        "regex": posts.c.title.op("~")(q),
        "like": posts.c.title.like("x", escape=q),
        "tsquery": func.to_tsvector(posts.c.title).op("@@")(func.to_tsquery(q)),
        "jsonpath": func.jsonb_path_exists(posts.c.data, text("CAST(:q AS jsonpath)").bindparams(q=q)),
        "zone": func.timezone(literal(q), func.now()) == func.now(),
        "cast": posts.c.id == text("CAST(CAST(:q AS text) AS integer)").bindparams(q=q),
        "date": func.to_date(q, "YYYY-MM-DD") == func.current_date(),
        "ids": posts.c.id.in_([int(n) for n in q.split(",") if n.isdigit()]),
    }
    return len((await (await db.connection()).execute(select(posts.c.id).where(conditions[how]))).all())


@router.post("/deferred")
async def deferred(db: SessionDep) -> str:
    await db.exec(cast("Any", text("INSERT INTO late VALUES (1), (1)")))
    return "created"


@router.get("/stream/{key}")
async def stream(key: int, db: SessionDep) -> StreamingResponse:
    await db.get(Post, key)

    async def body() -> AsyncIterator[str]:
        yield "sent"

    return StreamingResponse(body())


@router.get("/in-the-stream/{key}")
async def fail_in_the_stream(key: int) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        yield "sent"
        async with transaction() as db:
            await db.get(Post, key)

    return StreamingResponse(body())


@router.get("/raw/{key}")
async def past_sqlalchemy(key: int, db: SessionDep) -> int:
    connection = await (await db.connection()).get_raw_connection()
    return cast("int", await cast("Any", connection.driver_connection).fetchval("SELECT $1::int", key))


@router.delete("/author/{key}")
async def delete_author(key: int, db: SessionDep) -> str:
    await crud_authors.delete(db, await crud_authors.get_present(db, key))
    return "deleted"


@router.post("/caught")
async def answer_itself(db: SessionDep) -> str:
    try:
        async with db.begin_nested():
            await (await db.connection()).execute(insert(posts).values(_POST | {"stars": -1}))
    except IntegrityError:
        return "caught"
    return "created"


@router.get("/ours/{what}")
async def our_own_fault(db: SessionDep, what: str) -> None:
    await (await db.connection()).execute(
        text({"column": "SELECT nonsense FROM post", "syntax": "SELEC 1", "missing": "SELECT :x"}[what])
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_application(router, settings)
    async with app.router.lifespan_context(app):
        async with transaction() as db:
            connection = await db.connection()
            await make_room(connection, *Base.metadata.tables, "late", "book")
            await connection.run_sync(Base.metadata.create_all)
            for statement in (
                "CREATE TABLE late (id int CONSTRAINT uq_late_id UNIQUE DEFERRABLE INITIALLY DEFERRED)",
                "ALTER TABLE post ADD CONSTRAINT ex_post_key EXCLUDE USING btree (key WITH =)",
                "CREATE INDEX ix_post_note ON post (note)",
            ):
                await db.exec(cast("Any", text(statement)))
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def count(table: type[SQLModel]) -> int:
    async with transaction() as db:
        return cast("int", await (await db.connection()).scalar(select(func.count()).select_from(table)))


def assert_refused(answer: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:problem-type:{kind}"
    assert SECRET not in answer.text
    return document


# ---- Values ----


@pytest.mark.parametrize(
    "path", ["post/99999999999", "dependency/post/99999999999", f"post/{10**30}", f"core/{2**31}", f"direct/{2**40}"]
)
async def test_a_number_that_is_out_of_range(client: httpx2.AsyncClient, path: str) -> None:
    assert_refused(await client.get(path), 422, "invalid-value")


@pytest.mark.parametrize(
    "values",
    [
        {"title": f"{SECRET}\x00"},
        {"title": SECRET + "\ud800"},
        {"title": SECRET * 4},
        {"stars": 2**31},
        {"price": 99999},
        {"price": SECRET},
        {"price": float("nan"), "stars": 2**40},
        {"key": SECRET},
        {"key": 5},
        {"at": SECRET},
        {"at": "2026-01-01"},
        {"day": SECRET},
        {"tags": [5, 7]},
        {"tags": [[SECRET], [1, 2]]},
        {"data": {"text": f"{SECRET}\x00"}},
        {"data": {"text": SECRET + "\ud800"}},
        {"data": float("nan")},
        {"colour": SECRET},
        {"note": "".join(map(chr, range(0x4E00, 0x4E00 + 9000))) + SECRET},  # longer than a key of an index may be
    ],
    ids=lambda values: json.dumps(values)[:40],
)
async def test_a_value_that_no_column_takes(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], values: dict[str, Any]
) -> None:
    body = json.dumps(values).encode()
    answer = await client.post("post", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 422, "invalid-value")
    assert (await count(Author), await count(Post)) == (0, 0)
    logged = "".join(capsys.readouterr())
    assert "refused by the database" in logged
    assert SECRET not in logged
    assert (await client.post("post", json={})).status_code == 201, "the connection is of use again"


@pytest.mark.parametrize(
    ("how", "q"),
    [
        ("regex", f"({SECRET}"),
        ("like", SECRET),
        ("tsquery", f"{SECRET} ("),
        ("jsonpath", f"$$.{SECRET}"),
        ("zone", SECRET),
        ("cast", SECRET),
        ("date", SECRET),
        ("ids", ",".join(map(str, range(33_000)))),
    ],
)
async def test_what_is_searched_for(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], how: str, q: str
) -> None:
    async with transaction() as db:
        await (await db.connection()).execute(insert(posts).values(_POST | {"data": {}}))
    assert_refused(await client.post("search", json={"how": how, "q": q}), 422, "invalid-value")
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize("path", ["flushed", "savepoint"])
async def test_it_does_not_matter_when_the_statement_runs(client: httpx2.AsyncClient, path: str) -> None:
    assert_refused(await client.post(path, params={"title": SECRET * 4}), 422, "invalid-value")
    assert_refused(await client.post(path, params={"title": "a\x00"}), 422, "invalid-value")
    assert (await count(Author), await count(Post)) == (0, 0)


async def test_one_of_many(client: httpx2.AsyncClient) -> None:
    assert_refused(await client.post("many", json=["fine", SECRET * 4]), 422, "invalid-value")
    assert_refused(await client.post("many", json=["fine", "a\x00"]), 422, "invalid-value")
    assert await count(Post) == 0


async def test_the_driver_asked_directly(client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(await client.get("raw/98765432109876543210"), 422, "invalid-value")
    assert "9876543210" not in capsys.readouterr().out.replace("/raw/98765432109876543210", "")


async def test_before_a_stream_it_is_an_answer_and_within_one_it_breaks_off(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(await client.get("stream/99999999999"), 422, "invalid-value")
    with pytest.raises(RuntimeError, match="response already started"):
        await client.get("in-the-stream/98765432109876543210")
    logged = capsys.readouterr().out.replace("/in-the-stream/98765432109876543210", "")
    assert "unhandled error" in logged
    assert "9876543210" not in logged


# ---- Constraints ----


async def test_constraints_are_named_and_values_are_not(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await client.post("post", json={"title": SECRET, "key": str(UUID(int=1))})).status_code == 201
    for values, status, kind, names in (
        ({"title": SECRET}, 409, "constraint-conflict", {"constraint": "post_title_key", "table": "post"}),
        ({"key": str(UUID(int=1))}, 409, "constraint-conflict", {"constraint": "ex_post_key", "table": "post"}),
        ({"author_id": 7654321}, 409, "constraint-conflict", {"constraint": "post_author_id_fkey", "table": "post"}),
        ({"stars": -7654321}, 422, "constraint-failed", {"constraint": "ck_post_stars", "table": "post"}),
        ({"note": None}, 422, "constraint-failed", {"column": "note", "table": "post"}),
    ):
        document = assert_refused(await client.post("post", json=values), status, kind)
        assert {name: document[name] for name in names} == names
        assert all(name in document["detail"] for name in names.values())
    assert (await count(Author), await count(Post)) == (1, 1)
    logged = "".join(capsys.readouterr())
    assert "post_title_key" in logged
    assert SECRET not in logged
    assert "7654321" not in logged


async def test_a_constraint_that_is_looked_at_in_the_commit(client: httpx2.AsyncClient) -> None:
    document = assert_refused(await client.post("deferred"), 409, "constraint-conflict")
    assert document["constraint"] == "uq_late_id"


@pytest.mark.parametrize(
    ("rule", "status", "kind"),
    [
        ("RAISE EXCEPTION 'not %', NEW.title", 409, "constraint-conflict"),
        ("RAISE check_violation USING MESSAGE = NEW.title", 422, "constraint-failed"),
        ("RAISE unique_violation USING MESSAGE = NEW.title, DETAIL = NEW.title", 409, "constraint-conflict"),
        ("RAISE data_exception USING MESSAGE = NEW.title, HINT = NEW.title", 422, "invalid-value"),
    ],
)
async def test_a_rule_that_a_trigger_holds(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], rule: str, status: int, kind: str
) -> None:
    async with transaction() as db:
        for statement in (
            f"CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {rule}; END $$",
            "CREATE TRIGGER rule BEFORE INSERT ON post FOR EACH ROW EXECUTE FUNCTION rule()",
        ):
            await db.exec(cast("Any", text(statement)))
    assert_refused(await client.post("post", json={"title": SECRET}), status, kind)
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "rule",
    [
        "RAISE EXCEPTION USING ERRCODE = 'XY000', MESSAGE = NEW.title, HINT = NEW.title",
        "RAISE invalid_schema_name USING DETAIL = NEW.title",
        "ASSERT false, NEW.title",
    ],
)
async def test_an_error_of_ours_that_a_function_raises_quotes_no_value(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    async with transaction() as db:
        for statement in (
            f"CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {rule}; END $$",
            "CREATE TRIGGER rule BEFORE INSERT ON post FOR EACH ROW EXECUTE FUNCTION rule()",
        ):
            await db.exec(cast("Any", text(statement)))
    answer = await client.post("post", json={"title": SECRET})
    assert answer.status_code == 500
    assert SECRET not in answer.text + "".join(capsys.readouterr())


# ---- Removing what others refer to ----


@pytest.mark.parametrize("options", ["", "ON DELETE RESTRICT", "ON DELETE SET NULL", "DEFERRABLE INITIALLY DEFERRED"])
async def test_a_row_that_others_refer_to(client: httpx2.AsyncClient, options: str) -> None:
    """With SET NULL it is the NOT NULL of the column that holds it."""
    async with transaction() as db:
        author = await crud_authors.create(db, Author(name="ada"))
        reference = f"author_id int NOT NULL CONSTRAINT fk_book_author REFERENCES author {options}"
        await db.exec(cast("Any", text(f"CREATE TABLE book ({reference})")))
        await db.exec(cast("Any", text(f"INSERT INTO book SELECT {author.id}")))
    answer = await client.delete(f"author/{author.id}")
    if "SET NULL" in options:
        assert assert_refused(answer, 422, "constraint-failed")["table"] == "book"
    else:
        document = assert_refused(answer, 409, "still-referenced")
        assert (document["table"], document["constraint"]) == ("book", "fk_book_author")
        assert "book" in document["detail"]
        assert "fk_book_author" in document["detail"]
    assert await count(Author) == 1


async def test_a_trigger_that_keeps_a_row(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        author = await crud_authors.create(db, Author(name="ada"))
        for statement in (
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE foreign_key_violation USING MESSAGE = OLD.name; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON author FOR EACH ROW EXECUTE FUNCTION keep()",
        ):
            await db.exec(cast("Any", text(statement)))
    assert_refused(await client.delete(f"author/{author.id}"), 409, "still-referenced")
    assert await count(Author) == 1


# ---- An application's own ways ----


async def test_a_handler_that_catches_it_answers_itself(client: httpx2.AsyncClient) -> None:
    answer = await client.post("caught")
    assert (answer.status_code, answer.json()) == (200, "caught")


@pytest.mark.parametrize("kind", [DBAPIError, StatementError, SQLAlchemyError])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_applications_own_handler_wins(settings: Settings, kind: type[SQLAlchemyError], when: str) -> None:
    async def own(request: Request, error: Exception) -> Response:
        return JSONResponse({"own": type(error).__name__}, 418)

    handlers: Any = {kind: own} if when == "before" else {}
    app = create_application(APIRouter(), settings, exception_handlers=handlers)
    if when == "after":
        app.add_exception_handler(kind, own)

    @app.get("/cast")
    async def cast_it(db: SessionDep) -> None:
        await (await db.connection()).execute(text("SELECT CAST(CAST(:q AS text) AS json)"), {"q": "{"})

    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = await client.get("http://test/cast")
        assert (answer.status_code, list(answer.json())) == (418, ["own"])


@pytest.mark.parametrize("what", ["column", "syntax", "missing"])
async def test_an_error_of_ours_stays_one(client: httpx2.AsyncClient, what: str) -> None:
    assert (await client.get(f"ours/{what}")).status_code == 500


async def test_what_is_not_the_data_is_no_problem_of_the_caller() -> None:
    assert problem_of(ValueError("of a handler")) is None
    assert problem_of(asyncpg.InterfaceError("connection is closed")) is None
    assert problem_of(asyncpg.SequenceGeneratorLimitExceededError("reached maximum value")) is None
    assert problem_of(asyncpg.UndefinedColumnError("no such column")) is None


async def test_code_that_reads_an_error_still_finds_what_it_needs(app: FastAPI) -> None:
    async with transaction() as db:
        with pytest.raises(IntegrityError) as caught:
            await (await db.connection()).execute(insert(posts), [_POST, _POST])
        error = caught.value
        await db.rollback()
    hide_values(error)  # A second time changes nothing.
    assert error.orig is not None
    assert cast("Any", error.orig).detail == "Key (title)=(A title) already exists."
    assert cast("Any", error.driver_exception).constraint_name == "post_title_key"
    assert "A title" not in str(error)
    assert "duplicate key value" in str(error)


async def test_the_reason_is_told_where_it_has_no_value(app: FastAPI) -> None:
    async with transaction() as db:
        with pytest.raises(DBAPIError, match=r"\$1: value out of int32 range"):
            await (await db.connection()).execute(select(posts).where(posts.c.id == 2**40))
        await db.rollback()
        with pytest.raises(DBAPIError, match=r"\$1: expected str, got int"):
            await (await db.connection()).execute(select(posts).where(posts.c.title == literal(5, String)))
