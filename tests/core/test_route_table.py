"""Requests find the routes that they would find without the table, at once."""

from collections.abc import Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Form
from fastapi.routing import iter_route_contexts
from starlette import convertors
from starlette.applications import Starlette
from starlette.convertors import Convertor, StringConvertor
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


# ---- What it leaves to FastAPI ----


def of_itself(forms: APIRouter) -> APIRouter:
    forms.form_limits = {"max_fields": 1}
    return forms


def of_one_around_it(forms: APIRouter) -> APIRouter:
    outer = APIRouter(form_limits={"max_fields": 1})
    outer.include_router(forms)
    return outer


def of_its_inclusion(forms: APIRouter) -> APIRouter:
    outer = APIRouter()
    outer.include_router(forms, form_limits={"max_fields": 1})
    return outer


def of_a_router_further_in(forms: APIRouter) -> APIRouter:
    outer = APIRouter()
    outer.include_router(of_one_around_it(forms))
    return outer


@pytest.mark.parametrize("limited", [of_itself, of_one_around_it, of_its_inclusion, of_a_router_further_in])
async def test_a_routers_limits_of_forms_are_kept_to(limited: Callable[[APIRouter], APIRouter]) -> None:
    def forms() -> APIRouter:
        router = APIRouter()

        @router.post("/form")
        async def form(a: Annotated[str, Form()], b: Annotated[str, Form()] = "") -> str:
            return a + b

        return limited(router)

    plain = FastAPI()
    plain.include_router(forms())
    statuses = []
    for app in (plain, create_application(forms(), SettingsGroup())):
        async with client_of(app) as client:
            sent = [{"a": (None, "1")}, {"a": (None, "1"), "b": (None, "2")}]
            statuses.append([(await client.post("http://test/form", files=files)).status_code for files in sent])
    assert statuses == [[200, 400]] * 2


class Slashed(Convertor[str]):
    """Words with slashes between them."""

    regex = "[a-z]+(?:/[a-z]+)*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class SlashedString(StringConvertor):
    """As well, and a kind of one that never has slashes."""

    regex = Slashed.regex


@pytest.mark.parametrize("convertor", [Slashed(), SlashedString()], ids=lambda convertor: type(convertor).__name__)
async def test_a_convertor_that_takes_slashes_is_asked_in_its_turn(
    monkeypatch: pytest.MonkeyPatch, convertor: Convertor[str]
) -> None:
    monkeypatch.setitem(convertors.CONVERTOR_TYPES, "slashed", convertor)  # As `register_url_convertor` does.

    def words() -> APIRouter:
        router = APIRouter()

        @router.get("/x/{words:slashed}")
        async def first(words: str) -> str:
            return f"words {words}"

        @router.get("/x/{a}/{b}")
        async def second(a: str, b: str) -> str:
            return f"two {a} {b}"

        return router

    plain = FastAPI()
    plain.include_router(words())
    for app in (plain, create_application(words(), SettingsGroup())):
        async with client_of(app) as client:
            answers = [(await client.get(f"http://test/x/{path}")).json() for path in ("a/b", "a/1", "a", "a/b/c")]
        assert answers == ["words a/b", "two a 1", "words a", "words a/b/c"]


@pytest.mark.parametrize("place", ["/included", "/own", "/mounted", "/below"])
@pytest.mark.parametrize("digits", [19, 4300, 4301, 20_000])
async def test_a_number_of_any_length_in_a_path_is_no_error_of_ours(place: str, digits: int) -> None:
    """Python reads none of more than 4300 digits."""
    router, mounted = APIRouter(), FastAPI()

    async def one(number: str | int) -> int:
        return 1

    router.add_api_route("/included/{number:int}", one)
    app = create_application(router, SettingsGroup())
    app.add_api_route("/own/{number:int}", one)
    mounted.add_api_route("/{number:int}", one)
    app.mount("/mounted", mounted)
    app.mount("/below/{number:int}", mounted)
    path = f"{place}/{'9' * digits}" + ("/1" if place == "/below" else "")
    async with client_of(app) as client:
        answer = await client.get(f"http://test{path}")
    if digits > 4300:
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    else:
        assert answer.status_code in {200, 404, 422}
