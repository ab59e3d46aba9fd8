"""Requests find the routes that they would find without the table, at once."""

from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Route

from app.core.config import SettingsGroup
from app.core.route_table import RouteTable
from app.core.setup import create_application
from tests.conftest import client_of, whole_app

pytestmark = pytest.mark.anyio

calls: list[str] = []


async def note(request: Request) -> None:
    calls.append(request.scope["route"].path)


def example_router() -> APIRouter:
    """Routes that overlap, below two prefixes."""
    inner, outer = APIRouter(prefix="/inner", dependencies=[Depends(note)]), APIRouter(prefix="/outer")

    @inner.get("/fixed")
    async def fixed() -> str:
        return "fixed"

    @inner.get("/{word}")
    async def word(word: str) -> str:
        return f"word {word}"

    @inner.get("/{number}/twice/{other}")
    async def number(number: int, other: str) -> str:
        return f"{number} {other}"

    @inner.delete("/{word}")
    async def delete(word: str) -> str:
        return f"deleted {word}"

    @inner.get("/rest/{path:path}")
    async def rest(path: str) -> str:
        return f"rest {path}"

    @inner.get("/after")
    async def after() -> str:
        return "after"

    outer.include_router(inner)
    return outer


def without_table(app: FastAPI) -> FastAPI:
    """The same app, the routes of which FastAPI finds."""
    app.router.routes[:] = [route for route in app.router.routes if not isinstance(route, RouteTable)]
    return app


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    ["fixed", "fixed/", "w%20x", "%2F", "7/twice/x", "x/twice/x", "rest/a/b", "after", "", "nosuch/at/all", "a%00b"],
)
async def test_every_answer_is_the_one_without_it(method: str, path: str) -> None:
    answers = []
    for app in (
        create_application(example_router(), SettingsGroup()),
        without_table(create_application(example_router(), SettingsGroup())),
    ):
        async with client_of(app) as client:
            answer = await client.request(method, f"http://test/outer/inner/{path}", headers={"X-Request-ID": "a" * 8})
        answers.append((answer.status_code, answer.headers.get("Allow"), answer.text))
    assert answers[0] == answers[1]


async def test_the_tables_routes_have_their_routers_dependencies_and_name() -> None:
    calls.clear()
    app = create_application(example_router(), SettingsGroup())
    async with client_of(app) as client:
        assert (await client.get("http://test/outer/inner/fixed")).json() == "fixed"
    assert calls == ["/inner/fixed"]
    assert app.url_path_for("word", word="x") == "/outer/inner/x"


async def test_what_comes_later_and_what_is_mounted_is_found_as_well() -> None:
    app = create_application(example_router(), SettingsGroup())

    @app.get("/later")
    async def later() -> str:
        return "later"

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    app.mount("/mounted", Starlette(routes=[Route("/page", page)]))
    async with client_of(app) as client:
        assert (await client.get("http://test/later")).json() == "later"
        assert (await client.get("http://test/mounted/page")).text == "page"


async def test_an_overridden_dependency_is_overridden_here_too() -> None:
    app = create_application(example_router(), SettingsGroup())
    app.dependency_overrides[note] = lambda: calls.append("overridden")
    calls.clear()
    async with client_of(app) as client:
        await client.get("http://test/outer/inner/fixed")
    assert calls == ["overridden"]


def test_it_has_every_route_of_the_app(settings: Any) -> None:
    """Or else what was gained is lost, and nobody would notice."""
    app = whole_app()
    table = app.router.routes[0]
    assert isinstance(table, RouteTable)
    for route in iter_route_contexts(app.routes):
        if str(route.path).startswith("/api/v1/"):
            for method in route.methods or ():
                path = str(route.path).replace("{", "").replace("}", "")
                match, found = table.matches({"type": "http", "method": method, "path": path, "root_path": ""})
                assert match is Match.FULL
                assert found["fastapi"]["effective_route_context"].path == route.path


async def test_the_client_keeps_its_own_answers(client: httpx2.AsyncClient) -> None:
    assert (await client.get("user/me/")).status_code == 401
    assert (await client.get("user/me")).status_code == 401
