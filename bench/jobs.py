"""What jobs cost: `python -m bench.jobs`, also a part of `make bench`.

One worker process on the first core, PostgreSQL and Valkey on the last, as `bench.servers` has them.

- how long after it was enqueued a job starts, on a worker that has nothing else to do;
- how many jobs a second a worker does that do nothing, and how many a process enqueues;
- how long it takes to enqueue one when 100,000 wait, against when none does, and how much memory that takes.
"""

import argparse
import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from statistics import median, quantiles

from bench.machine import ROOT, memory_of, pin
from bench.servers import BIN, services, stop

import src  # noqa: F401 isort: skip  (makes `app` importable)
from sqlalchemy import text

from app.core.config import get_settings
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.utils import queue

NOTHING = "nothing"  # of bench.job_worker


def main() -> None:
    """Prints the figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=2_000, help="to measure the rate with")
    arguments.add_argument("--backlog", type=int, default=100_000)
    given = arguments.parse_args()
    with services():
        print(table(asyncio.run(measure(given.jobs, given.backlog))))


async def measure(jobs: int, backlog: int, *, starts: int = 200, memory_seconds: int = 8) -> dict[str, float | None]:
    """Runs all of it against the services that the environment names.

    Args:
        jobs: how many the rates are measured with.
        backlog: how many wait when it is measured what that costs.
        starts: how many are enqueued on an idle worker.
        memory_seconds: for how long the memory of a worker with a backlog is watched.
    """
    found: dict[str, float | None] = {}
    async with opened():
        with worker():
            await until_done()
            latencies = await start_latencies(starts)
            found["start_p50_ms"], found["start_p95_ms"] = median(latencies), p95(latencies)
        seconds = await enqueue_times(jobs)
        found["enqueued_per_second"] = jobs / sum(seconds)
        with worker():
            await until_done()
        found["done_per_second"] = jobs / await done_within()
        found["enqueue_p50_ms"] = median(await enqueue_times(500)) * 1000
        await fill(backlog)
        found["backlog"] = backlog
        found["enqueue_p50_ms_with_backlog"] = median(await enqueue_times(500)) * 1000
        with worker() as process:
            most: list[float] = []
            for _ in range(memory_seconds):
                await asyncio.sleep(1)
                most += filter(None, [memory_of(process.pid)])
            found["worker_memory_mb"] = max(most, default=None)
    return found


def table(found: dict[str, float | None]) -> str:
    """The figures in lines."""
    start, tail = found["start_p50_ms"], found["start_p95_ms"]
    memory = found["worker_memory_mb"]
    return "\n".join(
        (
            f"enqueue to start, idle worker     median {start:6.1f} ms   p95 {tail:6.1f} ms",
            f"enqueued one by one               {found['enqueued_per_second']:8.0f} jobs/s",
            f"no-op jobs, one worker            {found['done_per_second']:8.0f} jobs/s",
            f"enqueue, none waiting             median {found['enqueue_p50_ms']:6.2f} ms",
            f"enqueue, {found['backlog']:7,} waiting          median {found['enqueue_p50_ms_with_backlog']:6.2f} ms",
            f"worker's memory meanwhile         {'unknown' if memory is None else f'{memory:.0f} MB at most'}",
        )
    )


@asynccontextmanager
async def opened() -> AsyncIterator[None]:
    """The database and the queue, in this process."""
    settings = get_settings()
    engine = open_database(settings)
    try:
        async with queue.open_queue(settings):
            yield
    finally:
        await close_database(engine)


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker on the first core."""
    process = subprocess.Popen(
        [BIN / "arq", "bench.job_worker.WorkerSettings"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: pin(min),
    )
    try:
        yield process
    finally:
        stop(process)


async def start_latencies(count: int) -> list[float]:
    """Milliseconds from the call that enqueues to the start, as the database's clock has both."""
    ids = []
    for _ in range(count):
        async with transaction() as db:
            ids.append((await queue.enqueue(db, NOTHING)).job_id)
        await asyncio.sleep(0.013)
    await until_done()
    statement = text("SELECT extract(epoch FROM started_at - created_at) * 1000 FROM job WHERE id = ANY(:ids)")
    async with reading() as db:
        return [float(value) for value in (await (await db.connection()).execute(statement, {"ids": ids})).scalars()]


async def enqueue_times(count: int) -> list[float]:
    """Seconds that each of so many transactions with one job took, commit included."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        async with transaction() as db:
            await queue.enqueue(db, NOTHING)
        taken.append(time.perf_counter() - began)
    return taken


async def until_done() -> None:
    """Returns when nothing waits or runs, and a worker has done at least one job since this was asked."""
    async with transaction() as db:
        await queue.enqueue(db, NOTHING)
    while await scalar("SELECT count(*) FROM job WHERE state IN ('queued', 'running')"):  # noqa: ASYNC110 -- it asks another process
        await asyncio.sleep(0.02)


async def done_within() -> float:
    """Seconds from the first start to the last end of the jobs that the last worker did."""
    return float(
        await scalar(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM job"
            " WHERE worker = (SELECT worker FROM job ORDER BY finished_at DESC NULLS LAST LIMIT 1)"
        )
    )


async def fill(count: int) -> None:
    """So many jobs that wait."""
    await scalar(
        "INSERT INTO job (id, queue, function, args, keywords, created_at, run_after)"
        " SELECT md5(n::text), 'arq:queue', 'nothing', '[]', '{}', now(), now() FROM generate_series(1, :count) AS n"
        " RETURNING 1",
        count=count,
    )


async def scalar(statement: str, **values: int) -> float:
    """The first value of an answer."""
    async with reading() as db:
        return (await (await db.connection()).execute(text(statement), values)).scalars().first() or 0


def p95(values: list[float]) -> float:
    """What 95 of 100 are below."""
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
