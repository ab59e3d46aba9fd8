"""How large a request's body may be: for the application, a router, a route, a mounted application."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Body, FastAPI, File, Form, Request, UploadFile
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from app.core.config import AppSettings, EnvironmentSettings
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

LIMIT = 1000


class SmallSettings(AppSettings):
    """An app of middleware alone."""


class NoLimit(EnvironmentSettings):
    """Without the group that has the limit."""


async def length(request: Request) -> int:
    return len(await request.body())


async def streamed_length(request: Request) -> int:
    return sum([len(part) async for part in request.stream()])


async def unread() -> str:
    calls.append("unread")
    return "done"


async def swallows(request: Request) -> str:
    try:
        await request.body()
    except Exception:
        return "swallowed"
    return "read"


async def file_length(file: UploadFile) -> int:
    return len(await file.read())


async def file_bytes(file: Annotated[bytes, File()]) -> int:
    return len(file)


async def starlette_length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def application(router: APIRouter, **kwargs: Any) -> FastAPI:
    return create_application(router, SmallSettings(MAX_BODY_BYTES=LIMIT), **kwargs)


def on_route(limit: int | None) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/sized", length, methods=["POST"], max_body_size=limit)
    return application(router)


def streaming(limit: int | None) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/sized", streamed_length, methods=["POST"], max_body_size=limit)
    return application(router)


def swallowing(limit: int | None) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/sized", swallows, methods=["POST"], max_body_size=limit)
    return application(router)


def on_router(limit: int | None) -> FastAPI:
    router = APIRouter(max_body_size=limit)
    router.add_api_route("/sized", length, methods=["POST"])
    return application(router)


def on_inclusion(limit: int | None) -> FastAPI:
    inner, router = APIRouter(), APIRouter()
    inner.add_api_route("/sized", length, methods=["POST"])
    router.include_router(inner, max_body_size=limit)
    return application(router)


def route_over_router(limit: int | None) -> FastAPI:
    router = APIRouter(max_body_size=1)
    router.add_api_route("/sized", length, methods=["POST"], max_body_size=limit)
    return application(router)


def route_with_a_path_in_it(limit: int | None) -> FastAPI:
    """Which is not among those that the route table has."""
    router = APIRouter()
    router.add_api_route("/{rest:path}", length, methods=["POST"], max_body_size=limit)
    return application(router)


def added_later(limit: int | None) -> FastAPI:
    app = application(APIRouter())
    app.add_api_route("/sized", length, methods=["POST"], max_body_size=limit)
    return app


def included_later(limit: int | None) -> FastAPI:
    app, router = application(APIRouter()), APIRouter(max_body_size=limit)
    router.add_api_route("/sized", length, methods=["POST"])
    app.include_router(router)
    return app


def of_the_application(limit: int | None) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/sized", length, methods=["POST"])
    return application(router, max_body_size=limit)


def mounted_fastapi(limit: int | None) -> FastAPI:
    app, sub = application(APIRouter()), FastAPI(max_body_size=limit)
    sub.add_api_route("/", length, methods=["POST"])
    app.mount("/sized", sub)
    return app


def route_of_mounted_fastapi(limit: int | None) -> FastAPI:
    app, sub = application(APIRouter()), FastAPI(max_body_size=1)
    sub.add_api_route("/", length, methods=["POST"], max_body_size=limit)
    app.mount("/sized", sub)
    return app


def mounted_application(limit: int | None) -> FastAPI:
    """A sub-application that create_application made, too."""
    sub = create_application(APIRouter(), NoLimit(), max_body_size=limit)
    sub.add_api_route("/", length, methods=["POST"])
    app = application(APIRouter())
    app.mount("/sized", sub)
    return app


def mounted_starlette(limit: int | None) -> FastAPI:
    routes = [Route("/", starlette_length, methods=["POST"], max_body_size=limit)]
    app = application(APIRouter())
    app.router.routes.append(Mount("/sized", Starlette(routes=routes)))
    return app


async def _pass(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def mounted_with_middleware(limit: int | None) -> FastAPI:
    """Of a kind that wraps errors in groups."""
    routes = [Route("/", starlette_length, methods=["POST"], max_body_size=limit)]
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=_pass)]
    app = application(APIRouter())
    app.mount("/sized", Starlette(routes=routes, middleware=middleware))
    return app


def behind_middleware_of_its_own(limit: int | None) -> FastAPI:
    app = on_route(limit)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_pass)
    return app


WAYS = [
    behind_middleware_of_its_own,
    on_route,
    streaming,
    swallowing,
    on_router,
    on_inclusion,
    route_over_router,
    route_with_a_path_in_it,
    added_later,
    included_later,
    of_the_application,
    mounted_fastapi,
    route_of_mounted_fastapi,
    mounted_application,
    mounted_starlette,
    mounted_with_middleware,
]


async def in_parts(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 100):
        yield b"x" * min(100, size - start)


async def sent(app: FastAPI, size: int, *, declared: bool, path: str = "sized", **kwargs: Any) -> httpx2.Response:
    async with client_of(app) as client:
        content = b"x" * size if declared else in_parts(size)
        slash = "/" if any(isinstance(route, Mount) and route.path == "/sized" for route in app.routes) else ""
        return await client.post(f"http://test/{path}{slash}", content=content, **kwargs)


def assert_too_large(answer: httpx2.Response) -> None:
    assert answer.status_code == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"] == "urn:problem-type:payload-too-large"
    assert (problem["status"], problem["detail"]) == (413, "The request body is too large.")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("limit", [10, 5000], ids=["smaller", "larger"])
@pytest.mark.parametrize("build", WAYS)
async def test_the_limit_of_the_route_counts(
    build: Callable[[int | None], FastAPI], limit: int, declared: bool
) -> None:
    app = build(limit)
    fits = await sent(app, limit, declared=declared)
    assert (fits.status_code, fits.text) == (200, '"read"' if build is swallowing else str(limit))
    assert_too_large(await sent(app, limit + 1, declared=declared))


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("build", [way for way in WAYS if not way.__name__.startswith("route_")])
async def test_without_one_that_of_the_application_counts(
    build: Callable[[int | None], FastAPI], declared: bool
) -> None:
    app = build(None)
    assert (await sent(app, LIMIT, declared=declared)).status_code == 200
    assert_too_large(await sent(app, LIMIT + 1, declared=declared))


async def test_the_answer_has_the_id_of_its_request() -> None:
    answer = await sent(on_route(10), 11, declared=False, headers={"X-Request-ID": "a-request-of-mine"})
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "a-request-of-mine"


async def test_zero_allows_an_empty_body_alone() -> None:
    app = on_route(0)
    assert (await sent(app, 0, declared=True)).status_code == 200
    assert_too_large(await sent(app, 1, declared=True))
    assert_too_large(await sent(app, 1, declared=False))


async def test_settings_without_the_group_have_no_limit() -> None:
    router = APIRouter()
    router.add_api_route("/sized", length, methods=["POST"])
    router.add_api_route("/small", length, methods=["POST"], max_body_size=10)
    app = create_application(router, NoLimit())
    assert (await sent(app, 2**21, declared=False)).status_code == 200
    assert_too_large(await sent(app, 11, declared=False, path="small"))


@pytest.mark.parametrize("length", [b"9" * 5000, b"1001"])
async def test_a_declared_length_is_refused_before_anything_is_read_or_run(length: bytes) -> None:
    router = APIRouter()
    router.add_api_route("/unread", unread, methods=["POST"])
    app = application(router)

    async def body() -> AsyncIterator[bytes]:
        calls.append("read")
        yield b""

    async with client_of(app) as client:
        headers = {"Content-Length": length.decode()}
        answer = await client.post("http://test/unread", content=body(), headers=headers)
    assert_too_large(answer)
    assert calls in ([], ["read"])  # httpx2 may send a part before the answer is there; the handler has not run.
    assert "unread" not in calls


@pytest.mark.parametrize("path", ["unread", "mounted/unread", "rest/of/it"])
async def test_what_was_done_is_never_answered_with_413(path: str) -> None:
    """A caller who is told 413 sends the request again."""
    router, mounted = APIRouter(), FastAPI()
    router.add_api_route("/unread", unread, methods=["POST"])
    router.add_api_route("/rest/{rest:path}", unread, methods=["POST"])
    mounted.add_api_route("/unread", unread, methods=["POST"])
    app = application(router)
    app.mount("/mounted", mounted)
    answer = await sent(app, LIMIT + 1, declared=True, path=path)
    if answer.status_code == 413:
        assert calls == []
    else:
        assert (answer.status_code, calls) == (200, ["unread"])


async def test_a_path_that_is_unknown_has_the_limit_of_the_application() -> None:
    assert_too_large(await sent(on_route(5000), LIMIT + 1, declared=True, path="nosuch"))
    assert (await sent(on_route(5000), LIMIT, declared=True, path="nosuch")).status_code == 404


@pytest.mark.parametrize("handler", [file_length, file_bytes])
async def test_a_form_has_the_limit_of_its_route(handler: Callable[..., Any]) -> None:
    router = APIRouter()
    router.add_api_route("/file", handler, methods=["POST"], max_body_size=5000)
    router.add_api_route("/usual", handler, methods=["POST"])
    async with client_of(application(router)) as client:
        for path, fits in (("file", 4000), ("usual", 500)):
            answer = await client.post(f"http://test/{path}", files={"file": ("a", b"x" * fits)})
            assert (answer.status_code, answer.text) == (200, str(fits))
            assert_too_large(await client.post(f"http://test/{path}", files={"file": ("a", b"x" * fits * 2)}))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("level", ["route", "router", "inclusion", "application"])
async def test_limits_of_forms_count(level: str, later: bool) -> None:
    """FastAPI's, with which ours must not be in the way."""
    limits: Any = {"form_limits": {"max_fields": 2}}
    router, outer = APIRouter(**limits if level == "router" else {}), APIRouter()

    @router.post("/form", **limits if level == "route" else {})
    async def form(a: Annotated[list[str], Form()]) -> int:
        return len(a)

    inclusion = limits if level == "inclusion" else {}
    if not later:
        outer.include_router(router, **inclusion)
    app = application(outer, **limits if level == "application" else {})
    if later:
        app.include_router(router, **inclusion)
    async with client_of(app) as client:
        assert (await client.post("http://test/form", data={"a": ["1", "2"]})).json() == 2
        refused = await client.post("http://test/form", data={"a": ["1", "2", "3"]})
    assert refused.status_code == 400
    assert refused.headers["Content-Type"] == "application/problem+json"


async def test_a_body_as_json_has_the_limit_of_its_route() -> None:
    router = APIRouter()

    @router.post("/json", max_body_size=5000)
    async def read(text: Annotated[str, Body()]) -> int:
        return len(text)

    async with client_of(application(router)) as client:
        assert (await client.post("http://test/json", json="x" * 4000)).json() == 4000
        assert_too_large(await client.post("http://test/json", json="x" * 5000))


async def test_what_has_begun_to_answer_is_broken_off() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["more_body"]:
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})

    app = application(APIRouter())
    app.mount("/echo", echo)
    async with client_of(app) as client:
        with pytest.raises(RuntimeError, match="response already started"):
            await client.post("http://test/echo/", content=in_parts(LIMIT + 1))
