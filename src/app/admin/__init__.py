"""The operator's console at `/admin` (docs/console.md)."""

import logging

from fastapi import FastAPI

from app.admin.console import Console
from app.admin.views import front, views_of
from app.core.config import ConsoleSettings, CryptSettings, PostgresSettings, Settings

__all__ = ["Console", "add_console"]


def add_console(app: FastAPI, settings: Settings) -> Console | None:
    """Adds the console to an app, if its settings switch it on: `ConsoleSettings`, with the database and sign-in."""
    if not settings.inherits(ConsoleSettings, PostgresSettings, CryptSettings) or not settings.CONSOLE_ENABLED:
        return None
    # The library's lines hold what was sent: names that nobody has, which can be passwords in the wrong field.
    logging.getLogger("starlette_admin").setLevel(logging.CRITICAL)
    return Console(app, settings, front(), views_of(app, settings))
