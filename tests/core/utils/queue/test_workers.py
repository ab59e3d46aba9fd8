"""Which workers live: when one is late, and those that only say it in ARQ's way."""

from typing import Any, Final

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils import queue
from app.core.utils.queue import workers
from app.core.utils.queue.sending import current_transport

pytestmark = pytest.mark.anyio

SHARED: Final = "arq:queue:health-check"
BEFORE: Final = '{"running": 2, "queue": "arq:queue", "started_at": "2026-11-25T12:00:00+00:00", "worker": "before"}'


async def beat(name: str, queue: str = "arq:queue") -> None:
    told = {"running": 0, "queue": queue, "started_at": "", "max_jobs": 1, "functions": []}
    await workers.beat(current_transport().link, name, f"{queue}:health-check", 30, told)


async def send(*words: Any) -> Any:
    return await current_transport().link.send(*words)


async def seen() -> list[tuple[str, bool, bool]]:
    """Their names, whether they are late, and whether they are of a release before."""
    found = await queue.living_workers(current_transport().link)
    return [(worker.name, worker.late, worker.is_older) for worker in found]


async def test_it_is_late_when_it_has_missed_two_beats(db: AsyncSession) -> None:
    """And not before: the third of a beat's pauses, of 30 seconds, can be a little longer. ARQ's keys stay as long as
    `arq --check` has it.
    """
    await beat("one")
    seconds, microseconds = await send("TIME")
    now = int(seconds) + int(microseconds) / 1_000_000
    late_in = float(await send("ZSCORE", workers.WORKERS, "one")) / 1000 - now
    assert 20 * (1 + workers.UNEVEN) - 1 < late_in <= 22
    for key in (SHARED, f"{SHARED}:one"):
        assert 25_000 < await send("PTTL", key) <= 31_000


async def test_one_of_a_release_before_counts_where_no_other_lives(db: AsyncSession) -> None:
    await send("SET", SHARED, BEFORE, "PX", 21_000)
    [worker] = await queue.living_workers(current_transport().link)
    assert (worker.name, worker.queue, worker.running, worker.late, worker.is_older) == (
        "before",
        "arq:queue",
        2,
        False,
        True,
    )
    assert worker.started_at is not None
    assert 9 < worker.heard_seconds < 15
    await beat("long", "arq:queue:long")
    assert await seen() == [("before", False, True), ("long", False, False)]
    await beat("new")
    await send("SET", SHARED, BEFORE, "PX", 21_000)
    assert await seen() == [("new", False, False), ("long", False, False)]


async def test_arqs_own_says_it_in_words(db: AsyncSession) -> None:
    await send("SET", SHARED, "Nov-25 12:00:00 j_complete=0", "PX", 21_000)
    assert await seen() == [("ARQ's own of arq:queue", False, True)]


async def test_what_a_worker_leaves_is_no_other_worker(db: AsyncSession) -> None:
    """ARQ's shared key lasts for longer than it takes to see that a worker was killed, or has ended."""
    await beat("killed")
    await send("ZADD", workers.WORKERS, 1000 * (int((await send("TIME"))[0]) - 1), "killed")
    assert await seen() == [("killed", True, False)]
    await workers.forget(current_transport().link, "killed", SHARED)
    assert await send("EXISTS", SHARED) == 1
    assert await seen() == []
