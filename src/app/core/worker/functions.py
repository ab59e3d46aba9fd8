"""Background jobs. Add one here, and its name to `WorkerSettings.functions`."""

import asyncio
from typing import Any

import structlog

from app.core.utils.queue import progress

log = structlog.stdlib.get_logger("slipway.worker")

SAMPLE_SECONDS = 5


async def sample_background_task(ctx: dict[Any, Any], name: str) -> str:
    """Takes five seconds to say that it is complete."""
    for second in range(1, SAMPLE_SECONDS + 1):
        await asyncio.sleep(1)
        await progress(ctx, second, SAMPLE_SECONDS, f"{second} of {SAMPLE_SECONDS} seconds")
    return f"Task {name} is complete!"


async def startup(ctx: dict[Any, Any]) -> None:
    """Runs once, before the first job, with everything open. What is put into `ctx` is there for every job."""


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Runs once, after the last job."""
