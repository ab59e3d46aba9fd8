"""Relations and other attributes are not loaded by accident, and the error about it says what to write."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Column, DateTime, ForeignKey, MetaData, Text, func, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    backref,
    deferred,
    joinedload,
    mapped_column,
    raiseload,
    registry,
    relationship,
    selectinload,
    strategies,
)
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlmodel import Field, Relationship, SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import PagingDep, ReadingSessionDep, SessionDep
from app.core.config import EnvironmentOption, Settings
from app.core.db.database import reading, transaction
from app.core.db.not_loaded import NotLoaded
from app.core.schemas import Page
from app.core.setup import create_application
from app.core.utils.cache import cache
from app.crud.crud_base import CRUDBase
from app.crud.helper import Paging
from tests.conftest import client_of
from tests.helper import make_room

pytestmark = pytest.mark.anyio


class Base(SQLModel, registry=registry(metadata=MetaData())):
    """Of tables that are the tests' own."""


class PostTag(Base, table=True):
    post_id: int = Field(foreign_key="post.id", primary_key=True, ondelete="CASCADE")
    tag_id: int = Field(foreign_key="tag.id", primary_key=True, ondelete="CASCADE")


class Author(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str
    posts: list["Post"] = Relationship(back_populates="author", cascade_delete=True)
    notes: list["Note"] = Relationship(sa_relationship=relationship("Note", backref="author"))
    letters: list["Letter"] = Relationship(sa_relationship=relationship("Letter", backref=backref("author")))


class Note(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(foreign_key="author.id")


class Letter(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    author_id: int = Field(foreign_key="author.id")


class Post(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    title: str
    author_id: int = Field(foreign_key="author.id")
    changed_at: datetime | None = Field(
        default=None,
        sa_column=Column(DateTime(timezone=True), server_default=func.now(), onupdate=func.clock_timestamp()),
    )
    author: Author = Relationship(back_populates="posts")
    tags: list["Tag"] = Relationship(back_populates="posts", link_model=PostTag)


Post.text = deferred(Column("text", Text, server_default="long"))


class Tag(Base, table=True):
    id: int = Field(default=None, primary_key=True)
    name: str
    posts: list[Post] = Relationship(back_populates="tags", link_model=PostTag)
    explicit: list[Post] = Relationship(link_model=PostTag, sa_relationship_kwargs={"lazy": "select", "viewonly": True})
    eager: list[Post] = Relationship(link_model=PostTag, sa_relationship_kwargs={"lazy": "selectin", "viewonly": True})


class Declared(DeclarativeBase):
    """Of a table that is not SQLModel's."""


class Parent(Declared):
    __tablename__ = "plain_parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list["Child"]] = relationship()


class Child(Declared):
    __tablename__ = "plain_child"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("plain_parent.id"))
    parent: Mapped[Parent] = relationship(viewonly=True)


class AuthorRead(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(from_attributes=True)
    name: str


class PostRead(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(from_attributes=True)
    id: int
    title: str
    author: AuthorRead


class PostCreate(BaseModel):
    title: str
    author_id: int


class CRUDPost(CRUDBase[Post]):
    model = Post


class CRUDAuthor(CRUDBase[Author]):
    model = Author


crud_posts, crud_authors = CRUDPost(), CRUDAuthor()
TAGS = selectinload(Post.tags)  # type: ignore[arg-type]  # as below
AUTHOR = selectinload(Post.author)  # type: ignore[arg-type]  # SQLModel's annotation is that of the row


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    router = APIRouter()

    @router.post("/post", response_model=PostRead, status_code=201)
    async def create(values: PostCreate, db: SessionDep) -> Post:
        post = await crud_posts.create(db, Post(**values.model_dump()))
        return await crud_posts.load(db, post, AUTHOR)

    @router.post("/forgetful", response_model=PostRead, status_code=201)
    async def forgetful(values: PostCreate, db: SessionDep) -> Post:
        return await crud_posts.create(db, Post(**values.model_dump()))

    @router.get("/cached/{id}", response_model=PostRead)
    @cache("post")
    async def cached(id: int, db: SessionDep) -> Post | None:  # noqa: A002 -- the cache goes by this name
        return await crud_posts.get(db, id)

    @router.get("/posts", response_model=Page[PostRead])
    async def page(paging: PagingDep, db: ReadingSessionDep) -> Page[Post]:
        return await crud_posts.page(db, paging, options=[AUTHOR])

    @router.get("/post/{id}", response_model=PostRead)
    async def read(id: int, db: ReadingSessionDep) -> Post:  # noqa: A002 -- as above
        return await crud_posts.get_present(db, id, options=[AUTHOR])

    return create_application(router, settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        async with transaction() as db:
            connection = await db.connection()
            await make_room(connection, *Base.metadata.tables)
            await connection.run_sync(Base.metadata.create_all)
            db.add(Author(name="Ada"))
        yield client


async def written(db: AsyncSession) -> Post:
    """A post of Ada's, flushed."""
    return await crud_posts.create(db, Post(title="first", author_id=1))


# ---- What is the default ----


def test_relations_raise_unless_they_say_otherwise() -> None:
    Author(name="")  # Mappers are configured when they are used first.
    Parent()
    for raising in (Post.author, Post.tags, Author.posts, Tag.posts, Author.notes, Author.letters):
        assert lazy(raising) == "raise"
    for by_backref in (Note, Letter):
        assert lazy(getattr(by_backref, "author")) == "raise"  # noqa: B009 -- it is declared nowhere
    assert (lazy(Tag.explicit), lazy(Tag.eager)) == ("select", "selectin")
    assert (lazy(Parent.children), lazy(Child.parent)) == ("raise", "raise")


def lazy(attribute: Any) -> Any:
    return attribute.property.lazy


# ---- The error ----


@pytest.mark.parametrize(
    ("attribute", "remedy"),
    [
        ("author", "selectinload(Post.author)"),
        ("tags", "selectinload(Post.tags)"),
        ("text", "undefer(Post.text)"),
    ],
)
async def test_reading_what_is_not_loaded(client: httpx2.AsyncClient, attribute: str, remedy: str) -> None:
    async with transaction() as db:
        await written(db)
    for opener in (transaction, reading):
        async with opener() as db:
            post = await crud_posts.get_present(db, 1)
            with pytest.raises(NotLoaded, match=rf"Post\.{attribute} ") as error:
                getattr(post, attribute)
            assert remedy in str(error.value)
            assert f'db.refresh(row, ["{attribute}"])' in str(error.value)
            await db.refresh(post, [attribute])
            assert getattr(post, attribute) is not None


@pytest.mark.parametrize("how", ["expire", "expression", "refresh"])
async def test_reading_what_has_expired(client: httpx2.AsyncClient, how: str) -> None:
    async with transaction() as db:
        post = await written(db)
        if how == "expire":
            db.expire(post, ["title"])
        elif how == "expression":
            post.title = func.upper("again")  # type: ignore[assignment]  # the database computes it
            await db.flush()
        else:
            db.expire(post)
        with pytest.raises(NotLoaded, match=r"Post\.title"):
            _ = post.title
        await db.refresh(post, ["title"])
        assert post.title in {"first", "AGAIN"}


async def test_what_the_database_sets_is_there_after_a_flush(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        post = await written(db)
        created = post.changed_at
        post.title = "second"
        await db.flush()
        assert created is not None
        assert post.changed_at is not None
        assert post.changed_at > created


async def test_a_lazy_relation_that_was_asked_for(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        tag = Tag(name="new")
        tag.posts = [await written(db)]
        db.add(tag)
    async with transaction() as db:
        tag = (await db.exec(select(Tag))).scalars().one()  # type: ignore[call-overload]  # SQLAlchemy's select
        assert [post.title for post in tag.eager] == ["first"]
        with pytest.raises(NotLoaded, match=r"selectinload\(Tag\.explicit\)"):
            _ = tag.explicit
        assert await db.run_sync(lambda _: [post.title for post in tag.explicit]) == ["first"]


async def test_a_list_that_is_not_loaded_cannot_be_replaced(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        post = await written(db)
        with pytest.raises(NotLoaded, match=r"selectinload\(Post\.tags\)"):
            post.tags = [Tag(name="a")]
        await db.refresh(post, ["tags"])
        post.tags = [Tag(name="a")]
    async with transaction() as db:
        assert [tag.name for tag in (await crud_posts.load(db, await db.merge(post), TAGS)).tags] == ["a"]


async def test_a_row_that_was_not_to_load_anything(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        await written(db)
    async with transaction() as db:
        author = await crud_authors.get_present(db, 1, options=[raiseload("*")])
        with pytest.raises(NotLoaded, match=r"selectinload\(Author\.posts\)"):
            _ = author.posts


async def test_a_detached_row(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        await written(db)
    async with reading() as db:
        post = await crud_posts.get_present(db, 1)
    with pytest.raises(NotLoaded, match=r"selectinload\(Post\.author\)"):
        _ = post.author
    with pytest.raises(DetachedInstanceError, match="'text'"):
        _ = post.text  # type: ignore[attr-defined]  # added above


async def test_without_sqlalchemys_own_names_its_own_texts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.core.db import not_loaded

    monkeypatch.delattr(strategies, "_LazyLoader")
    not_loaded._explain_raising_loaders()


# ---- Answers ----


async def test_an_answer_with_a_relation(client: httpx2.AsyncClient) -> None:
    created = await client.post("post", json={"title": "first", "author_id": 1})
    assert (created.status_code, created.json()) == (201, {"id": 1, "title": "first", "author": {"name": "Ada"}})
    assert (await client.get("post/1")).json() == created.json()
    page = (await client.get("posts")).json()
    assert (page["data"], page["total_count"]) == ([created.json()], 1)


@pytest.mark.parametrize("path", ["forgetful", "cached/1"])
async def test_an_answer_that_lacks_its_relation(
    client: httpx2.AsyncClient, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    async with transaction() as db:
        await written(db)
    if path == "forgetful":
        answer = await client.post(path, json={"title": "first", "author_id": 1})
    else:
        answer = await client.get(path)
    assert answer.status_code == 500
    assert "selectinload(Post.author)" in answer.json()["detail"]  # in `local` only
    log = capsys.readouterr().out
    reason = next(line for line in log.splitlines() if "event='attribute not loaded'" in line)
    assert "Post.author is not loaded" in reason
    assert "selectinload(Post.author)" in reason
    assert "first" not in log  # the row's title


async def test_production_shows_no_reason(client: httpx2.AsyncClient, settings: Settings, app: FastAPI) -> None:
    app.state.settings = settings.model_copy(update={"ENVIRONMENT": EnvironmentOption.PRODUCTION})
    answer = await client.post("forgetful", json={"title": "first", "author_id": 1})
    assert answer.status_code == 500
    assert "author" not in answer.text


# ---- Finders and writing ----


Find = Callable[[AsyncSession], Any]


@pytest.mark.parametrize("load", [selectinload, joinedload])
async def test_finders_take_loader_options(client: httpx2.AsyncClient, load: Any) -> None:
    async with transaction() as db:
        for _ in range(3):
            await written(db)
    options = [load(Author.posts).selectinload(Post.tags)]
    async with transaction() as db:
        for _ in range(2):  # The second time it is one that the session has.
            author = await crud_authors.get(db, 1, options=options)
            assert author is not None
            assert [post.tags for post in author.posts] == [[], [], []]
    async with transaction() as db:
        assert len((await crud_authors.get_present(db, 1, options=options)).posts) == 3
    async with transaction() as db:
        page = await crud_authors.page(db, Paging(1, 10), options=options)
        assert [len(author.posts) for author in page.data] == [3]
    async with transaction() as db:
        read = await crud_posts.get(db, 1, schema_to_select=PostRead, options=[AUTHOR])
        assert read is not None
        assert read.author.name == "Ada"


async def test_a_finder_with_options_loses_no_change(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        post = await written(db)
        post.title = "changed"
        found = await crud_posts.get(db, post.id, options=[AUTHOR])
        assert found is post
        assert (post.title, post.author.name) == ("changed", "Ada")
    async with transaction() as db:
        assert (await crud_posts.get_present(db, 1)).title == "changed"


async def test_many_to_many_is_written_by_its_lists(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        post = Post(title="first", author_id=1, tags=[Tag(name="a"), Tag(name="b")])
        await crud_posts.create(db, post)
    async with transaction() as db:
        post = await crud_posts.get_present(db, 1, options=[TAGS])
        post.tags = [tag for tag in post.tags if tag.name == "a"] + [Tag(name="c")]
        await crud_posts.load(db, post, TAGS)
        assert sorted(tag.name for tag in post.tags) == ["a", "c"]


async def test_rows_are_deleted_with_their_relations(client: httpx2.AsyncClient) -> None:
    async with transaction() as db:
        await crud_posts.create(db, Post(title="first", author_id=1, tags=[Tag(name="a")]))
    async with transaction() as db:
        await db.delete(await crud_authors.get_present(db, 1))
    async with transaction() as db:
        assert await crud_posts.get(db, 1) is None
        assert len((await (await db.connection()).execute(select(col(PostTag.post_id)))).all()) == 0
