"""The application: the one place where all parts meet."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from app.admin import add_console
from app.api import build_router
from app.api.dependencies import get_current_superuser
from app.core.config import environment_of, get_settings
from app.core.logger import configure_logging
from app.core.setup import create_application

settings = get_settings()
configure_logging(environment_of(settings))


@asynccontextmanager
async def settled(app: FastAPI) -> AsyncIterator[None]:
    """What is loaded by now stays: the collector need not look through it again and again, at a fifth of all time."""
    gc.collect()
    gc.freeze()
    yield


app = create_application(
    router=build_router(settings),
    settings=settings,
    docs_guard=[Depends(get_current_superuser)],
    lifespan=settled,
)
add_console(app, settings)
