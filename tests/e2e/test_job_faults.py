"""Servers fail under the workers, the queue is long, and what is in Redis/Valkey is not ours: jobs go on, once each."""

import asyncio
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime, timedelta
from inspect import isawaitable
from itertools import count
from pathlib import Path
from random import SystemRandom
from statistics import median
from typing import Any

import httpx2
import pytest
from redis import Redis
from sqlalchemy import text

from app.core.config import Settings, get_settings
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.utils import queue
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from tests.conftest import a_postgres
from tests.jobs_app import TABLES, write
from tests.processes import BIN, IN_FULL, ROOT, running_worker

pytestmark = pytest.mark.anyio

WORKERS = 2
PLACERS = 3
EVERY = 0.03  # seconds between two orders of one placer
HANG = 30.0 if IN_FULL else 4.0  # seconds
LEASE = 5.0  # seconds: shorter than in operation, so that what a restart of PostgreSQL cut off comes back soon
PATIENCE = 60.0  # seconds until a test gives up on what has to come
SOON = 10.0  # seconds in which a job is done, also without Redis/Valkey, on a machine that is busy with other tests

TICKS = 6

BACKLOG = 100_000
ENQUEUED = 200  # of which the median is taken
FLAT = 3.0  # times as long as with nothing waiting
GROWTH = 60.0  # megabytes

some = SystemRandom()


# ---- Servers fail ----


class RolledBack(Exception):  # noqa: N818 -- what was to happen
    """An order that was not to be."""


class Orders:
    """Customers at a steady pace, in transactions of which one third is rolled back."""

    def __init__(self) -> None:
        self._numbers = count()
        self.refused = 0

    @asynccontextmanager
    async def coming_in(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as customers:
            tasks = [customers.create_task(self._keep_placing()) for _ in range(PLACERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _keep_placing(self) -> None:
        while True:
            try:
                await self._place(next(self._numbers), some.choice((0, 0, 0.1)), fails=not some.randrange(3))
            except RolledBack:
                pass
            except DatabaseUnavailable:
                self.refused += 1
            await asyncio.sleep(EVERY)

    async def _place(self, number: int, seconds: float, *, fails: bool) -> None:
        async with transaction() as db:
            await write(db, "INSERT INTO placed (number) VALUES (:number)", number=number)
            await queue.enqueue(db, "deliver", number, seconds)
            if fails:
                raise RolledBack

    async def one_is_delivered(self) -> None:
        """Places an order now, and returns when its job is done."""
        number = next(self._numbers)
        await self._place(number, 0, fails=False)
        await until(lambda: is_delivered(number), SOON)


async def restarted(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    """It comes back without anything."""
    await asyncio.to_thread(valkey.stop)
    try:
        await orders.one_is_delivered()
        await asyncio.sleep(1)
        await orders.one_is_delivered()
    finally:
        await asyncio.to_thread(valkey.start)


async def flushed(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    with Redis(port=valkey.port) as redis:
        for _ in range(10):
            redis.flushall()
            await asyncio.sleep(0.1)


async def full(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    """It answers, and takes nothing."""
    with Redis(port=valkey.port) as redis:
        redis.set("what fills it", b" " * 4_000_000)
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", "1mb")
        try:
            await orders.one_is_delivered()
        finally:
            redis.config_set("maxmemory", "0")


async def read_only(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    """It gives nothing away either."""
    with Redis(port=valkey.port) as redis:
        redis.replicaof("127.0.0.1", str(free_port()))
        try:
            await orders.one_is_delivered()
        finally:
            redis.replicaof("NO", "ONE")


async def postgres_restarted(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    """While workers have jobs."""
    await until(lambda: scalar("SELECT count(*) FROM job WHERE state = 'running'"))
    await asyncio.to_thread(postgres.stop)
    await asyncio.sleep(1)
    await asyncio.to_thread(postgres.start)


async def hung(valkey: Valkey, postgres: Postgres, orders: Orders) -> None:
    """For so long that everybody has given it up; in the middle of it, PostgreSQL is away as well."""
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        await orders.one_is_delivered()
        await asyncio.sleep(HANG / 3)
        await orders.one_is_delivered()
        await postgres_restarted(valkey, postgres, orders)
        await asyncio.sleep(began + HANG - time.monotonic())
        await orders.one_is_delivered()
    finally:
        valkey.process.send_signal(signal.SIGCONT)


Fault = Callable[[Valkey, Postgres, Orders], Awaitable[None]]
FAULTS: list[Fault] = [restarted, flushed, full, read_only, postgres_restarted, hung]


async def test_no_job_is_lost_or_done_twice_whatever_happens_to_the_servers(
    own_valkey: Valkey, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """One test for all of it: workers and servers take seconds to start. The workers are the same to the end."""
    monkeypatch.setenv("JOB_LEASE", str(LEASE))
    async with opened_queue(get_settings()), workers(own_valkey, *["tests.jobs_app.WorkerSettings"] * WORKERS) as two:
        orders = Orders()
        for fault in FAULTS:
            with subtests.test(fault.__name__):
                refused = orders.refused
                async with orders.coming_in():
                    await orders.one_is_delivered()
                    await fault(own_valkey, own_postgres, orders)
                    await asyncio.sleep(0.5)
                await nothing_is_stuck()
                await each_order_is_delivered_once()
                assert [worker.poll() for worker in two] == [None] * WORKERS, "they are not restarted"
                assert orders.refused == refused or fault in {postgres_restarted, hung}
                await until(lambda: is_empty(own_valkey))


async def nothing_is_stuck() -> None:
    """Returns when all jobs have ended."""
    await until(no_job_is_open)


async def each_order_is_delivered_once() -> None:
    placed = await column("SELECT number FROM placed ORDER BY number")
    assert await column("SELECT number FROM delivered ORDER BY number") == placed
    assert await column("SELECT state FROM job") == ["succeeded"] * len(placed)
    assert len(placed) > PLACERS


# ---- Crons ----


async def test_two_workers_do_each_tick_of_a_cron_once(settings: Settings, valkey: Valkey) -> None:
    async with opened_queue(settings), workers(valkey, *["tests.jobs_app.CronSettings"] * 2):
        both_were_there = await scalar("SELECT clock_timestamp()")
        await until(lambda: so_many_ticks_after(both_were_there))
        ticks = await ticks_after(both_were_there)

    first = ticks[0]
    assert first <= both_were_there + timedelta(seconds=2)
    assert ticks == [first + timedelta(seconds=number) for number in range(len(ticks))], "none twice, and none missing"


async def so_many_ticks_after(moment: datetime) -> bool:
    return len(await ticks_after(moment)) >= TICKS


async def ticks_after(moment: datetime) -> list[datetime]:
    ids = await column("SELECT tick FROM ticked ORDER BY tick")
    ticks = [datetime.fromisoformat(f"{job_id.removeprefix('cron:tick:')}+00:00") for job_id in ids]
    return [tick for tick in ticks if tick > moment]


# ---- A long queue ----


async def test_short_and_long_jobs_have_workers_of_their_own(settings: Settings, valkey: Valkey) -> None:
    package = "src.app.core.worker.settings"
    async with opened_queue(settings), workers(valkey, f"{package}.WorkerSettings", f"{package}.LongWorkerSettings"):
        nobody = 1_000_000  # A mail to whom is no work.
        short = await queue.enqueue_now("send_email_verification", nobody)
        long = await queue.enqueue_now("send_email_verification", nobody, _queue_name=queue.LONG_QUEUE)
        await nothing_is_stuck()
        done_by = {job.queue: job.worker for one in (short, long) if (job := await queue.find(one.job_id)) is not None}
        assert set(done_by) == {queue.DEFAULT_QUEUE, queue.LONG_QUEUE}
        assert done_by[queue.DEFAULT_QUEUE] != done_by[queue.LONG_QUEUE]


async def test_a_queue_of_a_hundred_thousand_slows_nobody_down_and_takes_no_memory(
    settings: Settings, valkey: Valkey
) -> None:
    async with opened_queue(settings), workers(valkey, "tests.jobs_app.WorkerSettings") as (worker,):
        await enqueue_times()
        await nothing_is_stuck()
        before = memory_of(worker)

        worker.send_signal(signal.SIGSTOP)
        empty = await enqueue_times()
        await fill()
        full = await enqueue_times()
        worker.send_signal(signal.SIGCONT)
        assert median(full) < FLAT * median(empty)

        with Redis(port=valkey.port) as redis:
            for _ in range(2):  # It sends all of it, and then, when that is gone, all of it again, in few rounds.
                await until(lambda: redis.zcard(queue.DEFAULT_QUEUE) > BACKLOG / 2)
                assert memory_of(worker) < before + GROWTH
                redis.delete(queue.DEFAULT_QUEUE)
                redis.delete("slipway:jobs")
        assert await scalar("SELECT count(*) FROM job WHERE state = 'succeeded'") > 2 * ENQUEUED, "it worked meanwhile"
        assert not await no_job_is_open(), "and there was much to do all the time"


async def enqueue_times() -> list[float]:
    """Seconds that each of so many transactions with one job took, commit included."""
    taken = []
    for _ in range(ENQUEUED):
        began = time.perf_counter()
        async with transaction() as db:
            await queue.enqueue(db, "count_to", 0, 0)
        taken.append(time.perf_counter() - began)
    return taken


async def fill() -> None:
    async with transaction() as db:
        await write(
            db,
            "INSERT INTO job (id, queue, function, args, keywords, created_at, run_after)"
            " SELECT md5(n::text), 'arq:queue', 'count_to', '[0, 0]', '{}', now(), now()"
            " FROM generate_series(1, :count) AS n",
            count=BACKLOG,
        )


def memory_of(process: "subprocess.Popen[bytes]") -> float:
    """The memory that a process has resident, in megabytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- What is in Redis/Valkey is not to be trusted ----


class Evil:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._file,))


async def test_a_pickle_put_into_valkey_by_hand_is_not_loaded_and_the_worker_lives(
    settings: Settings, valkey: Valkey, tmp_path: Path
) -> None:
    proof = tmp_path / "unpickled"
    evil = pickle.dumps({"f": "deliver", "a": (Evil(proof),), "k": {}, "t": 1, "et": 0})
    async with opened_queue(settings), workers(valkey, "tests.jobs_app.WorkerSettings") as (worker,):
        with Redis(port=valkey.port) as redis:
            for name in ("arq:job:evil", "arq:result:evil", "arq:in-progress:evil", "arq:retry:evil"):
                redis.set(name, evil)
            redis.zadd(queue.DEFAULT_QUEUE, {evil: 1, "evil": 1})

            await until(lambda: is_empty(valkey))
        task = queue.ArqJob("evil", queue.pool)
        assert (await task.info(), await task.result_info()) == (None, None)
        assert await queue.find(evil.decode(errors="replace")) is None
        await the_next_job_is_done(worker)
    assert not proof.exists()
    pickle.loads(evil)  # noqa: S301 -- that is the point: it would have worked
    assert proof.exists()


async def test_ids_that_are_no_ids_are_forgotten(settings: Settings, valkey: Valkey) -> None:
    junk = [b"", b"\x00", b"a\x00b", b"\xff\xfe\x80", b"x" * 1_000_000, b"'; DROP TABLE job; --", "\u202e".encode()]
    async with opened_queue(settings), workers(valkey, "tests.jobs_app.WorkerSettings") as (worker,):
        with Redis(port=valkey.port) as redis:
            redis.zadd(queue.DEFAULT_QUEUE, dict.fromkeys(junk, 1))
            await until(lambda: is_empty(valkey))
        await the_next_job_is_done(worker)
        assert await scalar("SELECT count(*) FROM job") == 1


async def the_next_job_is_done(worker: "subprocess.Popen[bytes]") -> None:
    await Orders().one_is_delivered()
    assert worker.poll() is None


# ---- Watching workers ----


async def test_arq_check_says_whether_any_worker_lives(settings: Settings, valkey: Valkey) -> None:
    key = f"{queue.DEFAULT_QUEUE}:health-check"
    with Redis(port=valkey.port) as redis:
        with running_worker(valkey.port) as staying:
            with running_worker(valkey.port):
                pass
            # The one that stopped can have been the last that said so.
            await until(lambda: f":{staying.pid}:".encode() in (redis.get(key) or b""))
            assert await check() == 0
            assert len(redis.keys(f"{key}:*")) == 1
        await until(lambda: not redis.exists(key))
    assert await check() == 1


async def check() -> int:
    process = await asyncio.create_subprocess_exec(BIN / "arq", "--check", "tests.jobs_app.WorkerSettings", cwd=ROOT)
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def test_an_idle_worker_starts_a_job_at_once_and_counts_it(
    settings: Settings, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    async with opened_queue(settings), workers(valkey, "tests.jobs_app.WorkerSettings") as (worker,):
        for _ in range(30):
            await Orders().one_is_delivered()
        await nothing_is_stuck()
        waited = await column("SELECT extract(epoch FROM started_at - created_at) FROM job")
        assert len(waited) == 30
        assert median(waited) < 0.5

        metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert value_of('slipway_job_attempts_total{function="deliver",result="succeeded"}', metrics) == 30
        assert value_of('slipway_job_seconds_count{function="deliver"}', metrics) == 30
        assert value_of('slipway_job_wait_seconds_count{queue="arq:queue"}', metrics) == 30
        assert value_of("slipway_worker_jobs_running", metrics) == 0

        # The port is taken now, and somebody else works all the same.
        with running_worker(valkey.port) as other:
            worker.terminate()
            await asyncio.to_thread(worker.wait, PATIENCE)
            await the_next_job_is_done(other)


def value_of(name: str, metrics: str) -> float:
    (value,) = re.findall(rf"(?m)^{re.escape(name)} (\S+)$", metrics)
    return float(value)


# ---- What it takes ----


@pytest.fixture
def own_valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """A Valkey of this test alone, for everything, which keeps nothing."""
    with scratch_folder() as folder:
        port = free_port()
        for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
            monkeypatch.setenv(f"REDIS_{use}_HOST", "127.0.0.1")
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(port))
        get_settings.cache_clear()
        with Valkey(folder / "valkey", port=port, durable=False) as server:
            yield server
    get_settings.cache_clear()


@pytest.fixture
def own_postgres(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """A PostgreSQL of this test alone, at the newest schema."""
    with scratch_folder() as folder:
        port = free_port()
        monkeypatch.setenv("POSTGRES_PORT", str(port))
        monkeypatch.setenv("POSTGRES_DB", "tester")
        get_settings.cache_clear()
        with a_postgres(shutil.copytree(cluster, folder / "postgres"), port) as server:
            subprocess.run([BIN / "alembic", "upgrade", "head"], cwd=ROOT / "src", check=True, capture_output=True)
            yield server
    get_settings.cache_clear()


@asynccontextmanager
async def opened_queue(settings: Settings) -> AsyncIterator[None]:
    """The database, with the tables that jobs write to, and the queue, in this process."""
    engine = open_database(settings)
    try:
        async with queue.open_queue(settings):
            async with transaction() as db:
                for table in TABLES:
                    await write(db, table)
            yield
    finally:
        await close_database(engine)


@asynccontextmanager
async def workers(valkey: Valkey, *worker_settings: str) -> AsyncIterator[list["subprocess.Popen[bytes]"]]:
    """Real workers with these settings, once all of them take jobs."""
    with ExitStack() as stack:
        starting = (
            asyncio.to_thread(stack.enter_context, running_worker(valkey.port, each)) for each in worker_settings
        )
        yield await asyncio.gather(*starting)


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Returns when this, or what comes of awaiting it, has become true in another process."""
    async with asyncio.timeout(seconds):
        while not (await asked if isawaitable(asked := condition()) else asked):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_empty(valkey: Valkey) -> bool:
    """Whether all ids were taken from the queue."""
    with Redis(port=valkey.port) as redis:
        return not redis.zcard(queue.DEFAULT_QUEUE)


async def is_delivered(number: int) -> bool:
    return bool(await scalar("SELECT count(*) FROM delivered WHERE number = :number", number=number))


async def no_job_is_open() -> bool:
    return not await scalar("SELECT count(*) FROM job WHERE state IN ('queued', 'running')")


async def scalar(statement: str, **values: Any) -> Any:
    (value,) = await column(statement, **values)
    return value


async def column(statement: str, **values: Any) -> list[Any]:
    async with reading() as db:
        return list((await (await db.connection()).execute(text(statement), values)).scalars())
