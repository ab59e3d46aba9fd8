"""Mounted applications have transactions, limits, sign-in and problems as the routes beside them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from app.admin import _WhenAsked, add_console
from app.api.dependencies import CurrentSuperuser, CurrentUser, ReadingSessionDep, SessionDep, SettingsDep, limit_rate
from app.core.application import Application
from app.core.config import Settings, get_settings
from app.core.db.database import async_get_db
from app.core.exceptions.http_exceptions import Conflict
from app.core.mounts import all_routes
from app.core.setup import create_application
from app.core.utils.cache import cache
from app.core.utils.rate_limit import limited_paths
from tests.conftest import client_of, second_session
from tests.core.exceptions.test_problem_response import assert_is_problem
from tests.helper import create_superuser, create_user, signed_in

pytestmark = pytest.mark.anyio

calls: list[Any] = []


class OwnError(Exception):
    """One of an application's."""


async def count_notes() -> int:
    async with second_session() as db:
        return int((await db.exec(text("SELECT count(*) FROM note"))).one()[0])  # type: ignore[call-overload]


def add_routes(to: FastAPI | APIRouter) -> None:
    """One of everything that a route can ask for."""
    bare: Any = Annotated[AsyncSession, Depends(async_get_db)]

    @to.post("/note/{number}", dependencies=[Depends(limit_rate)])
    async def note(number: int, db: bare, later: BackgroundTasks) -> str:
        async def count() -> None:
            calls.append(await count_notes())

        await db.exec(text("INSERT INTO note VALUES ('x')"))
        later.add_task(count)
        if number == 0:
            raise Conflict
        return "noted"

    @to.get("/me")
    async def me(user: CurrentUser, db: SessionDep, reads: ReadingSessionDep, settings: SettingsDep) -> str:
        return user.username

    @to.get("/admin-only")
    async def admin_only(user: CurrentSuperuser) -> None: ...

    @to.get("/kept/{number}")
    @cache("kept_{number}", resource_id_name="number")
    async def kept(number: int) -> int:
        calls.append(number)
        return number

    @to.get("/raises/{what}")
    async def raises(what: str, db: bare) -> None:
        if what == "data":
            await db.exec(text("SELECT 'x'::int"))
        raise {"http": HTTPException(409, {"code": "NO"}), "problem": Conflict("Taken."), "own": OwnError("hunter2")}[
            what
        ]


def an_application(**kwargs: Any) -> FastAPI:
    app = FastAPI(**kwargs)
    add_routes(app)
    return app


def a_router() -> APIRouter:
    router = APIRouter()
    add_routes(router)
    return router


def mounted(app: FastAPI) -> str:
    app.mount("/sub", an_application())
    return "/sub"


def with_included_router(app: FastAPI) -> str:
    sub = FastAPI()
    sub.include_router(a_router(), prefix="/in")
    app.mount("/sub", sub)
    return "/sub/in"


def nested(app: FastAPI) -> str:
    middle = FastAPI()
    middle.mount("/inner", an_application())
    app.mount("/outer", middle)
    return "/outer/inner"


def within_starlette(app: FastAPI) -> str:
    app.mount("/star", Starlette(routes=[Mount("/sub", app=an_application())]))
    return "/star/sub"


def of_a_router(app: FastAPI) -> str:
    router = APIRouter()
    router.mount("/sub", an_application())
    app.include_router(router, prefix="/api")
    return "/api/sub"


def within_middleware(app: FastAPI) -> str:
    app.mount("/sub", GZipMiddleware(an_application()))
    return "/sub"


def by_a_mount_with_middleware(app: FastAPI) -> str:
    app.router.routes.append(Mount("/sub", app=an_application(), middleware=[Middleware(GZipMiddleware)]))
    return "/sub"


def by_host(app: FastAPI) -> str:
    app.router.routes.insert(0, Host("test", app=an_application()))
    return ""


def with_a_parameter(app: FastAPI) -> str:
    app.mount("/of/{tenant}", an_application())
    return "/of/{tenant}"


def an_application_of_ours(app: FastAPI) -> str:
    app.mount("/sub", create_application(a_router(), get_settings()))
    return "/sub"


def at_startup(app: FastAPI) -> str:
    app.router.add_event_handler("startup", lambda: app.mount("/late", an_application()))
    return "/late"


WAYS = [
    *(mounted, with_included_router, nested, within_starlette, of_a_router, within_middleware),
    *(by_a_mount_with_middleware, by_host, with_a_parameter, an_application_of_ours, at_startup),
]
Way = Callable[[FastAPI], str]


@asynccontextmanager
async def started(way: Way) -> AsyncIterator[tuple[Application, httpx2.AsyncClient, str]]:
    """An app with a mounted one, a client of that, and the template of where it is."""
    calls.clear()
    app = create_application(APIRouter(), get_settings())
    template = way(app)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with second_session() as db:
            await db.exec(text("CREATE TABLE note (words text)"))  # type: ignore[call-overload]
        client.base_url = httpx2.URL(f"http://test{template.replace('{tenant}', 'ada')}/")
        yield app, client, template


@pytest.mark.parametrize("way", WAYS)
async def test_a_transaction_is_committed_before_the_answer(settings: Settings, way: Way) -> None:
    async with started(way) as (_, client, _):
        assert (await client.post("note/1")).status_code == 200
        assert calls == [1]
        assert_is_problem(await client.post("note/0"), 409)
        assert await count_notes() == 1


@pytest.mark.parametrize("way", WAYS)
async def test_limits_are_kept_to_under_the_whole_template(
    settings: Settings, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "2")
    get_settings.cache_clear()
    async with started(way) as (app, client, template):
        with capture_logs() as lines:
            answers = [await client.post("note/1") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].headers["RateLimit"]
        assert_is_problem(answers[2], 429)
        assert {line["route"] for line in lines if line["event"] == "request"} == {f"{template}/note/{{number}}"}
        assert {f"{template}/note/{{number}}", f"POST {template}/note/{{number}}"} <= set(limited_paths(app))


@pytest.mark.parametrize("way", WAYS)
async def test_a_token_signs_in(settings: Settings, way: Way) -> None:
    async with started(way) as (_, client, _):
        async with second_session() as db:
            user, admin = await create_user(db), await create_superuser(db)
        assert_is_problem(await client.get("me"), 401)
        assert_is_problem(await client.get("me", headers={"Authorization": "Bearer broken"}), 401)
        assert (await client.get("me", headers=signed_in(user, settings))).json() == user.username
        assert_is_problem(await client.get("admin-only", headers=signed_in(user, settings)), 403)
        assert (await client.get("admin-only", headers=signed_in(admin, settings))).status_code == 200


@pytest.mark.parametrize("way", WAYS)
async def test_every_error_is_a_problem(settings: Settings, way: Way) -> None:
    async with started(way) as (_, client, _):
        assert_is_problem(await client.get("nosuch"), 404)
        assert assert_is_problem(await client.post("note/x"), 422)["errors"][0]["loc"] == ["path", "number"]
        refused = await client.get("note/1")
        assert_is_problem(refused, 405)
        assert refused.headers["Allow"] == "POST"
        assert assert_is_problem(await client.get("raises/http"), 409)["code"] == "NO"
        assert assert_is_problem(await client.get("raises/problem"), 409)["detail"] == "Taken."
        assert_is_problem(await client.get("raises/data"), 422)
        with capture_logs() as lines:
            answer = await client.get("raises/own")
        assert_is_problem(answer, 500)
        assert "hunter2" not in answer.text
        assert [line["event"] for line in lines].count("unhandled error") == 1


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_cached_is_kept(settings: Settings, way: Way) -> None:
    async with started(way) as (_, client, _):
        assert [(await client.get("kept/7")).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
        assert calls == [7]


async def test_two_mounts_of_one_application_are_limited_apart(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "1000")
    sub = an_application()

    def twice(app: FastAPI) -> str:
        app.mount("/one", sub)
        app.mount("/two", sub)
        return "/one"

    async with started(twice) as (app, client, _):
        assert {"/one/note/{number}", "/two/note/{number}"} <= set(limited_paths(app))
        assert (await client.post("note/1")).status_code == 200
        assert (await client.post("http://test/two/note/1")).status_code == 200


# ---- What a mounted application has of its own ----


async def own_answer(request: Request, error: Exception) -> Response:
    return JSONResponse({"own": type(error).__name__}, 418)


async def test_its_own_handlers_come_first(settings: Settings) -> None:
    def mount(app: FastAPI) -> str:
        app.mount("/sub", an_application(exception_handlers={StarletteHTTPException: own_answer, OwnError: own_answer}))
        return "/sub"

    async with started(mount) as (_, client, _):
        for what in "http", "problem", "own":
            assert (await client.get(f"raises/{what}")).status_code == 418
        assert (await client.get("nosuch")).status_code == 418
        assert_is_problem(await client.get("raises/data"), 422)


async def test_its_own_handler_of_every_error_answers(settings: Settings) -> None:
    def mount(app: FastAPI) -> str:
        app.mount("/sub", an_application(exception_handlers={Exception: own_answer}))
        return "/sub"

    async with started(mount) as (_, client, _):
        with pytest.raises(OwnError):  # FastAPI raises it again for the server, once it is answered.
            await client.get("raises/own")


async def test_the_outer_applications_handlers_are_for_what_it_does_not_handle(settings: Settings) -> None:
    def mount(app: FastAPI) -> str:
        app.add_exception_handler(OwnError, own_answer)
        app.mount("/sub", an_application())
        return "/sub"

    async with started(mount) as (_, client, _):
        assert (await client.get("raises/own")).json() == {"own": "OwnError"}
        assert_is_problem(await client.get("raises/http"), 409)


async def test_its_state_is_its_own(settings: Settings) -> None:
    sub = FastAPI()
    sub.state.word = "its own"

    @sub.get("/word")
    async def word(request: Request) -> str:
        return str(request.app.state.word)

    def mount(app: FastAPI) -> str:
        app.state.word = "another"
        app.mount("/sub", sub)
        return "/sub"

    async with started(mount) as (_, client, _):
        assert (await client.get("word")).json() == "its own"


async def test_an_application_that_has_answered_before_is_shared_too(settings: Settings) -> None:
    sub = an_application()
    async with client_of(sub) as client:
        assert (await client.get("http://test/raises/nosuch/deep")).json() == {"detail": "Not Found"}

    def mount(app: FastAPI) -> str:
        app.mount("/sub", sub)
        return "/sub"

    async with started(mount) as (_, client, _):
        assert_is_problem(await client.get("nosuch"), 404)


async def test_its_own_middleware_is_inside_of_everything(settings: Settings) -> None:
    sub = an_application()

    @sub.middleware("http")
    async def refuse(request: Request, call_next: Any) -> Response:
        if request.url.path.endswith("/me"):
            raise HTTPException(403, {"code": "NO"})
        answer: Response = await call_next(request)
        return answer

    def mount(app: FastAPI) -> str:
        app.mount("/sub", sub)
        return "/sub"

    async with started(mount) as (_, client, _):
        assert assert_is_problem(await client.get("me"), 403)["code"] == "NO"
        assert (await client.post("note/1")).status_code == 200


@pytest.mark.parametrize("sub", [FastAPI(debug=True), Starlette(debug=True)])
async def test_one_that_shows_tracebacks_stops_the_start(settings: Settings, sub: Starlette) -> None:
    app = create_application(APIRouter(), settings)
    app.mount("/sub", sub)
    with pytest.raises(ValueError, match="mounted at /sub has debug=True"):
        async with app.router.lifespan_context(app):
            pass


async def test_one_that_is_mounted_while_requests_are_answered_has_all_of_it(settings: Settings) -> None:
    async with started(lambda _: "/late") as (app, client, _):
        assert_is_problem(await client.post("note/1"), 404)
        app.mount("/late", an_application())
        assert (await client.post("note/1")).status_code == 200
        assert calls == [1]
        assert_is_problem(await client.get("raises/own"), 500)
        assert_is_problem(await client.get("nosuch"), 404)


# ---- What is no FastAPI ----


async def test_other_applications_go_on_working(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a file")

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(f"plain {scope['root_path']}")(scope, receive, send)

    async def page(request: Request) -> Response:
        raise StarletteHTTPException(403, "Not here.")

    async def broken(request: Request) -> Response:
        raise ZeroDivisionError

    def mount(app: FastAPI) -> str:
        app.mount("/plain", plain)
        app.mount("/files", StaticFiles(directory=tmp_path))
        app.mount("/star", Starlette(routes=[Route("/page", page), Route("/broken", broken)]))
        app.mount("/router", Router(routes=[Route("/page", page)]))
        return ""

    async with started(mount) as (_, client, _):
        assert (await client.get("plain/x")).text == "plain /plain"
        assert (await client.get("files/a.txt")).text == "a file"
        assert_is_problem(await client.get("files/b.txt"), 404)
        for where in "star", "router":
            assert assert_is_problem(await client.get(f"{where}/page"), 403)["detail"] == "Not here."
            assert_is_problem(await client.get(f"{where}/nosuch"), 404)
        assert_is_problem(await client.get("star/broken"), 500)


async def test_an_application_that_is_mounted_in_itself_ends() -> None:
    app = create_application(APIRouter(), get_settings())
    app.mount("/again", app)
    assert [template for template, _ in all_routes(app)].count("/metrics") == 1


async def test_the_console_is_not_loaded_by_a_look_at_the_routes(settings: Settings) -> None:
    app = create_application(APIRouter(), settings)
    add_console(app, settings)
    async with app.router.lifespan_context(app):
        list(all_routes(app))
    (console,) = [route.app for route in app.routes if isinstance(route, Mount) and isinstance(route.app, _WhenAsked)]
    assert console._console is None


async def test_a_mounted_applications_open_documentation_is_logged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD")
    monkeypatch.setenv("ENVIRONMENT", "staging")
    get_settings.cache_clear()
    app = create_application(APIRouter(), get_settings())
    app.mount("/shown", FastAPI())
    app.mount("/hidden", FastAPI(openapi_url=None))
    with capture_logs() as lines:
        async with app.router.lifespan_context(app):
            pass
    shown = [line["path"] for line in lines if line["event"] == "documentation of a mounted application is open to all"]
    assert shown == ["/shown/openapi.json"]
