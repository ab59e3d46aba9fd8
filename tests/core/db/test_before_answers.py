"""However a handler asks for its session, it is committed before the answer is sent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from sqlalchemy import insert, literal, select
from sqlalchemy.exc import InvalidRequestError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import EnvironmentSettings, PostgresSettings, Settings
from app.core.db.database import async_get_db
from app.core.db.engine import POOL_TIMEOUT
from app.core.setup import create_application
from app.crud.crud_tier import crud_tiers
from app.models.tier import Tier
from tests.conftest import client_of, second_session

pytestmark = pytest.mark.anyio

PlainSession = Annotated[AsyncSession, Depends(async_get_db)]  # as the documentation of FastAPI has it


class Small(PostgresSettings, EnvironmentSettings):
    """Settings of an app that has a database only."""


async def get_name(db: PlainSession) -> AsyncIterator[str]:
    """A dependency with a session, and with something to do at its end, in the session's transaction."""
    yield "in the session"
    db.add(Tier(name="of the dependency"))


async def change(db: PlainSession, name: Annotated[str, Depends(get_name)]) -> str:
    db.add(Tier(name="of the handler"))
    return name


async def fail(db: PlainSession) -> str:
    """Breaks a constraint, which the database only finds at the commit."""
    db.add_all([Tier(name="twice"), Tier(name="twice")])
    return "done"


class Looking:
    """Looks into the database when the answer begins."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.found: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.start":
                async with second_session() as db:
                    self.found += [name for name in NAMES if await crud_tiers.get_by_name(db, name)]
            await send(message)

        await self.app(scope, receive, send_and_look)


NAMES = ("of the dependency", "of the handler")


def with_router(handler: Callable[..., Awaitable[str]]) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/do", handler, methods=["POST"])
    return create_application(router, Small())


def with_a_later_route(handler: Callable[..., Awaitable[str]]) -> FastAPI:
    app = create_application(APIRouter(), Small())
    app.add_api_route("/do", handler, methods=["POST"])
    return app


@pytest.mark.parametrize("build", [with_router, with_a_later_route])
async def test_a_commit_comes_before_the_answer(
    settings: Settings, build: Callable[[Callable[..., Awaitable[str]]], FastAPI]
) -> None:
    app = build(change)
    looking = Looking(app)
    async with app.router.lifespan_context(app), client_of(looking) as client:  # type: ignore[arg-type]
        answer = await client.post("http://test/do")
    assert (answer.status_code, answer.json()) == (200, "in the session")
    assert looking.found == list(NAMES)


@pytest.mark.parametrize("build", [with_router, with_a_later_route])
async def test_a_failed_commit_is_no_success(
    settings: Settings, build: Callable[[Callable[..., Awaitable[str]]], FastAPI]
) -> None:
    app = build(fail)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.post("http://test/do")).status_code == 409


# ---- What comes after the answer ----


def ways_to_write() -> list[Callable[[AsyncSession], Awaitable[None]]]:
    async def add(db: AsyncSession) -> None:
        db.add(Tier(name="of the task"))

    async def write(db: AsyncSession) -> None:
        await (await db.connection()).execute(insert(Tier).values(name="of the task"))

    async def commit(db: AsyncSession) -> None:
        db.add(Tier(name="of the task"))
        await db.commit()

    return [add, write, commit]


@pytest.mark.parametrize("write", ways_to_write(), ids=lambda write: write.__name__)
@pytest.mark.parametrize("used_before", [True, False])
async def test_a_task_after_the_answer_cannot_lose_its_change_in_silence(
    settings: Settings, write: Callable[[AsyncSession], Awaitable[None]], used_before: bool
) -> None:
    async def later(db: PlainSession, tasks: BackgroundTasks) -> str:
        if used_before:
            db.add(Tier(name="of the handler"))
        tasks.add_task(write, db)
        return "done"

    app = with_router(later)
    async with app.router.lifespan_context(app), client_of(app) as client:
        with pytest.raises(InvalidRequestError, match="permanently closed"):
            await client.post("http://test/do")
        async with second_session() as db:
            assert (await crud_tiers.get_by_name(db, "of the handler") is not None) is used_before
            assert await crud_tiers.get_by_name(db, "of the task") is None


async def test_what_asks_to_end_with_the_request_still_has_its_session_then(settings: Settings) -> None:
    done: list[str] = []

    async def mine(db: PlainSession) -> AsyncIterator[str]:
        yield "in the session"
        db.add(Tier(name="of the dependency"))
        done.append("dependency")

    async def handle(name: Annotated[str, Depends(mine, scope="request")], tasks: BackgroundTasks) -> str:
        tasks.add_task(done.append, "task")
        return name

    app = with_router(handle)
    looking = Looking(app)
    async with app.router.lifespan_context(app), client_of(looking) as client:  # type: ignore[arg-type]
        answer = await client.post("http://test/do")
        assert (answer.status_code, answer.json()) == (200, "in the session")
        async with second_session() as db:
            assert await crud_tiers.get_by_name(db, "of the dependency") is not None
    assert looking.found == []
    assert done == ["task", "dependency"]


async def test_who_streams_reads_meanwhile_and_gives_the_connection_back(settings: Settings) -> None:
    router = APIRouter()

    @router.get("/stream")
    async def stream(db: PlainSession) -> AsyncIterator[int]:
        for number in range(3):
            yield (await (await db.connection()).execute(select(literal(number)))).scalar_one()

    app = create_application(router, Small(POSTGRES_POOL_SIZE=2))
    async with app.router.lifespan_context(app), client_of(app) as client, asyncio.timeout(POOL_TIMEOUT):
        for _ in range(20):
            answer = await client.get("http://test/stream")
            assert (answer.status_code, answer.text.split()) == (200, ["0", "1", "2"])
