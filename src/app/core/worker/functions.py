"""Background jobs. Add one here, and its name to `WorkerSettings.functions`."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import structlog

from app.core.config import RedisCacheSettings, environment_of, get_settings
from app.core.db.database import close_database, open_database
from app.core.logger import configure_logging
from app.core.utils.cache import open_cache

log = structlog.stdlib.get_logger("slipway.worker")


async def sample_background_task(ctx: dict[Any, Any], name: str) -> str:
    """Takes five seconds to say that it is complete."""
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


async def startup(ctx: dict[Any, Any]) -> None:
    """Runs once, before the first job. ARQ's command has set up logging of its own by now; ours replaces it."""
    settings = get_settings()
    configure_logging(environment_of(settings))
    ctx["opened"] = opened = AsyncExitStack()
    opened.push_async_callback(close_database, open_database(settings))
    if isinstance(settings, RedisCacheSettings):  # What a job changes is dropped from the cache by the worker itself.
        await opened.enter_async_context(open_cache(settings, durable=True))
    log.info("worker started")


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Runs once, after the last job."""
    await ctx["opened"].aclose()
    log.info("worker stopped")
