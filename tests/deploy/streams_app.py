"""An application with what proxies cut or hold back: WebSockets, streams, long polls, uploads of any size."""

import asyncio
from collections.abc import AsyncIterator

import src  # noqa: F401  (makes `app` importable from the project's folder)
from fastapi import APIRouter, Request, WebSocket
from fastapi.sse import EventSourceResponse
from starlette.responses import FileResponse, StreamingResponse

from app.core.config import AppSettings
from app.core.setup import create_application

router = APIRouter()


@router.get("/api/v1/health")
async def health() -> str:
    """For who waits until it answers."""
    return "ok"


@router.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    """Tells which headers it got, then returns what it is sent."""
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    await websocket.send_json(dict(websocket.headers))
    async for message in websocket.iter_text():
        await websocket.send_text(message)


@router.get("/lines")
async def lines() -> StreamingResponse:
    """One line; the second comes after a second."""
    return StreamingResponse(_two_lines(), media_type="application/x-ndjson")


@router.get("/events", response_class=EventSourceResponse)
async def events() -> AsyncIterator[str]:
    """The same as events."""
    async for line in _two_lines():
        yield line


@router.get("/rows")
async def rows() -> AsyncIterator[str]:
    """The same as JSON lines, which FastAPI makes of a generator."""
    async for line in _two_lines():
        yield line


async def _two_lines() -> AsyncIterator[str]:
    yield '"first"\n'
    await asyncio.sleep(1)
    yield '"second"\n'


@router.get("/poll")
async def poll(seconds: float) -> str:
    """Answers after a while."""
    await asyncio.sleep(seconds)
    return "there"


@router.post("/upload", max_body_size=200_000_000)
async def upload(request: Request) -> int:
    """The size of what was sent, in bytes."""
    return sum([len(part) async for part in request.stream()])


@router.post("/small")
async def small(request: Request) -> int:
    """The same, within the limit of the application."""
    return len(await request.body())


@router.api_route("/method", methods=["QUERY", "PROPFIND", "PUT"])
async def method(request: Request) -> str:
    """Which method arrived, and with which body."""
    return f"{request.method} {(await request.body()).decode()}"


@router.get("/file")
async def file() -> FileResponse:
    """This file."""
    return FileResponse(__file__)


app = create_application(router, AppSettings())
