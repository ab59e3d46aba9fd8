"""What Python about the database in the documents stands in (see surroundings.py)."""

from typing import Any

import httpx2
import pytest
import sqlmodel
from fastapi import APIRouter
from sqlalchemy import MetaData, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import PagingDep, ReadingSessionDep, SessionDep
from app.core.db.database import transaction
from app.crud.crud_base import CRUDBase
from tests.docs.blocks import all_blocks
from tests.docs.surroundings import Code
from tests.helper import make_room


async def caught_error(code: Code) -> None:
    """A handler that deals with a taken title itself."""

    class Base(SQLModel, registry=registry(metadata=MetaData())):
        pass

    class Post(Base, table=True):
        id: int = Field(default=None, primary_key=True)
        title: str = Field(unique=True)

    class Visit(Base, table=True):
        id: int = Field(default=None, primary_key=True)
        title: str

    class CRUDPost(CRUDBase[Post]):
        model = Post

        async def get_by_title(self, db: AsyncSession, title: str) -> Post | None:
            return (await db.exec(select(Post).where(Post.title == title))).first()

    router = APIRouter()
    known: dict[str, Any] = {"Post": Post, "Visit": Visit, "crud_posts": CRUDPost()}
    await code.run(router=router, SessionDep=SessionDep, IntegrityError=IntegrityError, **known)
    async with code.started(router) as client:
        async with transaction() as db:
            connection = await db.connection()
            await make_room(connection, *Base.metadata.tables)
            await connection.run_sync(Base.metadata.create_all)
        first = await client.post("post?title=one")
        assert first.status_code == 201
        assert (await client.post("post?title=one")).json() == first.json()
        async with transaction() as db:
            assert len((await db.exec(select(Visit))).all()) == 2
            assert len((await db.exec(select(Post))).all()) == 1


async def statement_timeout(code: Code) -> None:
    """A route whose statements may take longer than the setting says, and a block in another one."""

    class Post:
        published = False

    class CRUDPosts:
        post = Post()

        async def count_words(self, db: AsyncSession) -> int:
            await (await db.connection()).execute(text("SELECT pg_sleep(0.8)"))
            return 42

        async def index_words(self, db: AsyncSession, post: Post) -> None:
            await self.count_words(db)

        async def get_present(self, db: AsyncSession, number: int) -> Post:
            return self.post

    router, posts = APIRouter(), CRUDPosts()
    names: dict[str, Any] = {"SessionDep": SessionDep, "ReadingSessionDep": ReadingSessionDep, "crud_posts": posts}

    @router.get("/usual")
    async def usual(db: ReadingSessionDep) -> int:
        return await posts.count_words(db)

    await code.run(router=router, **names)
    code.settings = code.settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT_SECONDS": 0.3})
    async with code.started(router) as client:
        assert (await client.get("report")).json() == 42
        assert (await client.post("post/7/publish")).status_code == 200
        assert posts.post.published
        assert (await client.get("usual")).status_code == 504


_tables: dict[str, Any] = {}  # the names of the page's first block: a process can define a table once


async def relations(code: Code) -> None:
    """The tables of a page about relations, in its first block, and their routes in the second one."""
    blocks = [block for block in all_blocks("python") if block.rest == "relations"]
    if not _tables:

        class Base(SQLModel, registry=registry(metadata=MetaData())):
            """In the place of SQLModel: other tests have tables of the same names."""

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sqlmodel, "SQLModel", Base)
            _tables.update(await Code(blocks[0], code.settings).run())
    assert {"Author", "Post", "PostTag", "Tag", "PostCreate", "PostRead"} < set(_tables)
    if code.block == blocks[0]:
        return
    router = APIRouter()
    doors = {"SessionDep": SessionDep, "ReadingSessionDep": ReadingSessionDep, "PagingDep": PagingDep}
    # Pydantic looks up the module in which `Page[PostRead]` is written.
    await code.run(**_tables | doors | {"__name__": __name__}, router=router, AsyncSession=AsyncSession)
    async with code.started(router) as client:
        async with transaction() as db:
            connection = await db.connection()
            await make_room(connection, *_tables["Post"].metadata.tables)
            await connection.run_sync(_tables["Post"].metadata.create_all)
            db.add(_tables["Author"](name="Ada"))
        await _read_and_write(client)


async def _read_and_write(client: httpx2.AsyncClient) -> None:
    new = {"title": "first", "author_id": 1, "tags": ["a", "b"]}
    created = await client.post("post", json=new)
    assert created.status_code == 201, created.text
    post = created.json()
    assert (post["author"], sorted(tag["name"] for tag in post["tags"])) == ({"id": 1, "name": "Ada"}, ["a", "b"])
    assert (await client.post("post", json=new | {"title": "second", "tags": ["b", "c"]})).status_code == 201
    assert (await client.get("post/1")).json()["title"] == "first"
    assert [post["title"] for post in (await client.get("posts")).json()["data"]] == ["first", "second"]
    changed = (await client.put("post/1/tags", json=["c", "d"])).json()
    assert sorted(tag["name"] for tag in changed["tags"]) == ["c", "d"]
    assert (await client.get("post/1")).json() == changed
