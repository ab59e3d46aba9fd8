"""Workers and servers are killed, stopped and started again in the middle of it all: each job has its effect once."""

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import count
from random import SystemRandom
from statistics import median
from typing import Any

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI

from app.core.config import Settings
from app.core.utils import queue
from scripts.embedded import Valkey, free_port
from tests.conftest import connect
from tests.jobs_app import TABLES
from tests.processes import IN_FULL, process, wait_for_answer, wait_for_worker

pytestmark = pytest.mark.anyio

WORKER = ("arq", "tests.jobs_app.WorkerSettings")
LEASE = 3.0  # seconds: shorter than in operation, and long enough to be renewed by a machine that is busy
MARGIN = 10.0  # seconds, for such a machine
PATIENCE = 60.0  # seconds until a test gives up on what has to come

ORDERS = 10_000 if IN_FULL else 600
CLIENTS = 12
KILLS = 24 if IN_FULL else 6
RESTARTS = 50 if IN_FULL else 4

CLAIMS_THAT_WAIT = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE job SET state%'"
)

some = SystemRandom()


@pytest.fixture
async def rows(database: str) -> AsyncIterator[asyncpg.Connection]:
    """The test's view of what jobs have done, in tables that are there before any of them."""
    connection = await connect(database)
    for table in TABLES:
        await connection.execute(table)
    yield connection
    await connection.close()


@pytest.fixture(autouse=True)
def _options_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_LEASE", str(LEASE))
    monkeypatch.setenv("QUIET", "yes")


# ---- kill -9 at random ----


async def test_ten_thousand_jobs_are_done_once_each_while_workers_and_servers_are_killed(
    settings: Settings, rows: asyncpg.Connection
) -> None:
    ports = [free_port() for _ in range(2)]
    servers = [("uvicorn", "tests.jobs_app:app", "--port", str(port), "--log-level", "warning") for port in ports]
    async with supervised(*servers, *[WORKER] * 3) as supervisor:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url, server in zip(urls, supervisor.processes, strict=False):
            await asyncio.to_thread(wait_for_answer, f"{url}/api/v1/health", server)
        orders = Orders(urls, supervisor)
        await orders.place()
        await until_none_is_open(rows)

    placed = await numbers(rows, "placed")
    assert await numbers(rows, "delivered") == placed, "each has its effect, once"
    assert await states(rows) == {"succeeded": len(placed)}
    assert orders.confirmed <= set(placed)
    assert orders.refused.isdisjoint(placed)
    assert orders.answers[201] + orders.answers[409] + orders.answers["cut"] == ORDERS, orders.answers
    assert orders.answers["cut"] > 0, "servers were killed with requests in their hands"
    assert len(placed) > ORDERS / 2
    assert await rows.fetchval("SELECT count(*) FROM begun WHERE attempt > 1"), "so were workers, with jobs"


class Orders:
    """Customers, who place one order after another, and do not try again when they do not know what came of it."""

    def __init__(self, urls: list[str], supervisor: "Supervisor") -> None:
        self.urls = urls
        self.supervisor = supervisor
        self.numbers = iter(range(ORDERS))
        self.kill_at = set(some.sample(range(ORDERS), KILLS))
        self.answers = Counter[int | str]()
        self.confirmed: set[int] = set()
        self.refused: set[int] = set()

    async def place(self) -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(httpx2.AsyncClient(base_url=self.urls[number % 2], timeout=30))
                for number in range(CLIENTS)
            ]
            async with asyncio.TaskGroup() as customers:
                for client in clients:
                    customers.create_task(self._place_some(client))

    async def _place_some(self, client: httpx2.AsyncClient) -> None:
        for number in self.numbers:
            if number in self.kill_at:
                self.supervisor.kill_one()
            answer = await self._place(client, number)
            self.answers[answer] += 1
            if answer == 201:
                self.confirmed.add(number)
            elif answer == 409:
                self.refused.add(number)

    async def _place(self, client: httpx2.AsyncClient, number: int) -> int | str:
        path = f"/orders/{number}?fail={number % 3 == 0}&seconds={some.choice((0, 0, 0, 0, 0.2))}"
        while True:
            try:
                return (await client.post(path)).status_code
            except httpx2.ConnectError:  # It was not asked yet.
                await asyncio.sleep(0.1)
            except httpx2.TransportError:
                return "cut"


class Supervisor:
    """Starts what was killed again, as systemd would."""

    def __init__(self, commands: tuple[tuple[str, ...], ...], stack: ExitStack) -> None:
        self._commands = commands
        self._stack = stack
        self._bag: list[int] = []
        self.processes = [self._start(command) for command in commands]

    def _start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return self._stack.enter_context(process(*command, stop=signal.SIGKILL))

    def kill_one(self) -> None:
        """One that runs, at random, and none again before each of the others had its turn."""
        self._bag = self._bag or some.sample(range(len(self.processes)), len(self.processes))
        running = [number for number in self._bag if self.processes[number].poll() is None]
        if running:
            self._bag.remove(running[0])
            os.killpg(self.processes[running[0]].pid, signal.SIGKILL)

    async def keep_running(self) -> None:
        while True:
            for number, one in enumerate(self.processes):
                if one.poll() is not None:
                    assert one.returncode == -signal.SIGKILL, "it ended by itself"
                    self.processes[number] = self._start(self._commands[number])
            await asyncio.sleep(0.1)


@asynccontextmanager
async def supervised(*commands: tuple[str, ...]) -> AsyncIterator[Supervisor]:
    with ExitStack() as stack:
        supervisor = Supervisor(commands, stack)
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(supervisor.keep_running())
            yield supervisor
            keeping.cancel()


# ---- One worker is killed ----


async def test_the_job_of_a_killed_worker_is_done_again_within_its_lease(
    app: FastAPI, rows: asyncpg.Connection, valkey: Valkey
) -> None:
    async with workers(valkey, 2) as (one, other):
        await queue.pool.enqueue_job("deliver", 1, 1.5)
        await until(rows, "SELECT count(*) FROM begun")
        doing, idle = (one, other) if await has_job(rows, one) else (other, one)
        os.killpg(doing.pid, signal.SIGKILL)
        killed = await rows.fetchval("SELECT clock_timestamp()")
        await until_none_is_open(rows)

        assert await has_job(rows, idle)
    assert await attempts(rows, "begun") == [(1, 1), (1, 2)]
    assert await attempts(rows, "delivered") == [(1, 2)]
    again = await rows.fetchval("SELECT at FROM begun WHERE attempt = 2")
    assert (again - killed).total_seconds() < LEASE + MARGIN


async def test_a_job_that_kills_its_worker_is_a_dead_letter_in_the_end_and_holds_nobody_up(
    app: FastAPI, rows: asyncpg.Connection, valkey: Valkey
) -> None:
    async with supervised(WORKER, WORKER) as supervisor:
        for worker in supervisor.processes:
            await asyncio.to_thread(wait_for_worker, worker, valkey.port)
        poison = await queue.pool.enqueue_job("kill_worker", -1)
        assert poison is not None
        numbers_of_others = count()
        while await state_of(rows, poison.job_id) in {"queued", "running"}:
            await queue.pool.enqueue_job("deliver", next(numbers_of_others))
            await asyncio.sleep(0.05)
        await until_none_is_open(rows)

    assert await rows.fetch("SELECT attempt FROM begun WHERE number = -1 ORDER BY at") == [(1,), (2,), (3,)]
    state, error = await rows.fetchrow("SELECT state, error FROM job WHERE id = $1", poison.job_id)
    assert state == "dead"
    assert "worker was lost" in error
    others = next(numbers_of_others)
    assert await numbers(rows, "delivered") == list(range(others))
    assert await states(rows) == {"succeeded": others, "dead": 1}
    waits = [
        row["seconds"]
        for row in await rows.fetch(
            "SELECT extract(epoch FROM finished_at - created_at)::float AS seconds FROM job WHERE function = 'deliver'"
        )
    ]
    assert median(waits) < LEASE, "they did not wait for its lease"


# ---- Workers are stopped ----


async def test_a_job_that_ends_within_the_grace_is_finished_by_the_worker_that_stops(
    app: FastAPI, rows: asyncpg.Connection, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = 15
    monkeypatch.setenv("COMPLETION_WAIT", str(grace))
    async with workers(valkey, 1) as (worker,):
        await queue.pool.enqueue_job("deliver", 1, 1.0)
        await until(rows, "SELECT count(*) FROM begun")
        told = time.monotonic()
        await stop(worker)

        assert time.monotonic() - told < grace, "it does not wait for longer than it has to"
        assert await has_job(rows, worker)
    assert await attempts(rows, "delivered") == [(1, 1)]
    assert await states(rows) == {"succeeded": 1}


@pytest.mark.parametrize("function", ["deliver", "deliver_by_statement"])
async def test_a_job_that_takes_longer_than_the_grace_is_put_back_and_done_by_another_worker(
    function: str, app: FastAPI, rows: asyncpg.Connection, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLETION_WAIT", "1")
    async with workers(valkey, 1) as (stopping,):
        await queue.pool.enqueue_job(function, 1, 2.5)
        await until(rows, "SELECT count(*) FROM begun")
        told = time.monotonic()
        await stop(stopping)

        assert time.monotonic() - told < 1 + MARGIN
    assert await rows.fetchrow("SELECT state, attempt FROM job") == ("queued", 0), "it is no attempt that counts"
    assert await numbers(rows, "delivered") == []
    async with workers(valkey, 1) as (another,):
        await until_none_is_open(rows)

        assert await has_job(rows, another)
    assert await attempts(rows, "begun") == [(1, 1), (1, 1)]
    assert await attempts(rows, "delivered") == [(1, 1)]


async def test_a_worker_that_is_told_to_stop_while_it_claims_a_job_stops_and_leaves_it_to_others(
    app: FastAPI, rows: asyncpg.Connection, database: str, valkey: Valkey
) -> None:
    locking = await connect(database)
    async with workers(valkey, 1) as (stopping,):
        await queue.pool.enqueue_job("deliver", 1, _defer_by=1)
        async with locking.transaction():
            await locking.execute("LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE")
            await until(rows, CLAIMS_THAT_WAIT)
            await stop(stopping)
    await locking.close()
    assert await numbers(rows, "begun") == []
    async with workers(valkey, 1):
        await until_none_is_open(rows)
    assert await attempts(rows, "delivered") == [(1, 1)]


async def test_fifty_rolling_restarts_lose_no_job_and_do_none_twice(
    app: FastAPI, rows: asyncpg.Connection, database: str, valkey: Valkey
) -> None:
    numbers_of_jobs = count()

    async def keep_enqueueing() -> None:
        while True:
            await queue.pool.enqueue_job("deliver", next(numbers_of_jobs), some.uniform(0, 0.3))
            await asyncio.sleep(0.02)

    with ExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            enqueueing = group.create_task(keep_enqueueing())
            two = [group.create_task(restart_again_and_again(stack, database, valkey)) for _ in range(2)]
            interrupted = await asyncio.gather(*two)
            enqueueing.cancel()
        await until_none_is_open(rows)

    jobs = next(numbers_of_jobs)
    assert await attempts(rows, "delivered") == [(number, 1) for number in range(jobs)]
    assert await states(rows) == {"succeeded": jobs}
    assert sum(interrupted) > RESTARTS / 2, "workers were in the middle of jobs"


async def restart_again_and_again(stack: ExitStack, database: str, valkey: Valkey) -> int:
    """Stops half as many workers as there are restarts, each when its successor works, and leaves one that works.

    That one's successor starts meanwhile. Returns: how many jobs they had when they were told.
    """
    had = 0
    rows = await connect(database)
    worker, successor = (stack.enter_context(process(*WORKER)) for _ in range(2))
    await asyncio.to_thread(wait_for_worker, worker, valkey.port)
    for left in reversed(range(RESTARTS // 2)):
        await asyncio.to_thread(wait_for_worker, successor, valkey.port)
        next_one = stack.enter_context(process(*WORKER)) if left else successor
        had += await rows.fetchval(
            "SELECT count(*) FROM job WHERE state = 'running' AND worker LIKE $1", f"%:{worker.pid}:%"
        )
        await stop(worker)
        worker, successor = successor, next_one
    await rows.close()
    return had


# ---- What it takes ----


@asynccontextmanager
async def workers(valkey: Valkey, how_many: int) -> AsyncIterator[list[subprocess.Popen[bytes]]]:
    """So many workers, once they take jobs."""
    with ExitStack() as stack:
        started = [stack.enter_context(process(*WORKER)) for _ in range(how_many)]
        for worker in started:
            await asyncio.to_thread(wait_for_worker, worker, valkey.port)
        yield started


async def stop(worker: subprocess.Popen[bytes]) -> None:
    """Tells a worker to stop, as a deployment does, and waits until it has ended well."""
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, PATIENCE) == 0


async def until(rows: asyncpg.Connection, question: str) -> None:
    """Returns once the answer is neither false nor 0."""
    async with asyncio.timeout(PATIENCE):
        while not await rows.fetchval(question):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)


async def until_none_is_open(rows: asyncpg.Connection) -> None:
    await until(rows, "SELECT NOT EXISTS (SELECT FROM job WHERE state IN ('queued', 'running'))")


async def has_job(rows: asyncpg.Connection, worker: subprocess.Popen[bytes]) -> bool:
    """Whether the one job there is was last this worker's."""
    name = await rows.fetchval("SELECT worker FROM job")
    return str(name).split(":")[1] == str(worker.pid)


async def numbers(rows: asyncpg.Connection, table: str) -> list[int]:
    return [number for (number,) in await rows.fetch(f"SELECT number FROM {table} ORDER BY number")]  # noqa: S608


async def attempts(rows: asyncpg.Connection, table: str) -> list[tuple[int, int]]:
    found = await rows.fetch(f"SELECT number, attempt FROM {table} ORDER BY number, attempt")  # noqa: S608
    return [(number, attempt) for number, attempt in found]


async def states(rows: asyncpg.Connection) -> dict[str, int]:
    return dict(await rows.fetch("SELECT state, count(*) FROM job GROUP BY state"))


async def state_of(rows: asyncpg.Connection, job_id: str) -> Any:
    return await rows.fetchval("SELECT state FROM job WHERE id = $1", job_id)
