"""The operator's console at `/admin` (docs/console.md), loaded when it is asked for first.

The library, its templates and our pages are 9 MB of every process, and a sixth of the time that a start takes.
"""

import asyncio
import logging
from threading import Lock
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from app.core.config import ConsoleSettings, CryptSettings, PostgresSettings, Settings
from app.core.memory import settle
from app.core.root_path import root_path_of

if TYPE_CHECKING:
    from app.admin.console import Console

__all__ = ["add_console"]

PATH: Final = "/admin"


def add_console(app: FastAPI, settings: Settings) -> None:
    """Adds the console to an app, if its settings switch it on: `ConsoleSettings`, with the database and sign-in."""
    if not settings.inherits(ConsoleSettings, PostgresSettings, CryptSettings) or not settings.CONSOLE_ENABLED:
        return
    # The library's lines hold what was sent: names that nobody has, which can be passwords in the wrong field.
    logging.getLogger("starlette_admin").setLevel(logging.CRITICAL)
    app.mount(PATH, _WhenAsked(app, settings), name="admin")
    app.add_route(PATH, _to_the_front_page)


class _WhenAsked:
    """Stands where the console is mounted, and loads it for the first who asks for a page, or for its routes."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._console: Console | None = None
        self._loading = Lock()

    @property
    def routes(self) -> list[BaseRoute]:
        """The console's: its templates build addresses from their names."""
        return self._loaded().app.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        console = self._console
        if console is None:  # In a thread: it takes 150 ms and more, and others are being answered meanwhile.
            console = await asyncio.to_thread(self._loaded)
        await console.app(scope, receive, send)

    def _loaded(self) -> "Console":
        with self._loading:
            if self._console is None:
                self._console = _load(self._app, self._settings)
            return self._console


def _load(app: FastAPI, settings: Settings) -> "Console":
    from app.admin.console import Console
    from app.admin.views import front, views_of

    console = Console(app, settings, front(), views_of(app, settings))
    settle()
    return console


async def _to_the_front_page(request: Request) -> Response:
    """`/admin`, as people type it."""
    return RedirectResponse(f"{root_path_of(request.scope)}{PATH}/", 308)
