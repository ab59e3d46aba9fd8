"""WebSockets have sign-in, limits, transactions and problems, behind a real server."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
import structlog
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, WebSocket, WebSocketException
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.api.dependencies import (
    ClientDep,
    CurrentSuperuser,
    CurrentUser,
    OptionalUser,
    ReadingSessionDep,
    SessionDep,
    TierDep,
    get_current_user,
    is_still_signed_in,
    limit_rate,
)
from app.core import logger
from app.core.config import EnvironmentOption, Settings, get_settings
from app.core.db.database import async_get_db, transaction
from app.core.exceptions.http_exceptions import Conflict, ServiceUnavailable, Unauthorized
from app.core.logger import configure_logging
from app.core.setup import create_application
from app.crud.crud_login_session import crud_login_sessions
from tests.conftest import second_session
from tests.helper import create_superuser, create_tier, create_user, signed_in
from tests.served import served

pytestmark = pytest.mark.anyio


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), structlog.get_config()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    structlog.configure(**ours)
    logger._direct_lines = None
    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and "log" in vars(module):
            vars(module.log).pop("bind", None)  # Loggers keep how they were configured when they were first used.


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)


@asynccontextmanager
async def sockets(router: APIRouter, *, prefix: str = "", app: FastAPI | None = None) -> AsyncIterator[str]:
    """The address of an app with these routes."""
    app = app or create_application(router, get_settings())
    async with served(app) as address:
        yield f"ws://{address}{prefix}"


async def refusal_of(url: str, **kwargs: Any) -> tuple[int, dict[str, Any], Any]:
    """What a handshake is refused with: status, problem document and headers."""
    with pytest.raises(InvalidStatus) as raised:
        async with connect(url, **kwargs):
            pass
    response = raised.value.response
    assert response.headers["Content-Type"] == "application/problem+json"
    document = json.loads(response.body or b"")
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["X-Request-ID"]
    return response.status_code, document, response.headers


async def close_of(socket: ClientConnection) -> tuple[int, str]:
    async def read_to_the_end() -> None:
        while True:
            await socket.recv()

    with pytest.raises(ConnectionClosed) as raised:
        await asyncio.wait_for(read_to_the_end(), 5)
    assert raised.value.rcvd is not None
    return raised.value.rcvd.code, raised.value.rcvd.reason


async def created_user(**values: Any) -> Any:
    async with second_session() as db:
        return await create_user(db, **values)


# ---- Limits ----


async def test_a_handshake_in_a_limited_router_is_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "2")
    get_settings.cache_clear()
    router = APIRouter(dependencies=[Depends(limit_rate)])
    router.websocket("/echo/{room}")(echo)
    async with sockets(router) as url:
        for _ in range(2):
            async with connect(f"{url}/echo/1") as socket:
                for _ in range(5):  # Its messages are not counted.
                    await socket.send("hello")
                    assert await socket.recv() == "hello"
                assert socket.response is not None
                assert "r=" in socket.response.headers["RateLimit"]
                assert socket.response.headers["X-Request-ID"]
        status, document, headers = await refusal_of(f"{url}/echo/2")
    assert (status, document["type"]) == (429, "urn:problem-type:rate-limited")
    assert int(headers["Retry-After"]) > 0
    assert "r=0" in headers["RateLimit"]


async def test_a_rule_names_the_template_of_a_socket(settings: Settings) -> None:
    from app.core.utils.rate_limit import limited_paths

    router = APIRouter(dependencies=[Depends(limit_rate)], prefix="/rooms")
    router.websocket("/{room}")(echo)
    outer = APIRouter(prefix="/api")
    outer.include_router(router)
    paths = limited_paths(create_application(outer, settings))
    assert {"/api/rooms/{room}", "GET /api/rooms/{room}"} <= set(paths)


# ---- Sign-in ----


def router_with_sign_in() -> APIRouter:
    router = APIRouter(dependencies=[Depends(limit_rate)])

    @router.websocket("/mine")
    async def mine(websocket: WebSocket, user: CurrentUser, client: ClientDep) -> None:
        await websocket.accept()
        await websocket.send_text(user.username)
        await websocket.send_text(str(client.address))
        await websocket.send_text(json.dumps(websocket.scope["subprotocols"]))

    @router.websocket("/optional")
    async def optional(websocket: WebSocket, user: OptionalUser) -> None:
        await websocket.accept(subprotocol="chat.v1" if "chat.v1" in websocket.scope["subprotocols"] else None)
        await websocket.send_text(user.username if user else "nobody")

    @router.websocket("/superuser")
    async def superuser(websocket: WebSocket, user: CurrentSuperuser) -> None:
        await websocket.accept()

    return router


def token_of(user: Any, settings: Settings) -> str:
    return signed_in(user, settings)["Authorization"].removeprefix("Bearer ")


async def test_a_header_or_a_subprotocol_signs_in(settings: Settings) -> None:
    async with sockets(router_with_sign_in()) as url:
        user = await created_user()
        token = token_of(user, settings)
        async with connect(f"{url}/mine", additional_headers={"Authorization": f"Bearer {token}"}) as socket:
            assert [await socket.recv() for _ in range(3)] == [user.username, "127.0.0.1", "[]"]
            assert socket.subprotocol is None
        async with connect(f"{url}/mine", subprotocols=["bearer", token]) as socket:  # type: ignore[list-item]
            assert [await socket.recv() for _ in range(3)] == [user.username, "127.0.0.1", '["bearer"]']
            assert socket.subprotocol == "bearer"
        protocols: Any = ["chat.v1", "bearer", token]
        async with connect(f"{url}/optional", subprotocols=protocols) as socket:
            assert (await socket.recv(), socket.subprotocol) == (user.username, "chat.v1")
        async with connect(f"{url}/optional") as socket:
            assert await socket.recv() == "nobody"


async def test_whoever_may_not_is_refused_before_the_socket_is_accepted(settings: Settings) -> None:
    async with sockets(router_with_sign_in()) as url:
        user = await created_user()
        token = token_of(user, settings)
        status, _, headers = await refusal_of(f"{url}/mine")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        broken: list[Any] = [["bearer", "broken"], ["bearer", f"{token}x"], ["bearer"]]
        for protocols in broken:
            assert (await refusal_of(f"{url}/mine", subprotocols=protocols))[0] == 401
        for protocols in broken:
            assert (await refusal_of(f"{url}/optional", subprotocols=protocols))[0] == 401
        both: dict[str, Any] = {"additional_headers": {"Authorization": f"Bearer {token}"}}
        assert (await refusal_of(f"{url}/mine", subprotocols=["bearer", token], **both))[0] == 401
        assert (await refusal_of(f"{url}/superuser", subprotocols=["bearer", token]))[0] == 403
        assert (await refusal_of(f"{url}/mine?token={token}"))[0] == 401  # Never in the query: proxies log that.
        async with second_session() as db:
            admin = await create_superuser(db)
        async with connect(f"{url}/superuser", subprotocols=["bearer", token_of(admin, settings)]):  # type: ignore[list-item]
            pass


async def test_no_token_is_in_the_log(settings: Settings) -> None:
    with capture_logs() as lines:
        async with sockets(router_with_sign_in()) as url:
            token = token_of(await created_user(), settings)
            async with connect(f"{url}/mine", subprotocols=["bearer", token]) as socket:  # type: ignore[list-item]
                assert await close_of(socket) == (1000, "")
            await refusal_of(f"{url}/mine", subprotocols=["bearer", f"{token}x"])
    assert token not in str(lines)
    logged = [line for line in lines if line["event"] == "request"]
    assert [(line["method"], line["route"], line["status"]) for line in logged] == [
        ("WEBSOCKET", "/mine", 101),
        ("WEBSOCKET", "/mine", 401),
    ]
    assert "user_id" in logged[0]


async def test_the_servers_lines_have_no_query(
    settings: Settings, capsys: pytest.CaptureFixture[str], logging_as_before: None
) -> None:
    """uvicorn writes the whole address of each handshake, and an error for each that is refused."""
    router = router_with_sign_in()

    @router.websocket("/silent")
    async def silent(websocket: WebSocket) -> None: ...

    configure_logging(EnvironmentOption.PRODUCTION)
    async with sockets(router) as url:
        token = token_of(await created_user(), settings)
        async with connect(f"{url}/mine?key=hunter2", subprotocols=["bearer", token]) as socket:  # type: ignore[list-item]
            await close_of(socket)
        assert (await refusal_of(f"{url}/mine?key=hunter2"))[0] == 401
        assert (await refusal_of(f"{url}/nosuch?key=hunter2"))[0] == 404
        status, document, headers = await refusal_of(f"{url}/silent?key=hunter2")
        assert (status, document["detail"]) == (500, "Something went wrong here.")
        assert headers["X-Request-ID"] == document["request_id"]
    written = capsys.readouterr().out
    assert "hunter2" not in written
    levels = {line["event"]: line["level"] for line in map(json.loads, written.splitlines())}
    assert levels["request"] == "info"
    assert [event for event, level in levels.items() if level not in {"info", "warning"}] == ["handshake not answered"]


async def test_a_login_that_ended_is_noticed_by_whoever_asks_again(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/mine")
    async def mine(websocket: WebSocket, user: CurrentUser) -> None:
        await websocket.accept()
        async for _ in websocket.iter_text():
            if not await is_still_signed_in(websocket):
                raise Unauthorized
            await websocket.send_text("still")

    async with sockets(router) as url:
        user = await created_user()
        protocols: Any = ["bearer", token_of(user, settings)]
        async with connect(f"{url}/mine", subprotocols=protocols) as socket:
            await socket.send("?")
            assert await socket.recv() == "still"
            async with second_session() as db:
                await crud_login_sessions.end_all_of_user(db, user.id)
            await socket.send("?")
            assert await close_of(socket) == (4401, "Sign in to do this.")


# ---- Errors ----


ERRORS: dict[str, tuple[Exception, int, int, str]] = {
    # What is raised, the status before the socket is accepted, the code after it, and the reason.
    "http": (HTTPException(403, "Not here."), 403, 4403, "Not here."),
    "structured": (HTTPException(409, {"code": "QUOTA"}), 409, 4409, "Conflict"),
    "problem": (Conflict("Taken."), 409, 4409, "Taken."),
    "long": (HTTPException(400, "ü" * 100), 400, 4400, "ü" * 61),
    "outage": (ServiceUnavailable(), 503, 1013, ServiceUnavailable.text),
    "gateway": (HTTPException(502), 502, 1011, "Bad Gateway"),
    "bug": (ZeroDivisionError("hunter2"), 500, 1011, "Something went wrong here."),
    "redirect": (HTTPException(302), 302, 1008, "Found"),
    "unregistered": (HTTPException(499, "Not here."), 499, 4499, "Not here."),
    "closing": (WebSocketException(4000, "Go away."), 403, 4000, "Go away."),
    "closing at length": (WebSocketException(4000, "ü" * 100), 403, 4000, "ü" * 61),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_is_a_refusal_before_and_a_close_after(settings: Settings, name: str) -> None:
    error, status, code, reason = ERRORS[name]
    router = APIRouter()

    async def refuse() -> None:
        raise error

    @router.websocket("/before", dependencies=[Depends(refuse)])
    async def before(websocket: WebSocket) -> None: ...

    @router.websocket("/in-handler")
    async def in_handler(websocket: WebSocket) -> None:
        raise error

    @router.websocket("/after")
    async def after(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    async with sockets(router) as url:
        for path in "before", "in-handler":
            answered, document, _ = await refusal_of(f"{url}/{path}")
            assert answered == status
            assert document["detail"] == ("ü" * 100 if reason == "ü" * 61 else reason)
            assert "hunter2" not in str(document)
            if name.startswith("closing"):
                assert document["close_code"] == 4000
            if name == "structured":
                assert document["code"] == "QUOTA"
        async with connect(f"{url}/after") as socket:
            assert await close_of(socket) == (code, reason)


async def test_what_is_not_valid_is_refused_with_422(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/room/{number}")
    async def room(websocket: WebSocket, number: int, name: Annotated[str, Query(max_length=3)]) -> None: ...

    async with sockets(router) as url:
        status, document, _ = await refusal_of(f"{url}/room/x?name=long")
    assert status == 422
    assert [fault["loc"] for fault in document["errors"]] == [["path", "number"], ["query", "name"]]
    assert "input" not in document["errors"][0]


async def test_an_unknown_path_is_404_and_a_close_before_the_accept_403(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/closing")
    async def closing(websocket: WebSocket) -> None:
        await websocket.close(4001, "Later.")

    async def plainly(websocket: WebSocket) -> None:
        await websocket.close()

    app = create_application(router, get_settings())
    app.router.routes.append(WebSocketRoute("/plain", plainly))
    async with sockets(router, app=app) as url:
        assert (await refusal_of(f"{url}/nosuch"))[0] == 404
        assert (await refusal_of(f"{url}/plain"))[0] == 403
        status, document, _ = await refusal_of(f"{url}/closing")
        assert (status, document["detail"], document["close_code"]) == (403, "Later.", 4001)


async def test_an_own_handlers_answer_refuses_or_closes(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/{when}")
    async def raising(websocket: WebSocket, when: str) -> None:
        if when == "after":
            await websocket.accept()
        raise LookupError

    async def answer(connection: HTTPConnection, error: Exception) -> Any:
        return JSONResponse({"own": True}, 418)

    app = create_application(router, get_settings(), exception_handlers={LookupError: answer})
    async with sockets(router, app=app) as url:
        with pytest.raises(InvalidStatus) as raised:
            await connect(f"{url}/before")
        assert raised.value.response.status_code == 418
        assert json.loads(raised.value.response.body or b"") == {"own": True}
        async with connect(f"{url}/after") as socket:
            assert await close_of(socket) == (4418, "I'm a Teapot")


async def test_an_own_refusal_is_sent_as_it_is(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/it")
    async def it(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("mine", 409))

    async with sockets(router) as url:
        with pytest.raises(InvalidStatus) as raised:
            await connect(f"{url}/it")
        assert (raised.value.response.status_code, raised.value.response.body) == (409, b"mine")


async def test_an_error_of_own_middleware_is_a_refusal(settings: Settings) -> None:
    class Refusing:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                raise HTTPException(403, "Closed.")
            await self.app(scope, receive, send)

    router = APIRouter()
    router.websocket("/echo")(echo)
    app = create_application(router, get_settings())
    app.add_middleware(Refusing)
    async with sockets(router, app=app) as url:
        status, document, _ = await refusal_of(f"{url}/echo")
    assert (status, document["detail"]) == (403, "Closed.")


async def test_without_answers_to_handshakes_a_refusal_is_a_close(settings: Settings) -> None:
    """As of a server without `websocket.http.response`."""
    router = APIRouter()

    @router.websocket("/mine")
    async def mine(websocket: WebSocket, user: CurrentUser) -> None: ...

    app = create_application(router, get_settings())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/mine", "headers": [], "query_string": b"", "client": ("127.0.0.1", 1)}
    await app(scope | {"root_path": "", "scheme": "ws", "subprotocols": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 4401, "reason": "Sign in to do this."}]


async def test_a_client_that_leaves_is_no_error(settings: Settings) -> None:
    router, done = APIRouter(), asyncio.Event()

    @router.websocket("/waiting")
    async def waiting(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        finally:
            done.set()

    with capture_logs() as lines:
        async with sockets(router) as url:
            async with connect(f"{url}/waiting"):
                pass
            async with asyncio.timeout(5):
                await done.wait()
    assert "unhandled error" not in [line["event"] for line in lines]


# ---- Transactions ----


async def make_table() -> None:
    async with second_session() as db:
        await db.exec(text("CREATE TABLE note (words text)"))  # type: ignore[call-overload]


async def count_notes() -> int:
    async with second_session() as db:
        return int((await db.exec(text("SELECT count(*) FROM note"))).one()[0])  # type: ignore[call-overload]


async def insert(db: AsyncSession) -> None:
    await db.exec(text("INSERT INTO note VALUES ('x')"))  # type: ignore[call-overload]


async def idle_transactions() -> int:
    """How many connections are in a transaction that does nothing: each is one that a socket holds."""
    async with second_session() as db:
        found = await db.exec(  # type: ignore[call-overload]
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'idle in transaction'"
            )
        )
        return int(found.one()[0])


@pytest.mark.parametrize("way", ["named", "bare"])
async def test_a_session_of_the_handshake_is_committed_before_the_socket_is_accepted(
    settings: Settings, way: str
) -> None:
    router = APIRouter()
    dependency: Any = SessionDep if way == "named" else Annotated[AsyncSession, Depends(async_get_db)]

    @router.websocket("/it")
    async def it(websocket: WebSocket, db: dependency) -> None:
        await insert(db)
        await websocket.accept()
        await echo_on(websocket)

    @router.websocket("/failing")
    async def failing(websocket: WebSocket, db: dependency) -> None:
        await insert(db)
        raise HTTPException(409)

    async with sockets(router) as url:
        await make_table()
        async with connect(f"{url}/it") as one, connect(f"{url}/it") as two:
            assert await count_notes() == 2
            assert await idle_transactions() == 0
            await one.send("still here")
            assert await one.recv() == "still here"
            await two.send("here too")
            assert await two.recv() == "here too"
        assert (await refusal_of(f"{url}/failing"))[0] == 409
        assert await count_notes() == 2


async def echo_on(websocket: WebSocket) -> None:
    async for message in websocket.iter_text():
        await websocket.send_text(message)


async def test_a_commit_that_fails_refuses_the_socket(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/it")
    async def it(websocket: WebSocket, db: SessionDep) -> None:
        await insert(db)
        await websocket.accept()

    async with sockets(router) as url:
        await make_table()
        async with second_session() as db:
            await db.exec(text("ALTER TABLE note ADD UNIQUE (words) DEFERRABLE INITIALLY DEFERRED"))  # type: ignore[call-overload]
        async with connect(f"{url}/it"):
            pass
        assert (await refusal_of(f"{url}/it"))[0] == 409
        assert await count_notes() == 1


async def test_a_session_per_message_is_a_transaction_of_its_own(settings: Settings) -> None:
    router = APIRouter()

    @router.websocket("/notes")
    async def notes(websocket: WebSocket, user: CurrentUser) -> None:
        await websocket.accept()
        async for message in websocket.iter_text():
            try:
                async with transaction() as db:
                    await insert(db)
                    if message == "fail":
                        raise Conflict
            except Conflict:
                await websocket.send_text("refused")
            else:
                await websocket.send_text("noted")

    async with sockets(router) as url:
        await make_table()
        token = token_of(await created_user(), settings)
        async with connect(f"{url}/notes", subprotocols=["bearer", token]) as socket:  # type: ignore[list-item]
            for message, answer, count in [("a", "noted", 1), ("fail", "refused", 1), ("b", "noted", 2)]:
                await socket.send(message)
                assert await socket.recv() == answer
                assert await count_notes() == count
                assert await idle_transactions() == 0


async def test_more_sockets_than_connections_can_be_open(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_POOL_SIZE", "2")
    get_settings.cache_clear()
    router = APIRouter(dependencies=[Depends(limit_rate)])

    @router.websocket("/tier/{name}")
    async def tier(websocket: WebSocket, tier: TierDep, db: ReadingSessionDep, user: CurrentUser) -> None:
        await db.exec(text("SELECT 1"))  # type: ignore[call-overload]
        await websocket.accept()
        await websocket.send_text(tier.name)
        await echo_on(websocket)

    async with sockets(router) as url:
        async with second_session() as db:
            await create_tier(db, "pro")
        token = token_of(await created_user(), settings)
        opened = []
        for _ in range(8):
            protocols: Any = ["bearer", token]
            opened.append(await connect(f"{url}/tier/pro", subprotocols=protocols))
            assert await opened[-1].recv() == "pro"
        assert (await refusal_of(f"{url}/tier/none", subprotocols=protocols))[0] == 404
        for socket in opened:
            await socket.close()


# ---- Mounted ----


async def test_sockets_of_mounted_applications_have_all_of_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", "3")
    get_settings.cache_clear()
    sub = FastAPI(dependencies=[Depends(limit_rate)])

    @sub.websocket("/mine")
    async def mine(websocket: WebSocket, user: Annotated[Any, Depends(get_current_user)], db: SessionDep) -> None:
        await insert(db)
        await websocket.accept()
        await websocket.send_text(user.username)
        raise HTTPException(410, "Over.")

    app = create_application(APIRouter(), get_settings())
    app.mount("/sub", sub)
    app.mount("/starlette", Starlette(routes=[WebSocketRoute("/echo", echo)]))
    async with sockets(APIRouter(), app=app) as url:
        await make_table()
        user = await created_user()
        protocols: Any = ["bearer", token_of(user, settings)]
        for _ in range(3):
            async with connect(f"{url}/sub/mine", subprotocols=protocols) as socket:
                assert await count_notes() > 0
                assert await socket.recv() == user.username
                assert await close_of(socket) == (4410, "Over.")
        assert (await refusal_of(f"{url}/sub/mine", subprotocols=protocols))[0] == 429
        assert (await refusal_of(f"{url}/sub/mine"))[0] == 401
        assert (await refusal_of(f"{url}/sub/nosuch"))[0] == 404
        async with connect(f"{url}/starlette/echo") as socket:
            await socket.send("plain")
            assert await socket.recv() == "plain"
