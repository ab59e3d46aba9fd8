"""What the blocks of docs/extend.md stand in: an application, called `app`, to which they add something."""

from typing import Any

import httpx2
from fastapi import APIRouter, FastAPI
from websockets.asyncio.client import connect

from app.core.db.database import transaction
from app.core.setup import create_application
from tests.docs.surroundings import Code
from tests.helper import create_user, signed_in
from tests.served import served


async def _extended(code: Code, router: APIRouter) -> tuple[FastAPI, dict[str, Any]]:
    app = create_application(router, code.settings)
    return app, await code.run(app=app)


async def own_error_handlers(code: Code) -> None:
    """A handler for an error of its own and one for all others."""
    router, names = APIRouter(), dict[str, Any]()

    @router.get("/stock")
    async def stock() -> None:
        raise names["OutOfStock"]

    @router.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError

    app, known = await _extended(code, router)
    names |= known
    async with code.started(app=app) as client:
        client.base_url = httpx2.URL("http://test/")
        assert (await client.get("stock")).json() == {"error": "out of stock"}
        assert (await client.get("bug")).json() == {"error": "internal"}


async def own_middleware(code: Code) -> None:
    """Middleware that refuses."""
    router = APIRouter()

    @router.get("/open")
    async def is_open() -> bool:
        return True

    app, _ = await _extended(code, router)
    async with code.started(app=app) as client:
        client.base_url = httpx2.URL("http://test/")
        assert (await client.get("open")).json() is True
        refused = await client.get("open", headers={"X-Hour": "3"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3600")
        assert refused.json()["detail"] == "Closed at night."


async def mounted_application(code: Code) -> None:
    """A mounted application, whose routes are limited and know who asks."""
    app, _ = await _extended(code, APIRouter())
    async with code.started(app=app) as client:
        client.base_url = httpx2.URL("http://test/")
        assert (await client.get("reports/daily")).status_code == 401
        async with transaction() as db:
            headers = signed_in(await create_user(db, username="ada"), code.settings)
        answer = await client.get("reports/daily", headers=headers)
        assert (answer.json(), "RateLimit" in answer.headers) == ("for ada", True)


async def web_socket(code: Code) -> None:
    """A WebSocket that stores each message in a transaction of its own."""
    router, stored = APIRouter(), list[tuple[Any, ...]]()

    async def store_message(db: Any, room: str, user: Any, message: str) -> None:
        stored.append((room, user.username, message))

    await code.run(router=router, store_message=store_message)
    async with served(create_application(router, code.settings)) as address:
        async with transaction() as db:
            headers = signed_in(await create_user(db, username="ada"), code.settings)
        protocols: Any = ["bearer", headers["Authorization"].removeprefix("Bearer ")]
        async with connect(f"ws://{address}/rooms/1", subprotocols=protocols) as socket:
            await socket.send("hello")
            assert await socket.recv() == "stored"
    assert stored == [("1", "ada", "hello")]
