"""Every status and every detail that FastAPI allows gives a well-formed problem document."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, SecretStr
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.core.config import AppSettings
from app.core.exceptions.http_exceptions import Problem
from app.core.setup import create_application
from tests.conftest import client_of
from tests.served import served

pytestmark = pytest.mark.anyio

URL = "http://test/raises"


class SmallSettings(AppSettings):
    """An app of middleware alone."""


class Quota(BaseModel):
    code: str
    left: Decimal


@dataclass
class Place:
    row: int


class TeapotError(HTTPException):
    def __init__(self) -> None:
        super().__init__(418, {"code": "TEAPOT"})


class BusinessRule(Problem):
    status = 299
    text = "Kept for later."


async def answer_to(error: Exception, method: str = "GET") -> httpx2.Response:
    """What a route answers that raises this."""
    router = APIRouter()

    @router.get("/raises")
    async def raises() -> None:
        raise error

    async with client_of(create_application(router, SmallSettings())) as client:
        return await client.request(method, URL)


def assert_is_problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert document["title"]
    assert isinstance(document["detail"], str)
    assert document["detail"]
    return document


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_status_without_a_body_has_none(status: int) -> None:
    answer = await answer_to(HTTPException(status, "no one sees this", {"X-Own": "yes", "Content-Length": "5"}))
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["X-Own"] == "yes"
    assert answer.headers["X-Request-ID"]
    assert "Content-Type" not in answer.headers
    assert answer.headers.get("Content-Length", "0") == "0"


@pytest.mark.parametrize("status", [200, 207, 299, 302, 400, 418, 422, 499, 500, 503, 599, 600, 799, 999])
async def test_every_other_status_is_kept(status: int) -> None:
    assert_is_problem(await answer_to(HTTPException(status)), status)


@pytest.mark.parametrize("status", [0, 99, 100, 101, 102, 199, 1000, -1, "404", None])
async def test_a_status_that_ends_no_request_is_a_logged_500(status: Any) -> None:
    with capture_logs() as lines:
        assert_is_problem(await answer_to(HTTPException(status)), 500)
    assert ("no answer can have this status", status) in [(line["event"], line.get("status")) for line in lines]


async def test_a_problem_can_have_an_unregistered_status() -> None:
    document = assert_is_problem(await answer_to(BusinessRule()), 299)
    assert document["detail"] == "Kept for later."
    assert document["title"] == "Status 299"

    class Silent(Problem):
        status = 799

    assert assert_is_problem(await answer_to(Silent()), 799)["detail"] == "Status 799"


@pytest.mark.parametrize(
    ("detail", "text", "members"),
    [
        ("words", "words", {}),
        ({"code": "QUOTA"}, "Conflict", {"code": "QUOTA"}),
        ({"code": "QUOTA", "detail": "No more."}, "No more.", {"code": "QUOTA"}),
        ({"detail": {"of": [1, None]}}, "Conflict", {"detail_detail": {"of": [1, None]}}),
        (
            {"nested": {"at": datetime(2026, 1, 2, tzinfo=UTC)}},
            "Conflict",
            {"nested": {"at": "2026-01-02T00:00:00+00:00"}},
        ),
        ({"price": Decimal("1.50"), 7: "seven"}, "Conflict", {"price": 1.5, "7": "seven"}),
        ({"id": UUID(int=1)}, "Conflict", {"id": "00000000-0000-0000-0000-000000000001"}),
        ({"nan": float("nan"), "in": [float("inf")]}, "Conflict", {"nan": None, "in": [None]}),
        ({"secret": SecretStr("hunter2")}, "Conflict", {"secret": "**********"}),
        (Quota(code="QUOTA", left=Decimal(3)), "Conflict", {"code": "QUOTA", "left": "3"}),
        (Place(3), "Conflict", {"row": 3}),
        (["a", {"b": (1, 2)}], "Conflict", {"errors": ["a", {"b": [1, 2]}]}),
        ({"lone": "\ud800"}, "Conflict", {"lone": "\ud800"}),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001", {}),
        (5, "5", {}),
        (0, "0", {}),
        (True, "true", {}),
        (float("nan"), "Conflict", {}),
        (None, "Conflict", {}),
        ("", "Conflict", {}),
        ({}, "Conflict", {}),
        ([], "Conflict", {"errors": []}),
    ],
    ids=repr,
)
async def test_every_detail_is_told(detail: Any, text: str, members: dict[str, Any]) -> None:
    document = assert_is_problem(await answer_to(HTTPException(409, detail)), 409)
    assert document.pop("detail") == text
    assert {
        name: value for name, value in document.items() if name not in {"type", "title", "status", "request_id"}
    } == (members)
    assert (document["type"], document["title"]) == ("about:blank", "Conflict")


async def test_a_detail_replaces_no_standard_member() -> None:
    taken = {"type": "mine", "title": "mine", "status": "failed", "request_id": "mine"}
    document = assert_is_problem(await answer_to(HTTPException(409, taken)), 409)
    assert (document["type"], document["title"]) == ("about:blank", "Conflict")
    assert {name: document[f"detail_{name}"] for name in taken} == taken


async def test_a_problems_members_are_encoded_and_cannot_replace_status_and_request_id() -> None:
    class OutOfStock(Problem):
        status = 409

    error = OutOfStock("Gone.", at=datetime(2026, 1, 2, tzinfo=UTC), status="failed", request_id="mine", title="Sold")
    document = assert_is_problem(await answer_to(error), 409)
    assert (document["title"], document["at"]) == ("Sold", "2026-01-02T00:00:00+00:00")
    assert document["type"] == "urn:problem-type:out-of-stock"


class Unspeakable:
    __slots__ = ()


def circular() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["itself"] = found
    return found


@pytest.mark.parametrize("detail", [Unspeakable(), b"\xff", circular(), {"a": Unspeakable()}, 10**5000], ids=type)
async def test_a_detail_without_a_json_form_keeps_the_status(detail: Any) -> None:
    with capture_logs() as lines:
        document = assert_is_problem(await answer_to(HTTPException(409, detail)), 409)
    assert document["detail"] == "Conflict"
    assert "detail of an error is not JSON" in [line["event"] for line in lines]


async def test_headers_of_an_error_are_sent() -> None:
    headers: Any = {
        "Retry-After": 30,
        "Link": ["</a>", "</b>"],
        "X-None": None,
        "Content-Type": "text/html",
        "Content-Length": "3",
        "X-Split": "a\r\nX-Injected: b",
        "X-Wide": "\u20ac",
        "X Space": "a",
        "X-Empty": "",
    }
    answer = await answer_to(HTTPException(401, headers=headers))
    assert_is_problem(answer, 401)
    assert answer.headers["Retry-After"] == "30"
    assert answer.headers.get_list("Link") == ["</a>", "</b>"]
    assert answer.headers["X-Empty"] == ""
    assert not {"x-none", "x-split", "x-injected", "x-wide", "x space"} & answer.headers.keys()
    assert int(answer.headers["Content-Length"]) == len(answer.content)


async def test_a_header_can_come_twice() -> None:
    headers = MutableHeaders()
    headers.append("WWW-Authenticate", "Bearer")
    headers.append("WWW-Authenticate", "Basic")
    answer = await answer_to(HTTPException(401, headers=headers))
    assert answer.headers.get_list("WWW-Authenticate") == ["Bearer", "Basic"]
    pairs: Any = [("Link", "</a>"), ("Link", "</b>")]
    assert (await answer_to(HTTPException(409, headers=pairs))).headers.get_list("Link") == ["</a>", "</b>"]


async def test_a_subclass_is_an_error_like_any_other() -> None:
    assert assert_is_problem(await answer_to(TeapotError()), 418)["code"] == "TEAPOT"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([{"msg": "No."}], [{"loc": [], "msg": "No.", "type": "value_error"}]),
        ([{"loc": "body", "msg": 5, "type": None}], [{"loc": ["body"], "msg": "5", "type": "None"}]),
        ([{"loc": (1, UUID(int=1))}], [{"loc": [1, str(UUID(int=1))], "msg": "Invalid value.", "type": "value_error"}]),
        (["words"], [{"loc": [], "msg": "words", "type": "value_error"}]),
        ("words", [{"loc": [], "msg": "words", "type": "value_error"}]),
        ({"msg": "No."}, [{"loc": [], "msg": "No.", "type": "value_error"}]),
        ([ValueError("hunter2")], [{"loc": [], "msg": "Invalid value.", "type": "value_error"}]),
        (({"msg": word} for word in "ab"), [{"loc": [], "msg": word, "type": "value_error"} for word in "ab"]),
        (None, [{"loc": [], "msg": "Invalid value.", "type": "value_error"}]),
        ([], []),
    ],
    ids=["fault", "odd types", "UUID", "words", "text", "one fault", "exception", "generator", "none", "empty"],
)  # fmt: skip
async def test_a_validation_error_raised_by_hand_is_told(errors: Any, expected: list[Any]) -> None:
    document = assert_is_problem(await answer_to(RequestValidationError(errors)), 422)
    assert document["errors"] == expected


async def test_head_has_the_headers_and_no_body() -> None:
    for error in HTTPException(409, {"code": "QUOTA"}), HTTPException(204), HTTPException(799):
        get, head = await answer_to(error), await answer_to(error, "HEAD")
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers.keys() == get.headers.keys()
        assert head.headers.get("Content-Length") == get.headers.get("Content-Length")


async def outer() -> AsyncIterator[None]:
    try:
        yield
    except HTTPException as error:
        raise HTTPException(409, {"from": error.detail}) from error


async def inner(_: Annotated[None, Depends(outer)]) -> AsyncIterator[None]:
    yield
    raise HTTPException(410, {"code": "AT_EXIT"})


async def refuses() -> None:
    raise HTTPException(402, {"code": "PAY"})


async def test_an_error_of_a_dependency_or_of_its_exit_is_told() -> None:
    router = APIRouter()

    @router.get("/refused", dependencies=[Depends(refuses)])
    async def refused() -> None: ...

    @router.get("/exit", dependencies=[Depends(inner, scope="function")])
    async def at_exit() -> None: ...

    @router.get("/translated", dependencies=[Depends(outer)])
    async def translated() -> None:
        raise HTTPException(404, ["gone"])

    async with client_of(create_application(router, SmallSettings())) as client:
        assert assert_is_problem(await client.get("http://test/refused"), 402)["code"] == "PAY"
        assert assert_is_problem(await client.get("http://test/translated"), 409)["from"] == ["gone"]
        assert_is_problem(await client.get("http://test/exit"), 409)


async def test_an_error_after_the_answer_is_logged() -> None:
    router = APIRouter()

    async def late() -> None:
        raise HTTPException(204)

    @router.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(late)
        return "answered"

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield b"half"
            raise HTTPException(409, {"code": "LATE"})

        return StreamingResponse(half())

    app = create_application(router, SmallSettings())
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in "/background", "/stream":
            with capture_logs() as lines:
                answer = await client.get(path)
            assert answer.status_code == 200
            assert "unhandled error" in [line["event"] for line in lines]


async def test_a_real_server_sends_every_status() -> None:
    router = APIRouter()

    @router.get("/raises/{status}")
    async def raises(status: int) -> None:
        raise HTTPException(status, {"code": "QUOTA"}, {"Retry-After": 30, "X-Split": "a\r\nb"})  # type: ignore[dict-item]

    async with (
        served(create_application(router, SmallSettings())) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=5) as client,
    ):
        for status in 204, 205, 304, 299, 499, 599, 799, 999, 204, 200:
            answer = await client.get(f"/raises/{status}")
            assert answer.status_code == status
            assert bool(answer.content) is (status not in {204, 205, 304})
        assert (await client.get("/raises/101")).status_code == 500
        assert (await client.head("/raises/409")).status_code == 409


# ---- A client that leaves ----


outcomes: list[str] = []


async def noted_outcome() -> AsyncIterator[None]:
    """A dependency with something to roll back."""
    try:
        yield
    except Exception as error:
        outcomes.append(type(error).__name__)
        raise


async def reads(request: Request) -> int:
    return len(await request.body())


async def streams(request: Request) -> int:
    return sum([len(part) async for part in request.stream()])


async def reads_first(_: Annotated[int, Depends(reads)], outcome: Annotated[None, Depends(noted_outcome)]) -> int:
    return 0


class ReadingMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Request(scope, receive).body()
        await self.app(scope, receive, send)


@pytest.mark.parametrize("path", ["/reads", "/streams", "/reads-first", "/mounted/reads", "/middleware"])
async def test_a_client_that_leaves_while_it_sends_is_no_error_of_ours(path: str) -> None:
    router, mounted = APIRouter(), Starlette(routes=[Route("/reads", reads, methods=["POST"])])
    router.add_api_route("/reads", reads, methods=["POST"], dependencies=[Depends(noted_outcome)])
    router.add_api_route("/streams", streams, methods=["POST"], dependencies=[Depends(noted_outcome)])
    router.add_api_route("/reads-first", reads_first, methods=["POST"])
    middleware = [Middleware(ReadingMiddleware)] if path == "/middleware" else []
    app = create_application(router, AppSettings(), middleware=middleware)
    app.mount("/mounted", mounted)
    arriving: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]
    headers = [(b"content-length", b"8")]

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None: ...

    outcomes.clear()
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    with capture_logs() as lines:
        await app({**scope, "http_version": "1.1"}, receive, send)
    assert [line["event"] for line in lines if line["log_level"] in {"warning", "error"}] == []
    [line] = [line for line in lines if line["event"] == "request"]
    assert line["status"] == 400
    assert outcomes == (["ClientDisconnect"] if path in {"/reads", "/streams"} else [])
