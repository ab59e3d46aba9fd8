"""The application."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module

import src  # noqa: F401  (makes `app` importable from the project's folder)
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.staticfiles import StaticFiles

from app.admin import add_console
from app.api import PREFIX, build_router
from app.api.dependencies import CurrentUser, SessionDep, get_current_superuser, limit_rate
from app.core.config import environment_of
from app.core.events import subscribe
from app.core.logger import configure_logging
from app.core.setup import create_application
from app.models.user_events import UserChanged
from app.subscriptions import SUBSCRIPTIONS
from tests.kitchen_sink.api import Quota
from tests.kitchen_sink.api import router as sink_router
from tests.kitchen_sink.models import Everything
from tests.kitchen_sink.settings import Settings, get_settings

settings = get_settings()
configure_logging(environment_of(settings))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Note that it ran, inside of the shipped one."""
    app.state.publishing = {"is_open": True}
    yield
    app.state.publishing["is_open"] = False


async def note_change(db: AsyncSession, event: UserChanged) -> None:
    """Write what has changed about a user, in the same transaction."""
    db.add(Everything(line=f"{event.username}: {', '.join(sorted(event.changed))}"))


def build_sink_router(settings: Settings) -> APIRouter:
    """The shipped routes and the application's own; those that a setting switches off are absent."""
    router = APIRouter()
    router.include_router(build_router(settings))
    if settings.PUBLISHING_ENABLED:
        router.include_router(sink_router, prefix=PREFIX, dependencies=[Depends(limit_rate)])
    return router


app = create_application(
    router=build_sink_router(settings),
    settings=settings,
    docs_guard=[Depends(get_current_superuser)],
    lifespan=lifespan,
    subscriptions=[*SUBSCRIPTIONS, subscribe(UserChanged, note_change)],
    workers=lambda: (import_module("tests.kitchen_sink.worker").WorkerSettings,),
)
add_console(app, settings)


@app.exception_handler(Quota)
async def on_quota(request: Request, error: Exception) -> Response:
    """Answer for the application's own error in its own form."""
    return JSONResponse({"quota": 0}, 402)


@app.exception_handler(Exception)
async def on_unexpected(request: Request, error: Exception) -> Response:
    """Answer for errors that nothing else handles."""
    return JSONResponse({"unexpected": type(error).__name__}, 500)


@app.middleware("http")
async def publish(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse some requests and mark all answers, as an application's own middleware does."""
    if "x-embargo" in request.headers:
        raise HTTPException(451, "Not before Monday.")
    response = await call_next(request)
    response.headers["X-Published-By"] = "kitchen sink"
    if "x-visit" in request.headers:
        response.set_cookie("visit", "1")
    return response


@app.get("/crash", include_in_schema=False)
async def crash() -> None:
    """Fail with an unexpected error."""
    raise ZeroDivisionError


sub_app = FastAPI(title="A mounted application", openapi_url=None)


@sub_app.get("/whoami", dependencies=[Depends(limit_rate)])
async def whoami(current: CurrentUser) -> dict[str, str]:
    """Return the caller's name."""
    return {"username": current.username}


@sub_app.post("/everything", status_code=201)
async def create_in_sub_app(current: CurrentUser, db: SessionDep) -> dict[str, int]:
    """Insert a row: committed before the answer."""
    row = Everything()
    db.add(row)
    await db.flush()
    return {"id": row.id}


app.mount("/sub", sub_app)
app.mount("/static", StaticFiles(directory="tests/kitchen_sink"))
