"""The application: the one place where all parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from app.admin import add_console
from app.api import build_router
from app.api.dependencies import get_current_superuser
from app.core.config import environment_of, get_settings
from app.core.logger import configure_logging
from app.core.memory import settle, share_one_heap
from app.core.setup import create_application
from app.subscriptions import SUBSCRIPTIONS

settings = get_settings()
configure_logging(environment_of(settings))
share_one_heap()


@asynccontextmanager
async def settled(app: FastAPI) -> AsyncIterator[None]:
    """Runs inside of the app's own lifespan: by now everything is loaded and open."""
    settle()
    yield


def workers() -> tuple[type, ...]:
    """The settings of the workers that run this app's jobs: a job for any other function is refused."""
    from app.core.worker.settings import LongWorkerSettings, WorkerSettings  # Only where there is a queue.

    return WorkerSettings, LongWorkerSettings


app = create_application(
    router=build_router(settings),
    settings=settings,
    docs_guard=[Depends(get_current_superuser)],
    subscriptions=SUBSCRIPTIONS,
    lifespan=settled,
    workers=workers,
)
add_console(app, settings)
