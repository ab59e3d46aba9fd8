"""What Python in the documents stands in: the names that it takes for granted, and what it is to do there.

tests/docs/test_python.py has them by the name that a block's comment says after `python`.
"""

import ast
import inspect
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import MetaData, text
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.api.dependencies import SessionDep
from app.core.config import EnvironmentOption, Settings, SettingsError
from app.core.db.column_types import store_enums_as_text
from app.core.db.database import reading, transaction
from app.core.db.engine import create_engine
from app.core.logger import configure_logging
from app.core.setup import create_application
from app.core.utils.cache import cache
from tests.conftest import client_of
from tests.docs.blocks import Block
from tests.helper import create_user, signed_in
from tests.processes import ROOT


class Code:
    """A block of Python.

    Attributes:
        block: where it stands.
        settings: the app's, with a database and a Valkey of the test's own.
    """

    def __init__(self, block: Block, settings: Settings) -> None:
        self.block, self.settings = block, settings

    async def run(self, **names: Any) -> dict[str, Any]:
        """Runs it with these names known, also what it awaits. Returns all names that there are then."""
        known = {"__name__": f"documents.{Path(self.block.place).stem}", "Any": Any, **names}
        # Lines first, so that a traceback names the document's.
        text = "\n" * int(self.block.place.rpartition(":")[2]) + self.block.text
        compiled = compile(text, self.block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        result = eval(compiled, known)  # noqa: S307 -- the documents' own code, which is what this is about
        if inspect.isawaitable(result):
            await result
        return known

    @asynccontextmanager
    async def started(self, *routers: APIRouter, app: FastAPI | None = None) -> AsyncIterator[httpx2.AsyncClient]:
        """An app with all routes and these, or another one, while it runs."""
        if app is None:
            router = build_router(self.settings)
            for more in routers:
                router.include_router(more)
            app = create_application(router, self.settings)
        async with app.router.lifespan_context(app), client_of(app) as client:
            yield client


class Post(BaseModel):
    id: int
    title: str = "first"


class PostUpdate(BaseModel):
    title: str


class Posts:
    """In the place of a table, which the documents' posts have none of."""

    def __init__(self) -> None:
        self.read = 0
        self.rows: dict[int, Post] = {}

    async def get_post(self, number: int, db: Any) -> Post:
        self.read += 1
        return self.rows.setdefault(number, Post(id=number))

    async def update(self, db: Any, post: Post, values: PostUpdate) -> Post:
        post.title = values.title
        return post


def names_of(posts: Posts, router: APIRouter) -> dict[str, Any]:
    """What handlers of posts take for granted."""
    models = {"Post": Post, "PostRead": Post, "PostUpdate": PostUpdate}
    doors = {"SessionDep": SessionDep, "reading": reading, "crud_posts": posts, "get_post": posts.get_post}
    return {"router": router, **models, **doors}


async def post_routes(code: Code) -> None:
    """Handlers of GET /post/{id}, which is cached, and PATCH, which drops that."""
    posts, router = Posts(), APIRouter()
    await code.run(**names_of(posts, router))
    async with code.started(router) as client:
        states = [(await client.get("post/7")).headers["X-Cache"] for _ in range(2)]
        assert (states, posts.read) == (["MISS", "HIT"], 1)
        changed = await client.patch("post/7?username=ada", json={"title": "second"})
        assert changed.json()["title"] == "second"
        assert (await client.get("post/7")).json()["title"] == "second"


async def post_change(code: Code) -> None:
    """A change of a post that is cached, in a job or a script."""
    posts, router = Posts(), APIRouter()

    @router.get("/post/{id}", response_model=Post)
    @cache("post", resource_id_name="id")
    async def read_post(id: int) -> Post:  # noqa: A002 -- the documents' name
        return await posts.get_post(id, None)

    async with code.started(router) as client:
        await client.get("post/7")
        values = PostUpdate(title="second")
        await code.run(transaction=transaction, crud_posts=posts, post=posts.rows[7], values=values)
        assert (await client.get("post/7")).json()["title"] == "second"


async def post_client_cache(code: Code) -> None:
    """Routes that say how long their answers may be kept outside: as the comments say, and with an ETag each."""
    posts, router = Posts(), APIRouter()
    await code.run(cache=cache, Depends=Depends, **names_of(posts, router))
    expected = {
        "post/7/comments": "public, no-cache",
        "prices": "public, no-cache",
        "imprint": "public, max-age=86400",
    }
    async with code.started(router) as client:
        for path, policy in expected.items():
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["Cache-Control"]) == (200, policy)
            again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.headers["Cache-Control"]) == (304, policy)


async def heavy_route(code: Code) -> None:
    """A route that counts for ten."""
    from app.api.dependencies import limit_rate

    router = APIRouter(dependencies=[Depends(limit_rate)])
    await code.run(router=router, Report=None)
    limit = code.settings.DEFAULT_RATE_LIMIT_LIMIT
    async with code.started(router) as client:
        assert f"r={limit - 10};" in (await client.get("report")).headers["RateLimit"]


async def own_routes(code: Code) -> None:
    """Routes in a module of their own: each GET answers 200."""
    router: APIRouter = (await code.run())["router"]
    async with code.started(router) as client:
        for route in router.routes:
            path = getattr(route, "path", "").format(name="ada")
            for state in ("MISS", "HIT"):
                answer = await client.get(f"{path.lstrip('/')}")
                assert answer.status_code == 200, answer.text
                assert answer.headers["X-Cache"] == state


async def own_app(code: Code) -> None:
    """An app of somebody's own, called `app`, which answers each of its routes and is healthy."""
    app: FastAPI = (await code.run())["app"]
    async with code.started(app=app) as client:
        client.base_url = httpx2.URL("http://test/")
        paths = list(app.openapi()["paths"])
        assert paths
        for path in paths:
            assert (await client.get(path)).status_code == 200, path


@contextmanager
def own_tables(code: Code) -> Iterator[MetaData]:
    """Where a block's tables go: the application may have tables and classes of the same names."""
    classes = [node for node in ast.walk(ast.parse(code.block.text)) if isinstance(node, ast.ClassDef)]
    names = {node.name.lower() for node in classes}
    tables = MetaData(naming_convention=SQLModel.metadata.naming_convention)
    for other in SQLModel.metadata.sorted_tables:
        if other.name not in names:
            other.to_metadata(tables)
    known = set(SQLModel._sa_registry.mappers)
    store_enums_as_text(tables)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SQLModel, "metadata", tables)
        try:
            yield tables
        finally:
            for mapper in set(SQLModel._sa_registry.mappers) - known:
                SQLModel._sa_registry._dispose_cls(mapper.class_)


async def table(code: Code) -> None:
    """A model of a table, and what comes in and goes out; the table goes again."""
    with own_tables(code):
        names = await code.run()
    models = [value for value in names.values() if isinstance(value, type) and issubclass(value, BaseModel)]
    made = [model for model in models if model.__name__.endswith("Create") and model.__module__ == names["__name__"]]
    assert made
    for model in made:
        assert model.model_config["extra"] == "forbid"


async def model(code: Code) -> None:
    """A model of a table, which PostgreSQL takes; the table goes again."""
    engine = create_engine(code.settings, pool_size=1)
    with own_tables(code) as tables:
        before = set(tables.tables)
        await code.run()
        made = [tables.tables[name] for name in set(tables.tables) - before]
        assert made
        async with engine.connect() as connection:  # It is not committed, and what is there by that name is not asked.
            await connection.execute(text("CREATE SCHEMA apart"))
            await connection.execute(text("SET LOCAL search_path TO apart, public"))
            await connection.run_sync(tables.create_all, made, checkfirst=False)
    await engine.dispose()


async def old_handler(code: Code) -> None:
    """Handlers as they were written before: a cached GET, and a PATCH that drops what it keeps."""

    class CRUDPosts:
        titles = ("first",)

        async def titles_of(self, db: AsyncSession, username: str) -> list[str]:
            return list(self.titles)

        async def touch(self, db: AsyncSession, number: int) -> None:
            CRUDPosts.titles = ("second",)

    router: APIRouter = (await code.run(crud_posts=CRUDPosts()))["router"]
    async with code.started(router) as client:
        async with transaction() as db:
            headers = signed_in(await create_user(db), code.settings)
        assert [(await client.get("ada/posts")).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
        assert (await client.patch("ada/post/7")).status_code == 401
        assert (await client.patch("ada/post/7", headers=headers)).json() == {"id": 7}
        assert (await client.get("ada/posts")).json() == ["second"]


async def settings_group(code: Code) -> None:
    """A group of somebody's own, in the app's settings."""
    names = await code.run()
    settings = names["Settings"]()
    assert set(type(settings).model_fields) > set(type(code.settings).model_fields)


async def log_lines(code: Code) -> None:
    """Two lines in the log, of which nothing is missing."""
    names: dict[str, Any] = {"order_id": 7, "total": float("nan")}
    root, ours, written = logging.getLogger(), structlog.get_config(), io.StringIO()
    handlers = root.handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", written)
        patch.setattr("app.core.logger._direct_lines", None)
        try:
            configure_logging(EnvironmentOption.PRODUCTION)
            await code.run(**names)
        finally:
            root.handlers[:] = handlers
            structlog.configure(**ours)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["event"], line["total"]) for line in lines] == [("order 7", "nan")] * 2


async def own_settings(code: Code) -> None:
    """A group of settings, whose broken values are told by the lines that the page has."""
    page = (ROOT / "docs" / "settings.md").read_text()
    settings = (await code.run())["Settings"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_COUNTRIES", "DE,FR")
        patch.setenv("SHOP_TIMEOUT_SECONDS", "soon")
        with pytest.raises(SettingsError) as stopped:
            settings()
    lines = str(stopped.value.code).splitlines()
    assert len(lines) == 2
    assert [line for line in lines if f"`{line}`" not in page.replace("\n", " ")] == []


async def own_handler(code: Code) -> None:
    """Handlers for whoever is signed in, which nobody else gets, and for everybody."""
    router: APIRouter = (await code.run())["router"]
    async with code.started(router) as client:
        async with transaction() as db:
            headers = signed_in(await create_user(db, name="Ada"), code.settings)
        assert (await client.get("whoami")).status_code == 401
        assert (await client.get("whoami", headers=headers)).json() == "Ada"
        greetings = [(await client.get("greeting", headers=who)).json() for who in ({}, headers)]
        assert greetings == ["Hello!", "Hello, Ada!"]


async def run_test(code: Code, *routers: APIRouter) -> None:
    """A test with the project's fixtures: each of the block's is run."""
    names = await code.run()
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        async with code.started(*routers) as client, transaction() as db:
            fixtures = {"client": client, "db": db, "settings": code.settings}
            await test(**{name: fixtures[name] for name in inspect.signature(test).parameters})
