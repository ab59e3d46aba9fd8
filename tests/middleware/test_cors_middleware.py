"""What a page of another origin may do and read."""

from collections.abc import Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Response, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, Field

from app.core.config import AppSettings, ClientSideCacheSettings, CORSSettings, SettingsGroup
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

PAGE, STRANGER = "https://page.example", "https://stranger.example"
EXPOSED = "X-Request-ID, Retry-After, RateLimit, RateLimit-Policy, ETag, Age, X-Cache"


class SmallSettings(AppSettings, ClientSideCacheSettings, CORSSettings):
    """An app of middleware alone."""


class SettingsWithoutCORS(AppSettings, ClientSideCacheSettings):
    """The same, and the group is left out."""


def client_with(settings: SettingsGroup) -> httpx2.AsyncClient:
    router = APIRouter()

    @router.get("/hello")
    async def hello(response: Response) -> str:
        response.headers["Vary"] = "Accept-Encoding"
        return "hello"

    @router.post("/echo")
    async def echo(body: dict[str, str]) -> int:
        return len(body)

    @router.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError

    client = client_of(create_application(router, settings))
    client.base_url = httpx2.URL("http://test/")
    return client


def small_client(*origins: str, credentials: bool = False, **settings: Any) -> httpx2.AsyncClient:
    return client_with(SmallSettings(CORS_ORIGINS=origins, CORS_ALLOW_CREDENTIALS=credentials, **settings))


def preflight(origin: str, method: str = "PATCH", headers: str = "authorization,content-type") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


def cors_headers(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def vary(answer: httpx2.Response) -> list[str]:
    return [name.strip() for name in answer.headers.get("Vary", "").split(",")]


async def test_a_caller_without_an_origin_gets_no_cors_headers() -> None:
    async with small_client(PAGE) as client:
        answer = await client.get("hello")
    assert answer.status_code == 200
    assert cors_headers(answer) == {}
    assert "Origin" in vary(answer)  # A shared cache must not hand this answer to a page.


async def test_a_page_of_an_allowed_origin_may_read_the_answer() -> None:
    async with small_client("http://localhost:3000", PAGE) as client:
        answer = await client.get("hello", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert cors_headers(answer) == {
        "access-control-allow-origin": PAGE,
        "access-control-expose-headers": EXPOSED,
    }
    assert answer.headers["Cache-Control"] == "public, max-age=60"
    assert vary(answer) == ["Accept-Encoding", "Origin", "Authorization", "Cookie"]


@pytest.mark.parametrize("credentials", [True, False])
@pytest.mark.parametrize("origin", [STRANGER, "null", "", f"{PAGE}.stranger.example", "http://page.example"])
async def test_an_unknown_origin_is_told_nothing(origin: str, credentials: bool) -> None:
    async with small_client(PAGE, credentials=credentials) as client:
        answer = await client.get("hello", headers={"Origin": origin})
    assert answer.status_code == 200
    assert cors_headers(answer) == {}
    assert "Origin" in vary(answer)


@pytest.mark.parametrize("path", ["hello", "nosuch", "crash"])
async def test_a_preflight_says_what_is_allowed_without_asking_the_route(path: str) -> None:
    async with small_client(PAGE) as client:
        answer = await client.options(path, headers=preflight(PAGE))
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"]
    assert cors_headers(answer) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "access-control-allow-headers": "Accept, Accept-Language, Authorization, Cache-Control, Content-Language, "
        "Content-Type, Idempotency-Key, If-None-Match, X-Request-ID",
        "access-control-max-age": "600",
    }
    assert "Origin" in vary(answer)


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        (preflight(STRANGER), "Disallowed CORS origin."),
        (preflight(PAGE, method="TRACE"), "Disallowed CORS method."),
        (preflight(PAGE, headers="X-Forwarded-For"), "Disallowed CORS headers."),
        (preflight(STRANGER, method="TRACE"), "Disallowed CORS origin, method."),
    ],
)
async def test_a_refused_preflight_is_a_problem(asked: dict[str, str], detail: str) -> None:
    async with small_client(PAGE) as client:
        answer = await client.options("hello", headers=asked)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:problem-type:preflight-refused",
        "title": "Bad Request",
        "status": 400,
        "detail": detail,
        "request_id": answer.headers["X-Request-ID"],
    }
    assert answer.headers.get("Access-Control-Allow-Origin") == (PAGE if asked["Origin"] == PAGE else None)
    assert bool(cors_headers(answer)) is (asked["Origin"] == PAGE)
    assert "Origin" in vary(answer)


async def test_options_that_is_no_preflight_goes_to_the_route() -> None:
    async with small_client(PAGE) as client:
        answer = await client.options("hello", headers={"Origin": PAGE})
    assert answer.status_code == 405
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "nosuch", b"", 404),
        ("DELETE", "echo", b"", 405),
        ("POST", "echo", b" " * 101, 413),
        ("POST", "echo", b"{", 422),
        ("GET", "crash", b"", 500),
    ],
)
async def test_a_page_may_read_errors(method: str, path: str, body: bytes, status: int) -> None:
    async with small_client(PAGE, MAX_BODY_BYTES=100) as client:
        answer = await client.request(method, path, content=body, headers={"Origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Expose-Headers"] == EXPOSED
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert "Origin" in vary(answer)


async def test_a_star_allows_every_origin() -> None:
    async with small_client("*") as client:
        simple = await client.get("hello", headers={"Origin": STRANGER})
        asked = await client.options("hello", headers=preflight(STRANGER))
        from_nowhere = await client.get("hello")
    assert cors_headers(simple) == {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == "*"
    assert cors_headers(from_nowhere) == {}
    for answer in simple, asked, from_nowhere:  # The header comes only to those who name an origin.
        assert "Origin" in vary(answer)


async def test_with_credentials_the_origin_is_named() -> None:
    async with small_client(PAGE, credentials=True) as client:
        simple = await client.get("hello", headers={"Origin": PAGE, "Cookie": "a=b"})
        asked = await client.options("hello", headers=preflight(PAGE))
    for answer in simple, asked:
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert "Origin" in vary(answer)


@pytest.mark.parametrize("settings", [SmallSettings, SettingsWithoutCORS])
async def test_without_origins_there_is_no_cors_at_all(settings: type[SettingsGroup]) -> None:
    async with client_with(settings()) as client:
        simple = await client.get("hello", headers={"Origin": PAGE})
        asked = await client.options("hello", headers=preflight(PAGE))
    assert simple.status_code == 200
    assert asked.status_code == 405
    for answer in simple, asked:
        assert cors_headers(answer) == {}
        assert "Origin" not in vary(answer)


# ---- What an application adds ----


class KeyHeaders(BaseModel):
    """Headers as a model."""

    x_model_key: str = ""
    named: str = Field("", alias="X-Named-Otherwise")


async def read_model(headers: Annotated[KeyHeaders, Header()]) -> str:
    return headers.x_model_key


async def read_key(key: Annotated[str | None, Security(APIKeyHeader(name="X-My-Key", auto_error=False))]) -> str:
    return key or ""


async def read_header(x_own_header: Annotated[str, Header()] = "") -> str:
    return x_own_header


async def read_alias(given: Annotated[str, Header(alias="X-Alias")] = "") -> str:
    return given


async def read_nested(key: Annotated[str, Depends(read_key)]) -> str:
    return key


def at_once(handler: Callable[..., Any]) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/", handler, methods=["GET", "PROPFIND"])
    return create_application(router, SmallSettings(CORS_ORIGINS=(PAGE,)))


def later(handler: Callable[..., Any]) -> FastAPI:
    app = create_application(APIRouter(), SmallSettings(CORS_ORIGINS=(PAGE,)))
    app.add_api_route("/", handler, methods=["GET", "PROPFIND"])
    return app


def included_later(handler: Callable[..., Any]) -> FastAPI:
    app, router = create_application(APIRouter(), SmallSettings(CORS_ORIGINS=(PAGE,))), APIRouter()
    router.add_api_route("/", handler, methods=["GET", "PROPFIND"])
    app.include_router(router, prefix="/in")
    return app


def by_the_router(handler: Callable[..., Any]) -> FastAPI:
    router = APIRouter(dependencies=[Depends(handler)])
    router.add_api_route("/", read_nothing, methods=["GET", "PROPFIND"])
    return create_application(router, SmallSettings(CORS_ORIGINS=(PAGE,)))


def mounted(handler: Callable[..., Any]) -> FastAPI:
    app, sub = create_application(APIRouter(), SmallSettings(CORS_ORIGINS=(PAGE,))), FastAPI()
    sub.add_api_route("/", handler, methods=["GET", "PROPFIND"])
    app.mount("/sub", sub)
    return app


async def read_nothing() -> None:
    pass


@pytest.mark.parametrize("build", [at_once, later, included_later, by_the_router, mounted])
@pytest.mark.parametrize(
    ("handler", "headers"),
    [
        (read_key, ["X-My-Key"]),
        (read_nested, ["X-My-Key"]),
        (read_header, ["X-Own-Header"]),
        (read_alias, ["X-Alias"]),
        (read_model, ["X-Model-Key", "X-Named-Otherwise"]),
    ],
)
async def test_what_routes_declare_is_allowed(
    build: Callable[[Callable[..., Any]], FastAPI], handler: Callable[..., Any], headers: list[str]
) -> None:
    async with client_of(build(handler)) as client:
        for _ in range(2):
            wanted = preflight(PAGE, "PROPFIND", ", ".join(["authorization", *headers]).lower())
            answer = await client.options("http://test/sub/", headers=wanted)
            assert answer.status_code == 200
            allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
            assert {*headers, "Authorization"} <= set(allowed)
            assert len({name.lower() for name in allowed}) == len(allowed)
            assert answer.headers["Access-Control-Allow-Methods"].split(", ")[-1] == "PROPFIND"
        refused = await client.options("http://test/", headers=preflight(PAGE, headers="X-Other-Key"))
        assert refused.json()["detail"] == "Disallowed CORS headers."


async def test_a_route_that_is_added_while_it_runs_is_seen() -> None:
    app = create_application(APIRouter(), SmallSettings(CORS_ORIGINS=(PAGE,)))
    async with client_of(app) as client:
        wanted = preflight(PAGE, "PROPFIND", "x-my-key")
        assert (await client.options("http://test/", headers=wanted)).status_code == 400
        app.add_api_route("/", read_key, methods=["PROPFIND"])
        assert (await client.options("http://test/", headers=wanted)).status_code == 200


async def test_another_origin_learns_nothing_of_what_routes_declare() -> None:
    async with client_of(at_once(read_key)) as client:
        answer = await client.options("http://test/", headers=preflight(STRANGER, headers="x-my-key"))
    assert (answer.status_code, answer.json()["detail"]) == (400, "Disallowed CORS origin.")
    assert cors_headers(answer) == {}


async def test_settings_allow_and_expose_more() -> None:
    more: dict[str, Any] = {
        "CORS_ALLOW_HEADERS": ("X-Own", "authorization"),
        "CORS_EXPOSE_HEADERS": ("X-Total", "etag"),
    }
    async with small_client(PAGE, CORS_MAX_AGE=5, **more) as client:
        asked = await client.options("hello", headers=preflight(PAGE, headers="x-own, authorization"))
        simple = await client.get("hello", headers={"Origin": PAGE})
    assert asked.status_code == 200
    assert "X-Own" in asked.headers["Access-Control-Allow-Headers"].split(", ")
    assert asked.headers["Access-Control-Allow-Headers"].lower().count("authorization") == 1
    assert asked.headers["Access-Control-Max-Age"] == "5"
    assert simple.headers["Access-Control-Expose-Headers"] == f"{EXPOSED}, X-Total"


async def test_settings_allow_all_headers() -> None:
    async with small_client(PAGE, CORS_ALLOW_HEADERS=("*",), CORS_EXPOSE_HEADERS=("*",)) as client:
        asked = await client.options("hello", headers=preflight(PAGE, headers="x-anything"))
        simple = await client.get("hello", headers={"Origin": PAGE})
    assert (asked.status_code, asked.headers["Access-Control-Allow-Headers"]) == (200, "x-anything")
    assert "*" in simple.headers["Access-Control-Expose-Headers"].split(", ")
