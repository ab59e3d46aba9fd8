"""What FastAPI lets an application add to itself works as FastAPI documents it, inside of the engine's middleware."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.api.dependencies import limit_rate
from app.core.config import (
    AppSettings,
    ClientSideCacheSettings,
    CORSSettings,
    DefaultRateLimitSettings,
    PostgresSettings,
    ProxySettings,
    RedisRateLimiterSettings,
    Settings,
)
from app.core.db.database import async_get_db, transaction
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from tests.conftest import client_of, second_session
from tests.core.exceptions.test_problem_response import assert_is_problem
from tests.helper import make_room
from tests.served import served

pytestmark = pytest.mark.anyio

URL = "http://test/it"


class SmallSettings(AppSettings, ClientSideCacheSettings, CORSSettings, ProxySettings):
    """An app of middleware alone."""


class OwnError(Exception):
    """One of the application's."""


def router_that(error: Exception | None = None) -> APIRouter:
    """`/it` raises this, or answers "it"."""
    router = APIRouter()

    @router.api_route("/it", methods=["GET", "POST"])
    async def it() -> str:
        if error is not None:
            raise error
        return "it"

    return router


def app_that(error: Exception | None = None, **kwargs: Any) -> FastAPI:
    return create_application(router_that(error), SmallSettings(), **kwargs)


async def ask(app: FastAPI, method: str = "GET", url: str = URL, **kwargs: Any) -> httpx2.Response:
    async with client_of(app) as client:
        return await client.request(method, url, **kwargs)


# ---- Handlers of errors ----


async def answer_418(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": type(error).__name__}, 418, headers={"X-Own": "yes"})


def answer_418_in_a_thread(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": type(error).__name__}, 418, headers={"X-Own": "yes"})


@pytest.mark.parametrize("handler", [answer_418, answer_418_in_a_thread])
@pytest.mark.parametrize("key", [Exception, 500])
async def test_the_applications_handler_of_every_error_is_called(key: Any, handler: Any) -> None:
    app = app_that(ZeroDivisionError("hunter2"))
    app.exception_handler(key)(handler)
    with capture_logs() as lines:
        answer = await ask(app)
    assert (answer.status_code, answer.json()) == (418, {"error": "ZeroDivisionError"})
    assert answer.headers["X-Request-ID"]
    assert [line["event"] for line in lines] == ["unhandled error", "request"]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (OwnError, OwnError()),
        (StarletteHTTPException, Conflict()),
        (StarletteHTTPException, HTTPException(409)),
        (HTTPException, HTTPException(409)),
        (Conflict, Conflict()),
        (409, Conflict()),
        (RequestValidationError, RequestValidationError([])),
        (LookupError, KeyError("x")),
    ],
)
@pytest.mark.parametrize("how", ["argument", "before", "after"])
async def test_the_applications_handler_comes_before_ours(key: Any, error: Exception, how: str) -> None:
    app = app_that(error, **({"exception_handlers": {key: answer_418}} if how == "argument" else {}))
    if how == "before":
        app.add_exception_handler(key, answer_418)
    elif how == "after":
        async with client_of(app) as client:
            app.exception_handler(key)(answer_418)
            assert (await client.get(URL)).status_code == 418
    answer = await ask(app)
    assert (answer.status_code, answer.json()) == (418, {"error": type(error).__name__})
    assert answer.headers["X-Request-ID"]


async def test_a_handler_of_redis_errors_comes_before_ours() -> None:
    from redis.exceptions import ConnectionError as RedisConnectionError

    assert (await ask(app_that(RedisConnectionError()))).status_code == 503
    app = app_that(RedisConnectionError(), exception_handlers={RedisConnectionError: answer_418})
    assert (await ask(app)).status_code == 418


async def test_a_handler_that_fails_itself_is_a_500_of_ours() -> None:
    async def failing(request: Request, error: Exception) -> Response:
        raise OwnError

    for key in Exception, OwnError:
        app = app_that(OwnError())
        app.add_exception_handler(key, failing)
        assert_is_problem(await ask(app), 500)


async def test_a_handler_that_answers_nothing_is_a_500_of_ours() -> None:
    app = app_that(OwnError())
    app.add_exception_handler(Exception, lambda request, error: None)  # type: ignore[arg-type]
    assert_is_problem(await ask(app), 500)


async def test_an_error_after_the_start_of_the_answer_still_breaks_off() -> None:
    router = APIRouter()

    @router.get("/it")
    async def it() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield b"half"
            raise OwnError

        return StreamingResponse(half())

    app = create_application(router, SmallSettings())
    app.add_exception_handler(Exception, answer_418)
    with pytest.raises(OwnError):
        await ask(app)


# ---- Middleware ----


class Adding:
    """Pure ASGI: raises, or adds a header with what it sees of the request."""

    def __init__(self, app: ASGIApp, error: Exception | None = None) -> None:
        self.app, self.error = app, error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.error is not None:
            raise self.error

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen = f"{scope['method']} {scope['client'][0]} {scope['state']['request_id']}"
                message["headers"].append((b"x-seen", seen.encode()))
            await send(message)

        await self.app(scope, receive, send_more)


class AddingOnTop(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, error: Exception | None = None) -> None:
        super().__init__(app)
        self.error = error

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        if self.error is not None:
            raise self.error
        answer = await call_next(request)
        client = request.client.host if request.client else None
        answer.headers["X-Seen"] = f"{request.method} {client} {request.state.request_id}"
        return answer


def by_decorator(error: Exception | None = None) -> FastAPI:
    app = app_that()

    @app.middleware("http")
    async def adding(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await AddingOnTop(app, error).dispatch(request, call_next)

    return app


def by_method(error: Exception | None = None) -> FastAPI:
    app = app_that()
    app.add_middleware(Adding, error=error)
    return app


def by_argument(error: Exception | None = None) -> FastAPI:
    return app_that(middleware=[Middleware(AddingOnTop, error=error)])


WAYS = [by_decorator, by_method, by_argument]


@pytest.mark.parametrize("build", WAYS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_own_middleware_sees_the_client_and_the_request_id(
    build: Callable[..., FastAPI], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1/32")
    forwarded = {"X-Forwarded-For": "203.0.113.9"}
    answer = await ask(build(), method, headers=forwarded)
    assert answer.headers["X-Seen"] == f"{method} 203.0.113.9 {answer.headers['X-Request-ID']}"


@pytest.mark.parametrize("build", WAYS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(403, {"code": "NO"}), 403),
        (Conflict(), 409),
        (OwnError("hunter2"), 500),
        (HTTPException(204), 204),
    ],
)
async def test_an_error_of_own_middleware_is_treated_as_a_routes(
    build: Callable[..., FastAPI], error: Exception, status: int
) -> None:
    headers = {"Origin": "https://page.example"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("CORS_ORIGINS", "https://page.example")
        app = build(error)
    with capture_logs() as lines:
        answer = await ask(app, headers=headers)
    if status == 204:
        assert (answer.status_code, answer.content) == (204, b"")
    else:
        assert_is_problem(answer, status)
    assert "hunter2" not in answer.text
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert lines[-1]["status"] == status


@pytest.mark.parametrize("build", WAYS)
async def test_own_handlers_are_called_for_errors_of_own_middleware(build: Callable[..., FastAPI]) -> None:
    for key in OwnError, Exception:
        app = build(OwnError())
        app.add_exception_handler(key, answer_418)
        assert (await ask(app)).status_code == 418


async def test_an_answer_of_own_middleware_has_our_headers() -> None:
    app = app_that()

    @app.middleware("http")
    async def refuse(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return PlainTextResponse("closed", 503)

    answer = await ask(app)
    assert (answer.status_code, answer.text) == (503, "closed")
    assert answer.headers["X-Request-ID"]


async def test_own_middleware_is_in_the_order_that_starlette_documents() -> None:
    seen: list[str] = []

    def noting(name: str) -> Any:
        async def note(request: Request, call_next: RequestResponseEndpoint) -> Response:
            seen.append(name)
            return await call_next(request)

        return note

    app = app_that(middleware=[Middleware(BaseHTTPMiddleware, dispatch=noting("argument"))])
    app.middleware("http")(noting("first added"))
    app.add_middleware(BaseHTTPMiddleware, dispatch=noting("last added"))
    assert (await ask(app)).status_code == 200
    assert seen == ["last added", "first added", "argument"]


async def test_compressing_middleware_compresses() -> None:
    router = APIRouter()

    @router.get("/it")
    async def it() -> str:
        return "a" * 10_000

    app = create_application(router, SmallSettings())
    app.add_middleware(GZipMiddleware)
    answer = await ask(app, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json() == "a" * 10_000


async def test_a_body_over_the_limit_is_refused_to_own_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_BODY_BYTES", "10")
    app = app_that()

    @app.middleware("http")
    async def read(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.body()
        return await call_next(request)

    assert_is_problem(await ask(app, "POST", content=b"x" * 11), 413)
    assert (await ask(app, "POST", content=b"x" * 10)).status_code == 200


async def test_an_application_in_an_application_leaves_the_requests_to_the_outer_one() -> None:
    outer, inner = app_that(), app_that(Conflict())
    inner.add_middleware(Adding)
    outer.mount("/inner", inner)
    with capture_logs() as lines:
        answer = await ask(outer, url="http://test/inner/it")
    assert_is_problem(answer, 409)
    assert answer.headers["X-Seen"].endswith(answer.headers["X-Request-ID"])
    assert [line["event"] for line in lines] == ["request"]


# ---- With a database and limits ----


class DataSettings(PostgresSettings, RedisRateLimiterSettings, DefaultRateLimitSettings, AppSettings):
    """An app with a database and limits."""


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


async def make_table() -> None:
    async with second_session() as db:
        await make_room(await db.connection(), "note")
        await (await db.connection()).execute(text("CREATE TABLE note (words text)"))


async def count_notes() -> int:
    async with second_session() as db:
        return int((await db.exec(text("SELECT count(*) FROM note"))).one()[0])  # type: ignore[call-overload]


async def insert(db: AsyncSession) -> None:
    await db.exec(text("INSERT INTO note VALUES ('x')"))  # type: ignore[call-overload]


async def test_an_error_of_own_middleware_rolls_its_transaction_back(settings: Settings) -> None:
    app = create_application(router_that(), DataSettings())

    @app.middleware("http")
    async def within_a_transaction(request: Request, call_next: RequestResponseEndpoint) -> Response:
        async with transaction() as db:
            await insert(db)
            answer = await call_next(request)
            if request.method == "POST":
                raise HTTPException(409, {"code": "NO"})
            return answer

    async with started(app) as client:
        await make_table()
        assert_is_problem(await client.post("it"), 409)
        assert await count_notes() == 0
        assert (await client.get("it")).status_code == 200
        assert await count_notes() == 1


def include_later(app: FastAPI, router: APIRouter) -> None:
    app.include_router(router)


def in_a_router_of_a_router(app: FastAPI, router: APIRouter) -> None:
    outer = APIRouter()
    outer.include_router(router)
    app.include_router(outer)


def at_startup(app: FastAPI, router: APIRouter) -> None:
    @app.on_event("startup")
    async def include() -> None:
        app.include_router(router)


def directly(app: FastAPI, router: APIRouter) -> None:
    for route in router.routes:
        assert isinstance(route, APIRoute)
        app.add_api_route(
            route.path, route.endpoint, methods=list(route.methods or ()), dependencies=route.dependencies
        )


@pytest.mark.filterwarnings(r"ignore:\s+on_event is deprecated:DeprecationWarning")
@pytest.mark.parametrize("add", [include_later, in_a_router_of_a_router, at_startup, directly])
async def test_routes_that_are_added_later_have_transactions_limits_and_documentation(
    add: Callable[[FastAPI, APIRouter], None], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "2")
    counted = []
    router = APIRouter()

    @router.post("/note", dependencies=[Depends(limit_rate)])
    async def note(db: Annotated[AsyncSession, Depends(async_get_db)], later: BackgroundTasks) -> str:
        async def count() -> None:
            counted.append(await count_notes())

        await insert(db)
        later.add_task(count)
        return "noted"

    app = create_application(APIRouter(), DataSettings())
    assert "/note" not in app.openapi()["paths"]
    add(app, router)
    async with started(app) as client:
        await make_table()
        answers = [await client.post("note") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert counted == [1, 2]  # It is committed before the answer, and so before what follows it.
        assert "500" in app.openapi()["paths"]["/note"]["post"]["responses"]


# ---- Lifespans and their handlers ----


@pytest.mark.filterwarnings(r"ignore:\s+on_event is deprecated:DeprecationWarning")
@pytest.mark.parametrize("with_lifespan", [False, True])
async def test_handlers_of_on_event_run_with_everything_open(settings: Settings, with_lifespan: bool) -> None:
    happened: list[str] = []

    async def note(what: str) -> None:
        async with transaction() as db:
            await db.exec(text("SELECT 1"))  # type: ignore[call-overload]
        happened.append(what)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        await note("lifespan starts")
        yield {"word": "shared"}
        await note("lifespan ends")

    router = router_that()

    @router.on_event("startup")
    async def of_router() -> None:
        await note("router starts")

    @router.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.word)

    async def stop() -> None:
        await note("argument stops")

    kwargs: dict[str, Any] = {"lifespan": lifespan} if with_lifespan else {}
    app = create_application(router, DataSettings(), on_shutdown=[stop], **kwargs)

    @app.on_event("startup")
    async def start() -> None:
        await note("app starts")

    def in_a_thread() -> None:
        happened.append("plain function")

    app.router.add_event_handler("startup", in_a_thread)
    async with served(app) as address, httpx2.AsyncClient(base_url=f"http://{address}") as client:
        assert {"router starts", "app starts", "plain function"} <= set(happened)
        assert (await client.get("/it")).json() == "it"
        if with_lifespan:
            assert happened[0] == "lifespan starts"
            assert (await client.get("/state")).json() == "shared"
    assert "argument stops" in happened
    assert (happened[-1] == "lifespan ends") is with_lifespan


async def test_routers_with_a_lifespan_and_plain_generators_run(settings: Settings) -> None:
    happened: list[str] = []

    def lifespan_of(name: str) -> Any:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with transaction():
                happened.append(f"{name} starts")
            yield
            happened.append(f"{name} ends")

        return lifespan

    def plain(app: FastAPI) -> Iterator[None]:
        happened.append("plain starts")
        yield
        happened.append("plain ends")

    app = create_application(APIRouter(lifespan=lifespan_of("router")), DataSettings(), lifespan=plain)
    app.include_router(APIRouter(lifespan=lifespan_of("later")))
    async with started(app):
        assert happened == ["plain starts", "router starts", "later starts"]
    assert happened[3:] == ["later ends", "router ends", "plain ends"]


@pytest.mark.filterwarnings(r"ignore:\s+on_event is deprecated:DeprecationWarning")
async def test_a_handler_that_fails_stops_the_start(settings: Settings) -> None:
    app = create_application(APIRouter(), DataSettings())

    @app.on_event("startup")
    async def fail() -> None:
        raise OwnError

    with pytest.raises(OwnError):
        async with started(app):
            pass


# ---- Options, routes and documentation ----


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("docs_url", "/documentation", "/docs"),
        ("redoc_url", "/reference", "/redoc"),
        ("openapi_url", "/api.json", "/openapi.json"),
        ("redirect_slashes", True, "declare a route"),
        ("debug", True, "request id"),
    ],
)
def test_an_option_that_cannot_be_had_stops_the_start_with_one_line(option: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as raised:
        app_that(**{option: value})
    assert option in str(raised.value)
    assert "\n" not in str(raised.value)
    left_out: Any = None if option.endswith("url") else False
    assert app_that(**{option: left_out}) is not None


async def test_fastapis_options_are_kept() -> None:
    asked: list[str] = []

    async def note(request: Request) -> None:
        asked.append(request.url.path)

    router = APIRouter()

    @router.get("/it")
    async def it() -> str:
        return "it"

    app = create_application(
        router,
        SmallSettings(),
        dependencies=[Depends(note)],
        default_response_class=PlainTextResponse,
        responses={418: {"description": "tea"}},
        openapi_tags=[{"name": "tag"}],
        generate_unique_id_function=lambda route: f"own-{route.name}",
        title="Mine",
    )
    answer = await ask(app)
    assert (answer.text, asked) == ("it", ["/it"])
    document = app.openapi()
    operation = document["paths"]["/it"]["get"]
    assert operation["responses"]["418"]["description"] == "tea"
    assert operation["operationId"] == "own-it"
    assert (document["info"]["title"], document["tags"]) == ("Mine", [{"name": "tag"}])


async def test_an_overridden_document_is_the_one_that_is_shown(settings: Settings) -> None:
    app = create_application(router_that(), settings)
    app.openapi = lambda: {"openapi": "3.1.0", "info": {"title": "Own", "version": "1"}}  # type: ignore[method-assign]
    assert (await ask(app, url="http://test/openapi.json")).json()["info"]["title"] == "Own"


class TimedRoute(APIRoute):
    """As FastAPI documents it."""

    def get_route_handler(self) -> Any:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            answer = await original(request)
            answer.headers["X-Timed"] = "yes"
            return answer

        return handler


class PickyRoute(APIRoute):
    """Handles by itself."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("picked")(scope, receive, send)


async def test_routes_of_an_own_class_are_asked() -> None:
    timed, picky, plain = APIRouter(route_class=TimedRoute), APIRouter(route_class=PickyRoute), APIRouter()
    for number, router in enumerate((timed, picky, plain)):
        router.add_api_route(f"/{number}", lambda: "it", methods=["GET"])
    whole = APIRouter()
    for router in timed, picky, plain:
        whole.include_router(router)
    app = create_application(whole, SmallSettings())
    assert (await ask(app, url="http://test/0")).headers["X-Timed"] == "yes"
    assert (await ask(app, url="http://test/1")).text == "picked"
    assert (await ask(app, url="http://test/2")).json() == "it"


async def test_overrides_are_for_all_routes() -> None:
    async def real() -> str:
        return "real"

    router = APIRouter()
    app = create_application(router, SmallSettings())

    async def it(word: Annotated[str, Depends(real)]) -> str:
        return word

    app.get("/direct")(it)
    router.get("/included")(it)
    app.dependency_overrides[real] = lambda: "overridden"
    for path in "direct", "included":
        assert (await ask(app, url=f"http://test/{path}")).json() == "overridden"
