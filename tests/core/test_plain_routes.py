"""Plain routes are answered as FastAPI would answer them, without the detours it takes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, Header, Path, Request, Response, Security
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from app.core.config import SettingsGroup
from app.core.exceptions.http_exceptions import Conflict
from app.core.plain_routes import PlainRoute
from app.core.route_table import RouteTable
from app.core.setup import create_application
from tests.conftest import client_of, whole_app

pytestmark = pytest.mark.anyio

calls: list[str] = []


class Shown(BaseModel):
    word: str
    number: int = Field(1, alias="count")


class Kept(Shown):
    secret: str = "hidden"


async def first() -> str:
    calls.append("first")
    return "1"


async def second(one: Annotated[str, Depends(first)], response: Response, connection: HTTPConnection) -> str:
    calls.append("second")
    response.headers["X-Path"] = connection.url.path
    return f"{one}2"


async def conflicting() -> None:
    calls.append("conflicting")
    raise Conflict("No.")


async def of_number(number: int) -> int:
    calls.append(f"number {number}")
    return number


async def of_tenant(tenant_name: Annotated[str, Path(alias="tenant")] = "nobody's") -> str:
    calls.append(f"tenant {tenant_name}")
    return tenant_name


class UnreadableError(Exception):
    """What a handler raises that has read the body."""


async def on_unreadable(request: Request, error: Exception) -> Response:
    return PlainTextResponse(await request.body(), 400)


First = Annotated[str, Depends(first)]
Tenant = Annotated[str, Depends(of_tenant)]
bearer = OAuth2PasswordBearer("token", auto_error=False)


class Sync:
    """A dependency that is an object."""

    async def __call__(self, request: Request) -> str:
        return request.method


def example() -> APIRouter:
    router = APIRouter(prefix="/plain", dependencies=[Depends(first)])

    @router.get("/constant")
    async def constant() -> dict[str, bool]:
        return {"ok": True}

    @router.get("/model", response_model=Shown)
    async def model(two: Annotated[str, Depends(second)], again: First) -> Kept:
        return Kept(word=two + again, count=2)

    @router.get("/number/{number}/{word}")
    async def number(number: Annotated[int, Depends(of_number)], word: Annotated[str, Field(max_length=3)]) -> str:
        return f"{number} {word}"

    @router.get("/status", status_code=202)
    async def status(response: Response) -> None:
        response.headers["X-Set"] = "yes"

    @router.get("/other-status", status_code=202)
    async def other_status(response: Response, request: Request) -> str:
        response.status_code = 203
        return request.url.path

    @router.get("/empty", status_code=204)
    async def empty(two: Annotated[str, Depends(second)]) -> None:
        assert two == "12"

    @router.get("/text")
    async def text(two: Annotated[str, Depends(second)]) -> PlainTextResponse:
        return PlainTextResponse(two)

    @router.get("/own-class", response_class=PlainTextResponse)
    async def own_class() -> str:
        return "own"

    @router.get("/conflict", dependencies=[Depends(conflicting), Depends(second)])
    async def conflict() -> None:
        calls.append("never")

    @router.get("/wrong", response_model=int)
    async def wrong() -> str:
        return "no number"

    @router.get("/object")
    async def an_object(method: Annotated[str, Depends(Sync())], token: Annotated[str | None, Depends(bearer)]) -> str:
        return f"{method} {token}"

    @router.get("/of/{tenant}/{number}")
    @router.get("/of-nobody/{number}")
    @router.get("/of-nobody")
    async def of_somebody(tenant: Tenant, number: Annotated[int, Path()]) -> str:
        return f"{tenant} {number}"

    @router.api_route("/body", methods=["GET", "HEAD"])
    async def body(request: Request) -> None:
        await request.body()
        raise UnreadableError

    return router


def straight(app: FastAPI) -> FastAPI:
    """The same app, without the table: FastAPI does all of it."""
    app.router.routes[:] = [route for route in app.router.routes if not isinstance(route, RouteTable)]
    return app


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        *("constant", "model", "number/7/abc", "number/x/abcd", "number/7/abcd", "number/x/abc", "status"),
        *("other-status", "empty", "text", "own-class", "conflict", "wrong", "object", "body"),
        *("of/a/7", "of/a/x", "of-nobody/7", "of-nobody"),
    ],
)
async def test_it_answers_as_fastapi_does_and_calls_the_same_in_the_same_order(method: str, path: str) -> None:
    answers, called = [], []
    for app in (
        create_application(example(), SettingsGroup()),
        straight(create_application(example(), SettingsGroup())),
    ):
        calls.clear()
        app.add_exception_handler(UnreadableError, on_unreadable)
        headers = {"X-Request-ID": "a" * 8, "Authorization": "Bearer x"}
        async with client_of(app) as client:
            async with asyncio.timeout(5):  # A body that was read cannot be waited for.
                answer = await client.request(method, f"http://test/plain/{path}", headers=headers, content=b"sent")
        answers.append((answer.status_code, sorted(answer.headers.multi_items()), answer.text))
        called.append(list(calls))
    assert answers[0] == answers[1]
    assert called[0] == called[1]
    assert "first" in called[0]


def route_of(router: APIRouter) -> PlainRoute | None:
    app = FastAPI()
    app.include_router(router)
    (route,) = (each for each in iter_route_contexts(app.routes) if each.path == "/it")
    return PlainRoute.of(route._effective_route)


def test_every_example_is_plain() -> None:
    app = FastAPI()
    app.include_router(example())
    found = [route for route in iter_route_contexts(app.routes) if str(route.path).startswith("/plain/")]
    assert len(found) == 15
    assert all(PlainRoute.of(route._effective_route) is not None for route in found)


def test_what_is_asked_most_is_plain(settings: Any) -> None:
    """Or else what was gained is lost, and nobody would notice."""
    paths = {"/api/v1/health", "/api/v1/tier/{name}", "/api/v1/user/{username}", "/api/v1/user/me/"}
    routes = [route for route in iter_route_contexts(whole_app().routes) if route.path in paths]
    plain = {
        route.path for route in routes if route.methods == {"GET"} and PlainRoute.of(route._effective_route) is not None
    }
    assert plain == paths


# ---- What it leaves to FastAPI ----


async def with_exit() -> AsyncIterator[None]:
    yield


def in_a_thread() -> None: ...


async def scoped(scopes: SecurityScopes) -> None: ...


async def of_query(q: str = "") -> None: ...


async def of_header(x: Annotated[str, Header()] = "") -> None: ...


async def of_cookie(x: Annotated[str, Cookie()] = "") -> None: ...


async def of_body(values: Shown) -> None: ...


async def anew(one: Annotated[str, Depends(first, use_cache=False)]) -> None: ...


async def later(tasks: BackgroundTasks) -> None: ...


class OwnRoute(APIRoute):
    """Somebody else's way."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handler(_: Request) -> Response:
            return PlainTextResponse("own way")

        return handler


@pytest.mark.parametrize(
    "dependency",
    [
        *(Depends(with_exit), Depends(in_a_thread), Depends(scoped), Depends(of_query), Depends(of_header)),
        *(Depends(of_cookie), Depends(of_body), Depends(later), Depends(anew)),
        Security(first, scopes=["all"]),
    ],
)
def test_a_route_with_more_than_its_path_is_not_plain(dependency: Any) -> None:
    router = APIRouter()

    @router.post("/it", dependencies=[dependency])
    async def it() -> None: ...

    assert route_of(router) is None


def test_a_handler_that_is_no_coroutine_is_not_plain() -> None:
    routers = APIRouter(), APIRouter(), APIRouter(route_class=OwnRoute), APIRouter()

    @routers[0].get("/it")
    def it() -> None: ...

    @routers[1].get("/it")
    async def stream() -> AsyncIterator[int]:
        yield 1

    @routers[2].get("/it")
    async def own() -> None: ...

    @routers[3].get("/it")
    async def plain() -> None: ...

    assert [route_of(router) is None for router in routers] == [True, True, True, False]


async def test_an_overridden_dependency_is_overridden_here_too() -> None:
    router = APIRouter()

    @router.get("/word")
    async def word(one: First) -> str:
        return one

    app = create_application(router, SettingsGroup())
    app.dependency_overrides[first] = lambda: "overridden"
    async with client_of(app) as client:
        assert json.loads((await client.get("http://test/word")).text) == "overridden"
        app.dependency_overrides.clear()
        assert json.loads((await client.get("http://test/word")).text) == "1"


@pytest.mark.parametrize("wanted", [False, True])
async def test_fastapis_own_spans_are_made_for_whoever_asks_for_them(wanted: bool) -> None:
    router, spans = APIRouter(), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    @router.get("/word")
    async def word(one: First) -> str:
        return one

    telemetry: dict[str, Any] = {"telemetry": {"tracer_provider": provider}} if wanted else {}
    async with client_of(create_application(router, SettingsGroup(), **telemetry)) as client:
        assert (await client.get("http://test/word")).status_code == 200
    names = {span.name for span in spans.get_finished_spans()}
    assert names >= {"GET /word", "fastapi.dependencies"} if wanted else not names
