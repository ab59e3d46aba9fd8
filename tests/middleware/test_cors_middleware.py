"""What a page of another origin may do and read."""

from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Response

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
