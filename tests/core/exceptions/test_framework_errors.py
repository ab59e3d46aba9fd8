"""What Starlette answers in plain text by itself is a problem document; an application's own text is not touched."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.core.application import Application
from app.core.config import AppSettings
from app.core.exceptions.framework_errors import _RANGE_TEXTS
from app.core.setup import create_application
from tests.conftest import client_of
from tests.core.exceptions.test_problem_response import assert_is_problem
from tests.served import served

pytestmark = pytest.mark.anyio


class SmallSettings(AppSettings):
    """An app of middleware alone."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ten.txt"
    path.write_text("0123456789")
    return path


def app_of(file: Path) -> Application:
    router = APIRouter()

    @router.get("/file")
    async def download() -> FileResponse:
        return FileResponse(file, headers={"X-Own": "kept"})

    app = create_application(router, SmallSettings())
    app.mount("/static", StaticFiles(directory=file.parent))
    app.mount("/route", Route("/only", lambda _: PlainTextResponse("found")))
    app.frontend("/page", directory=file.parent)
    return app


RANGES = {
    "bytes=50-60": (416, "urn:problem-type:range-not-satisfiable"),
    "bytes=5-2": (400, "urn:problem-type:invalid-range"),
    "bytes=": (400, "urn:problem-type:invalid-range"),
    "lines=1-2": (400, "urn:problem-type:invalid-range"),
    "bytes": (400, "urn:problem-type:invalid-range"),
}


@pytest.mark.parametrize("path", ["file", "static/ten.txt", "page/ten.txt"])
@pytest.mark.parametrize("wanted", RANGES)
async def test_a_range_that_cannot_be_had_is_a_problem(file: Path, path: str, wanted: str) -> None:
    status, kind = RANGES[wanted]
    async with client_of(app_of(file)) as client:
        answer = await client.get(f"http://test/{path}", headers={"Range": wanted})
        head = await client.head(f"http://test/{path}", headers={"Range": wanted})
    assert assert_is_problem(answer, status)["type"] == kind
    if status == 416:
        assert answer.headers["Content-Range"] == "bytes */10"
    assert head.status_code == status
    assert head.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("wanted", RANGES)
async def test_an_error_that_middleware_passes_on_in_parts_is_a_problem(file: Path, wanted: str) -> None:
    """As `@app.middleware("http")` does: the text comes with `more_body`, and an empty message ends the answer."""
    status, kind = RANGES[wanted]
    app = app_of(file)

    @app.middleware("http")
    async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Passed-On"] = "yes"
        return response

    async with client_of(app) as client:
        answer = await client.get("http://test/file", headers={"Range": wanted})
        assert answer.headers["X-Passed-On"] == "yes"
        assert assert_is_problem(answer, status)["type"] == kind
        missing = await client.get("http://test/static/nosuch")
        assert_is_problem(missing, 404)


async def test_a_text_of_many_parts_that_is_the_application_s_own_is_not_touched(file: Path) -> None:
    async def parts() -> AsyncIterator[str]:
        for _ in range(5):
            yield "x" * 60

    app = app_of(file)
    app.add_api_route("/own", lambda: StreamingResponse(parts(), 400, media_type="text/plain"))
    async with client_of(app) as client:
        answer = await client.get("http://test/own")
        assert (answer.status_code, answer.text) == (400, "x" * 300)


async def test_a_range_that_can_be_had_is_sent(file: Path) -> None:
    async with client_of(app_of(file)) as client:
        answer = await client.get("http://test/file", headers={"Range": "bytes=2-4"})
        assert (answer.status_code, answer.text, answer.headers["X-Own"]) == (206, "234", "kept")


async def test_starlettes_texts_about_ranges_are_known(file: Path) -> None:
    texts = set()
    for wanted, (status, _) in RANGES.items():
        response = FileResponse(file)
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "headers": [(b"range", wanted.encode())], "extensions": {}}
        await response(scope, None, send)  # type: ignore[arg-type]  # it reads nothing
        if status == 400:
            texts.add(sent[1]["body"])
    assert texts == _RANGE_TEXTS


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "static/nosuch", 404),
        ("POST", "static/ten.txt", 405),
        ("GET", "route/nosuch", 404),
        ("POST", "route/only", 405),
        ("GET", "page/nosuch", 404),
        ("DELETE", "page/ten.txt", 405),
    ],
)
async def test_what_is_not_in_a_mount_is_a_problem(file: Path, method: str, path: str, status: int) -> None:
    async with client_of(app_of(file)) as client:
        assert_is_problem(await client.request(method, f"http://test/{path}"), status)


class Refusing(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        raise AuthenticationError("No such key.")


MIDDLEWARE: dict[str, tuple[Any, dict[str, Any], dict[str, str], str]] = {
    "host": (TrustedHostMiddleware, {"allowed_hosts": ["good.example"]}, {}, "urn:problem-type:invalid-host"),
    "authentication": (AuthenticationMiddleware, {"backend": Refusing()}, {}, "about:blank"),
    "cors": (
        CORSMiddleware,
        {"allow_origins": ["https://good.example"]},
        {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"},
        "urn:problem-type:preflight-refused",
    ),
}


@pytest.mark.parametrize("name", MIDDLEWARE)
async def test_starlettes_middleware_refuses_with_a_problem(file: Path, name: str) -> None:
    middleware, options, headers, kind = MIDDLEWARE[name]
    app = app_of(file)
    app.add_middleware(middleware, **options)
    async with client_of(app) as client:
        method = "OPTIONS" if name == "cors" else "GET"
        answer = await client.request(method, "http://test/file", headers=headers)
    document = assert_is_problem(answer, 400)
    assert document["type"] == kind
    if name == "authentication":
        assert document["detail"] == "No such key."
    if name == "cors":
        assert "Origin" in answer.headers["Vary"]


async def test_a_form_that_cannot_be_read_is_a_problem(file: Path) -> None:
    app = app_of(file)

    async def read(request: Request) -> Response:
        return PlainTextResponse(str(await request.form()))

    app.add_route("/form", read, methods=["POST"])
    async with client_of(app) as client:
        headers = {"Content-Type": "multipart/form-data"}
        assert_is_problem(await client.post("http://test/form", content=b"x", headers=headers), 400)


OWN: list[Callable[[], Response]] = [
    lambda: PlainTextResponse("Not Found", 404),
    lambda: PlainTextResponse("No such thing.", 404),
    lambda: PlainTextResponse("Content Too Large", 413),
    lambda: PlainTextResponse("", 416),
    lambda: PlainTextResponse("Bad", 400),
    lambda: PlainTextResponse("Range header: range must be requested", 400),
    lambda: PlainTextResponse("Disallowed CORS origin", 400),
    lambda: Response("Invalid host header", 400, media_type="text/html"),
    lambda: StreamingResponse(iter(["Not ", "Found"]), 404, media_type="text/plain"),
]


@pytest.mark.parametrize("make", OWN)
async def test_an_applications_own_text_is_not_touched(make: Callable[[], Response]) -> None:
    router = APIRouter()

    @router.get("/own")
    async def own() -> Response:
        return make()

    async with client_of(create_application(router, SmallSettings())) as client:
        answer = await client.get("http://test/own")
    expected = make()
    assert answer.status_code == expected.status_code
    assert answer.headers["Content-Type"] == expected.headers["Content-Type"]
    assert answer.text == ("Not Found" if isinstance(expected, StreamingResponse) else bytes(expected.body).decode())


async def test_an_answer_that_fails_after_its_start_was_held_is_a_500() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        raise ZeroDivisionError

    app = create_application(APIRouter(), SmallSettings())
    app.mount("/broken", broken)
    async with client_of(app) as client:
        assert_is_problem(await client.get("http://test/broken/"), 500)


async def test_a_real_server_sends_them(file: Path) -> None:
    async with served(app_of(file)) as address, httpx2.AsyncClient(base_url=f"http://{address}") as client:
        for wanted, (status, _) in RANGES.items():
            for ask in client.get, client.head:
                answer = await ask("/file", headers={"Range": wanted})
                assert answer.status_code == status
                assert answer.headers["Content-Type"] == "application/problem+json"
        assert (await client.get("/file", headers={"Range": "bytes=0-0"})).text == "0"
