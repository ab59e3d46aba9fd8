"""What Python about the database in the documents stands in (see surroundings.py)."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import MetaData
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.core.db.database import transaction
from app.crud.crud_base import CRUDBase
from tests.docs.surroundings import Code


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
            await (await db.connection()).run_sync(Base.metadata.create_all)
        first = await client.post("post?title=one")
        assert first.status_code == 201
        assert (await client.post("post?title=one")).json() == first.json()
        async with transaction() as db:
            assert len((await db.exec(select(Visit))).all()) == 2
            assert len((await db.exec(select(Post))).all()) == 1
