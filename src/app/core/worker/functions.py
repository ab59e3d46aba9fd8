"""Background jobs. Add one here, and its name to `WorkerSettings.functions`."""

import asyncio
from typing import Any

import structlog

from app.core.config import environment_of, get_settings
from app.core.db.database import close_database, open_database
from app.core.logger import configure_logging

log = structlog.stdlib.get_logger("slipway.worker")


async def sample_background_task(ctx: dict[Any, Any], name: str) -> str:
    """Takes five seconds to say that it is complete."""
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


async def startup(ctx: dict[Any, Any]) -> None:
    """Runs once, before the first job. ARQ's command has set up logging of its own by now; ours replaces it."""
    settings = get_settings()
    configure_logging(environment_of(settings))
    ctx["engine"] = open_database(settings)
    log.info("worker started")


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Runs once, after the last job."""
    await close_database(ctx["engine"])
    log.info("worker stopped")
