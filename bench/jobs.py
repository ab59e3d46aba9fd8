"""What jobs cost: `python -m bench.jobs`, also the last part of `make bench`.

One worker process on the first core, PostgreSQL and Valkey on the last, as `bench.ratios` has them.

- how long after it was enqueued a job starts, on a worker that has nothing else to do;
- how many jobs a second a worker does that do nothing, and how many a process enqueues;
- how long it takes to enqueue one when 100,000 wait, against when none does, and how much memory that takes.
"""

import argparse
import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles

from bench.ratios import BIN, ROOT, pin, services

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
        asyncio.run(measure(given.jobs, given.backlog))


async def measure(jobs: int, backlog: int) -> None:
    """Runs all of it against the services that the environment names."""
    async with opened():
        with worker():
            await until_done()
            starts = await start_latencies(200)
            print(f"enqueue to start, idle worker     median {median(starts):6.1f} ms   p95 {p95(starts):6.1f} ms")
        seconds = await enqueue_times(jobs)
        print(f"enqueued one by one               {jobs / sum(seconds):8.0f} jobs/s")
        with worker():
            await until_done()
        took = await done_within()
        print(f"no-op jobs, one worker            {jobs / took:8.0f} jobs/s")
        empty = await enqueue_times(500)
        await fill(backlog)
        full = await enqueue_times(500)
        ratio = median(full) / median(empty)
        print(f"enqueue, none waiting             median {median(empty) * 1000:6.2f} ms")
        print(f"enqueue, {backlog:7,} waiting          median {median(full) * 1000:6.2f} ms   {ratio:5.2f} times that")
        with worker() as process:
            await asyncio.sleep(1)
            grown = [memory_of(process)]
            for _ in range(8):
                await asyncio.sleep(1)
                grown.append(memory_of(process))
        print(f"worker's memory meanwhile         {min(grown):6.0f} to {max(grown):.0f} MB")


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
        process.terminate()
        process.wait()


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


def memory_of(process: "subprocess.Popen[bytes]") -> float:
    """The memory that a process has resident, in megabytes."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
