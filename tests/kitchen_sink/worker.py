"""The worker: `arq tests.kitchen_sink.worker.WorkerSettings`."""

from typing import Any
from zoneinfo import ZoneInfo

import src  # noqa: F401  (makes `app` importable from the project's folder)
from arq import cron

from app.core.worker.settings import WorkerSettings as ShippedSettings
from tests.kitchen_sink.api import count_all


async def count_words(ctx: dict[Any, Any], text: str) -> int:
    """Return the number of words."""
    return len(text.split())


async def count_articles(ctx: dict[Any, Any]) -> int:
    """Return the number of articles."""
    return await count_all(ctx["db"])


class WorkerSettings(ShippedSettings):
    """The shipped jobs and the application's own, by the clock of Berlin."""

    functions = [*ShippedSettings.functions, count_words, count_articles]  # noqa: RUF012
    cron_jobs = [  # noqa: RUF012
        *ShippedSettings.cron_jobs,
        cron(count_articles, minute=set(range(0, 60, 10))),
        cron(count_articles, name="nightly", hour=2, minute=30),
    ]
    timezone = ZoneInfo("Europe/Berlin")
