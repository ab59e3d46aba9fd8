"""What every answer carries, whoever makes it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

import httpx2
import pytest
import structlog
from fastapi import APIRouter, Depends, FastAPI, Response, Security
from fastapi.security import APIKeyHeader
from starlette.responses import StreamingResponse
from structlog.testing import capture_logs

from app.core.config import AppSettings, ClientSideCacheSettings, SettingsGroup
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio


class SmallSettings(AppSettings, ClientSideCacheSettings):
    """An app of middleware alone."""


def small_client(**settings: int) -> httpx2.AsyncClient:
    router = APIRouter()

    @router.get("/hello")
    async def hello() -> str:
        return "hello"

    @router.get("/own")
    async def own(response: Response) -> str:
        response.headers["Cache-Control"] = "max-age=1"
        return "own"

    @router.get("/cookie")
    async def cookie(response: Response) -> str:
        response.set_cookie("a", "b")
        return "cookie"

    @router.post("/echo")
    async def echo(body: dict[str, str]) -> int:
        return len(body)

    @router.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError("the password is hunter2")

    @router.get("/crash-late")
    async def crash_late() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield b"half"
            raise ZeroDivisionError

        return StreamingResponse(half())

    chosen: SettingsGroup = SmallSettings(**settings)  # type: ignore[arg-type]
    client = client_of(create_application(router, chosen))
    client.base_url = httpx2.URL("http://test/")
    return client


async def test_every_answer_has_a_request_id() -> None:
    async with small_client() as client:
        for path, status in {"hello": 200, "nosuch": 404, "echo": 405, "crash": 500}.items():
            answer = await client.get(path)
            assert answer.status_code == status
            assert len(answer.headers.get_list("X-Request-ID")) == 1
            if status != 200:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


async def test_two_requests_have_two_ids() -> None:
    async with small_client() as client:
        ids = {(await client.get("hello")).headers["X-Request-ID"] for _ in range(10)}
    assert len(ids) == 10


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0af7651916cd43dd8448eb211c80319c", True),
        ("short", False),
        ("x" * 65, False),
        ("with space 123", False),
        ('"quoted-1234"', False),
        ("", False),
    ],
)
async def test_a_proxys_request_id_is_kept_when_it_is_harmless(given: str, kept: bool) -> None:
    async with small_client() as client:
        answer = await client.get("hello", headers={"X-Request-ID": given})
    assert (answer.headers["X-Request-ID"] == given) is kept


async def test_an_unexpected_error_shows_its_id_and_nothing_else() -> None:
    async with small_client() as client:
        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            answer = await client.get("crash")
    assert answer.status_code == 500
    assert answer.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something went wrong here.",
        "request_id": answer.headers["X-Request-ID"],
    }
    crash = lines[0]  # The log has the rest, under that id.
    assert crash["event"] == "unhandled error"
    assert crash["exc_info"]
    assert crash["request_id"] == answer.headers["X-Request-ID"]


async def test_an_error_in_the_middle_of_an_answer_breaks_the_connection_off() -> None:
    async with small_client() as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("crash-late")


async def test_the_path_names_all_its_methods_in_a_405() -> None:
    async with small_client() as client:
        answer = await client.delete("echo")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_413(declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10

    async with small_client(MAX_BODY_BYTES=100) as client:
        answer = await client.post(
            "echo", content=b" " * 101 if declared else chunks(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["X-Request-ID"]
        fits = await client.post("echo", content=b"{}" + b" " * 98, headers={"Content-Type": "application/json"})
        assert fits.status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "policy"),
    [
        ("hello", {}, "public, max-age=60"),
        ("hello", {"Authorization": "Bearer x"}, "private, no-store"),
        ("hello", {"Cookie": "a=b"}, "private, no-store"),
        ("cookie", {}, "private, no-store"),
        ("nosuch", {}, "private, no-store"),
        ("crash", {}, "private, no-store"),
        ("own", {}, "max-age=1"),
    ],
)
async def test_only_anonymous_successes_may_be_kept(path: str, headers: dict[str, str], policy: str) -> None:
    async with small_client() as client:
        answer = await client.get(path, headers=headers)
    assert answer.headers["Cache-Control"] == policy
    if policy.startswith("public"):
        assert answer.headers["Vary"] == "Authorization, Cookie"


async def test_a_change_is_never_kept() -> None:
    async with small_client(CLIENT_CACHE_MAX_AGE=5) as client:
        assert (await client.post("echo", json={})).headers["Cache-Control"] == "private, no-store"
        assert (await client.get("hello")).headers["Cache-Control"] == "public, max-age=5"


async def test_a_request_leaves_one_line_without_its_query() -> None:
    with capture_logs() as lines:
        async with small_client() as client:
            await client.get("hello", params={"token": "hunter2"})
    (line,) = lines
    assert line.pop("milliseconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/hello",
        "route": "/hello",
        "status": 200,
    }


@pytest.mark.parametrize(("path", "status"), [("hello", 200), ("nosuch", 404), ("crash", 500)])
async def test_head_is_get_without_the_content(path: str, status: int) -> None:
    async with small_client() as client:
        get, head = await client.get(path), await client.head(path)
        assert head.status_code == get.status_code == status
        assert head.content == b""
        assert head.headers.keys() == get.headers.keys()
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert head.headers["Cache-Control"] == get.headers["Cache-Control"]


async def test_an_address_with_a_slash_too_many_is_unknown() -> None:
    """A redirect would lead to wherever the Host header says."""
    async with small_client() as client:
        answer = await client.get("hello/", headers={"Host": "evil.example"})
    assert answer.status_code == 404
    assert "Location" not in answer.headers


# ---- An API key is a credential, too ----


async def greet(key: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> str:
    return f"Hello {key or 'stranger'}"


async def open_only_with_a_key(key: Annotated[str, Security(APIKeyHeader(name="X-API-Key"))]) -> str:
    return key


async def nested(greeting: Annotated[str, Depends(greet)]) -> str:
    return greeting


def at_once(handler: Callable[..., Awaitable[str]]) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/key", handler)
    return create_application(router, SmallSettings())


def later(handler: Callable[..., Awaitable[str]]) -> FastAPI:
    app = create_application(APIRouter(), SmallSettings())
    app.add_api_route("/key", handler)
    return app


def included_later(handler: Callable[..., Awaitable[str]]) -> FastAPI:
    app, router = create_application(APIRouter(), SmallSettings()), APIRouter()
    router.add_api_route("/key", handler)
    app.include_router(router)
    return app


@pytest.mark.parametrize("build", [at_once, later, included_later])
@pytest.mark.parametrize("handler", [greet, nested, open_only_with_a_key])
async def test_what_an_api_key_opens_is_kept_by_nobody_else(
    build: Callable[[Callable[..., Awaitable[str]]], FastAPI], handler: Callable[..., Awaitable[str]]
) -> None:
    app = build(handler)
    async with app.router.lifespan_context(app), client_of(app) as client:
        mine = await client.get("http://test/key", headers={"X-API-Key": "secret"})
        anonymous = await client.get("http://test/key")
    assert "secret" in mine.json()
    assert mine.headers["Cache-Control"] == "private, no-store"
    if handler is open_only_with_a_key:
        assert (anonymous.status_code, anonymous.headers["Cache-Control"]) == (401, "private, no-store")
    else:
        assert (anonymous.json(), anonymous.headers["Cache-Control"]) == ("Hello stranger", "public, max-age=60")
        assert anonymous.headers["Vary"] == "Authorization, Cookie, X-Api-Key"


@pytest.mark.parametrize(("age", "policy"), [("soon", "public, max-age=60"), ("5", "public, max-age=65")])
async def test_an_age_of_the_handlers_own_is_no_error(age: str, policy: str) -> None:
    router = APIRouter()

    @router.get("/old")
    async def old(response: Response) -> str:
        response.headers["Age"] = age
        return "old"

    async with client_of(create_application(router, SmallSettings())) as client:
        answer = await client.get("http://test/old")
    assert (answer.status_code, answer.headers["Age"], answer.headers["Cache-Control"]) == (200, age, policy)
