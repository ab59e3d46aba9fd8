"""The app with its console, and somebody who asks it."""

from collections.abc import AsyncIterator
from functools import cache

import httpx2
import pytest
from fastapi import Depends, FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin import add_console
from app.api import build_router
from app.api.dependencies import get_current_superuser
from app.core.config import Settings
from app.core.setup import create_application
from app.models.user import User
from app.subscriptions import SUBSCRIPTIONS
from tests.admin.operator import console_of, sign_in
from tests.helper import create_superuser


def pytest_configure(config: pytest.Config) -> None:
    """The library asks sessions as SQLAlchemy has them, which SQLModel would like to be another way."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:starlette_admin.contrib.sqla.view")


def app_with_console(settings: Settings) -> FastAPI:
    """A new app with these settings, not started. It takes a second: `app` is built once."""
    guard = [Depends(get_current_superuser)]
    app = create_application(build_router(settings), settings, docs_guard=guard, subscriptions=SUBSCRIPTIONS)
    add_console(app, settings)
    return app


@cache
def _built_once() -> FastAPI:
    return app_with_console(Settings())


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The whole app with its console, started; `client`, `db` and the others use it, too."""
    app = _built_once()
    app.state.settings = settings
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def console(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Asks the console, not signed in: `sign_in(console, user)`."""
    async with console_of(app) as console:
        yield console


@pytest.fixture
async def superuser(db: AsyncSession) -> User:
    """A superuser, whose password is PASSWORD."""
    return await create_superuser(db, username="operator", name="An Operator")


@pytest.fixture
async def operator(console: httpx2.AsyncClient, superuser: User) -> httpx2.AsyncClient:
    """The client `console`, signed in as `superuser`."""
    answer = await sign_in(console, superuser)
    assert answer.status_code == 303
    return console
