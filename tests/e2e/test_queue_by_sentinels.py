"""The queue at a primary that is killed, and replaced by sentinels: each job is done once, and no worker restarts."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.core.config import Settings, get_settings
from tests.e2e.test_job_faults import (
    WORKERS,
    Orders,
    check,
    each_order_is_delivered_once,
    nothing_is_stuck,
    opened_queue,
    until,
)
from tests.processes import process
from tests.redis_topologies import Watched, patiently, watched_by_sentinels

pytestmark = pytest.mark.anyio

PASSWORD, OF_SENTINELS = "of-the-servers", "of-the-sentinels"


async def test_a_failover_loses_no_job_and_does_none_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """One test for all of it: sentinels and workers take seconds to start. The workers are the same to the end."""
    monkeypatch.setenv("QUIET", "yes")
    with watched_by_sentinels(PASSWORD, OF_SENTINELS) as watched:
        monkeypatch.setenv("REDIS_QUEUE_URL", watched.url())
        get_settings.cache_clear()
        async with opened_queue(get_settings()):
            assert await check() == 1
            async with workers(watched) as running:
                assert await check() == 0
                orders = Orders()
                for lose in (killed, handed_over):
                    with subtests.test(lose.__name__):
                        await jobs_go_on(watched, lose, orders)
                        assert [worker.poll() for worker in running] == [None] * WORKERS, "they are not restarted"
                        await until(all_say_that_they_live(watched, running))
                        assert await check() == 0


async def jobs_go_on(watched: Watched, lose: Callable[[Watched], Awaitable[None]], orders: Orders) -> None:
    async with orders.coming_in():
        await orders.one_is_delivered()
        await lose(watched)
        await asyncio.sleep(0.5)
        await orders.one_is_delivered()
    await nothing_is_stuck()
    await each_order_is_delivered_once()
    assert orders.refused == 0


async def killed(watched: Watched) -> None:
    """Without the last that it was told: its replica hears nothing any more."""
    old, new = watched.primary, watched.replica
    with new.stopped():
        old.client.client_kill_filter(_type="slave")
        await asyncio.sleep(0.3)
        old.stop()
    await asyncio.to_thread(patiently, lambda: new.role == "master")
    old.start()
    await asyncio.to_thread(patiently, watched.is_whole)


async def handed_over(watched: Watched) -> None:
    await asyncio.to_thread(watched.hand_over)


@asynccontextmanager
async def workers(watched: Watched) -> AsyncIterator[list[subprocess.Popen[bytes]]]:
    """Some, once they take jobs."""
    command = ("arq", "tests.jobs_app.WorkerSettings")
    with process(*command) as one, process(*command) as other:
        await until(all_say_that_they_live(watched, [one, other]))
        yield [one, other]


def all_say_that_they_live(watched: Watched, running: list[subprocess.Popen[bytes]]) -> Callable[[], bool]:
    """Whether each has a key of its own at the primary."""
    return lambda: all(watched.primary.client.keys(f"*:health-check:*:{worker.pid}:*") for worker in running)
