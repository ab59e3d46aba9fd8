"""The limiter's Valkey fails in every way, under load: no errors, hardly a delay, and limits that still hold."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import httpx2
import pytest
from redis import Redis

from app.core.config import Settings
from app.models.user import User
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.conftest import opened_session
from tests.helper import create_rate_limit, create_tier, create_user, signed_in
from tests.processes import process, wait_for_answer

pytestmark = pytest.mark.anyio

SERVERS = 2
LIMIT = 21  # of those who ask too much; odd, so that the servers' parts together are another number
PART = LIMIT // SERVERS
TOO_MANY = 30  # requests at once of one of those, to each server
MOST = LIMIT + SERVERS * PART  # passes in a minute with an outage: what Valkey counts, and what each server counts
ADDED = 0.05  # seconds that an answer may take longer
EXACT_AGAIN = 5.0  # seconds after Valkey is there
MARGIN = 2.0  # seconds, for a machine that is busy with other tests
EVERY = 0.02  # seconds between two requests of one caller
ME, HEALTH = "user/me/", "health"

Headers = dict[str, str]
Clients = list[httpx2.AsyncClient]


@dataclass
class Reading:
    phase: str
    path: str
    seconds: float


class Load:
    """Callers at a steady pace, far from their limit, and one at a time who is not, who notice errors and delays."""

    def __init__(self, clients: Clients, steady: list[Headers], greedy: Iterator[Headers]) -> None:
        self.clients = clients
        self.steady = steady
        self.greedy = greedy
        self.phase = "before"
        self.readings: list[Reading] = []
        self.passed = 0  # of the one who asks too much
        self.wrong: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        too_much = next(self.greedy)
        async with asyncio.TaskGroup() as load:
            tasks = [
                load.create_task(self.keep_asking(client, ME, who)) for client in self.clients for who in self.steady
            ]
            for client in self.clients:
                tasks.append(load.create_task(self.keep_asking(client, HEALTH, {})))
                tasks.append(load.create_task(self.keep_asking_too_much(client, too_much)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def keep_asking(self, client: httpx2.AsyncClient, path: str, headers: Headers) -> None:
        while True:
            phase, asked = self.phase, time.perf_counter()
            answer = await client.get(path, headers=headers)
            if phase == self.phase:
                self.readings.append(Reading(phase, path, time.perf_counter() - asked))
            if answer.status_code != 200:
                self.wrong.append(f"{phase}: {answer.status_code}")
            await asyncio.sleep(EVERY)

    async def keep_asking_too_much(self, client: httpx2.AsyncClient, headers: Headers) -> None:
        while True:
            answer = await client.get(ME, headers=headers)
            self.passed += was_let_through(answer)
            await asyncio.sleep(EVERY)

    async def ask_at_once(self) -> list[int]:
        """How many requests each server lets through of somebody new, who asks all of them for too much at once."""
        headers = next(self.greedy)
        asked = [asyncio.gather(*(client.get(ME, headers=headers) for _ in range(TOO_MANY))) for client in self.clients]
        return [sum(map(was_let_through, answers)) for answers in await asyncio.gather(*asked)]

    async def each_server_allows_its_part(self) -> None:
        assert await self.ask_at_once() == [PART] * SERVERS

    async def all_servers_allow_the_limit(self) -> None:
        assert sum(await self.ask_at_once()) == LIMIT

    async def until_exact(self) -> None:
        """Returns when all servers count together."""
        came_back = time.monotonic()
        while sum(await self.ask_at_once()) != LIMIT:
            assert time.monotonic() - came_back < EXACT_AGAIN + MARGIN
            await asyncio.sleep(0.2)

    def check(self) -> None:
        assert self.wrong == []
        assert LIMIT <= self.passed <= MOST
        for phase in dict.fromkeys(reading.phase for reading in self.readings):
            took, took_before = self.seconds(ME, phase), self.seconds(ME, "before")
            busier, busier_before = self.seconds(HEALTH, phase), self.seconds(HEALTH, "before")
            if len(took) < 20:
                continue  # Over too soon to tell.
            # What health takes longer, which is not limited, the machine has to answer for.
            machine = max(0.0, median(busier) - median(busier_before))
            assert median(took) < median(took_before) + machine + ADDED, phase
            machine = max(0.0, percentile(busier, 95) - percentile(busier_before, 95))
            slow = percentile(took_before, 95) + machine + ADDED
            assert sum(seconds > slow for seconds in took) <= max(8, len(took) // 20), phase

    def seconds(self, path: str, phase: str) -> list[float]:
        return [reading.seconds for reading in self.readings if (reading.path, reading.phase) == (path, phase)]


def was_let_through(answer: httpx2.Response) -> bool:
    assert answer.status_code in {200, 429}, answer.text
    if answer.status_code == 429:
        assert 0 < int(answer.headers["Retry-After"]) <= 60
    return answer.status_code == 200


def percentile(seconds: list[float], percent: int) -> float:
    return sorted(seconds)[len(seconds) * percent // 100]


# ---- Faults ----


async def stopped(valkey: Valkey, load: Load) -> None:
    await asyncio.to_thread(valkey.stop)
    load.phase = "stopped"
    try:
        await asyncio.sleep(0.5)
        await load.each_server_allows_its_part()
        await asyncio.sleep(0.5)
    finally:
        load.phase = "starting"
        await asyncio.to_thread(valkey.start)


async def restarted(valkey: Valkey, load: Load) -> None:
    load.phase = "restarting"
    await asyncio.to_thread(valkey.stop)
    await asyncio.to_thread(valkey.start)


async def hanging(valkey: Valkey, load: Load) -> None:
    """For longer than a connection is kept that hangs."""
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    load.phase = "hanging"
    try:
        await asyncio.sleep(0.5)
        await load.each_server_allows_its_part()
        await asyncio.sleep(2)
        await load.each_server_allows_its_part()
    finally:
        load.phase = "going on"
        valkey.process.send_signal(signal.SIGCONT)


async def hanging_for_a_moment(valkey: Valkey, load: Load) -> None:
    """It wakes to what was asked before, and answers to nobody."""
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    load.phase = "hanging for a moment"
    try:
        await asyncio.sleep(0.3)
        await load.each_server_allows_its_part()
    finally:
        valkey.process.send_signal(signal.SIGCONT)


async def read_only(valkey: Valkey, load: Load) -> None:
    with Redis(port=valkey.port) as redis:
        redis.replicaof("127.0.0.1", str(free_port()))
        load.phase = "read-only"
        try:
            await load.each_server_allows_its_part()
            await asyncio.sleep(1)
            await load.each_server_allows_its_part()
        finally:
            load.phase = "writable"
            redis.replicaof("NO", "ONE")


async def without_scripts(valkey: Valkey, load: Load) -> None:
    with Redis(port=valkey.port) as redis:
        load.phase = "without scripts"
        redis.script_flush()
        await load.all_servers_allow_the_limit()
        asking = asyncio.create_task(load.all_servers_allow_the_limit())
        while not asking.done():
            redis.script_flush()
            await asyncio.sleep(0.002)
        await asking
        load.phase = "with scripts"


Fault = Callable[[Valkey, Load], Awaitable[None]]
FAULTS: list[Fault] = [stopped, restarted, hanging, hanging_for_a_moment, read_only, without_scripts]


async def test_limits_hold_whatever_happens_to_valkey(
    settings: Settings, own_valkey: Valkey, subtests: pytest.Subtests
) -> None:
    """One test for all of it: the servers take seconds to start. The last part ends one of them."""
    steady = [signed_in(user, settings) for user in await users(settings, 1_000_000, count=2)]
    greedy = iter([signed_in(user, settings) for user in await users(settings, LIMIT, count=200)])
    async with servers() as (processes, clients):
        for fault in FAULTS:
            with subtests.test(fault.__name__):
                await until_each_knows_all(clients)
                load = Load(clients, steady, greedy)
                async with load.running():
                    await asyncio.sleep(0.5)
                    await load.all_servers_allow_the_limit()
                    await fault(own_valkey, load)
                    await load.until_exact()
                    load.phase = "after"
                    await asyncio.sleep(0.3)
                    await load.all_servers_allow_the_limit()
                load.check()
        with subtests.test("a server is killed"):
            await a_killed_server_leaves_nothing(own_valkey, Load(clients, steady, greedy), processes)


async def a_killed_server_leaves_nothing(valkey: Valkey, load: Load, processes: list[subprocess.Popen[bytes]]) -> None:
    """In the middle of what many ask it for."""
    dying, other = load.clients
    asking = [
        asyncio.create_task(client.get(ME, headers=headers))
        for client, headers in zip(cycle(load.clients), [next(load.greedy) for _ in range(50)] * 4, strict=False)
    ]
    while not any(task.done() for task in asking):  # noqa: ASYNC110 -- it asks another process
        await asyncio.sleep(0.001)
    os.kill(processes[0].pid, signal.SIGKILL)
    with Redis(port=valkey.port) as redis:
        keys = list(redis.scan_iter())
        assert sum(key.startswith(b"rate:{user:") for key in keys) > 1
        assert [key for key in keys if redis.ttl(key) == -1] == []

        answers = await asyncio.gather(*asking, return_exceptions=True)

        assert any(isinstance(answer, httpx2.TransportError) for answer in answers), "it was in the middle of it"
        assert {answer.status_code for answer in answers if isinstance(answer, httpx2.Response)} == {200}
        assert not any(isinstance(answer, BaseException) for answer in answers[1::2]), "the other one's"
        assert [key for key in redis.scan_iter() if redis.ttl(key) == -1] == []
    load.clients = [other]
    await load.all_servers_allow_the_limit()
    with pytest.raises(httpx2.TransportError):
        await dying.get(HEALTH)


# ---- What it takes ----


@pytest.fixture
def own_valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """A Valkey of this test alone, for the limiter and the cache, which share a connection then."""
    with scratch_folder() as folder:
        port = free_port()
        for use in ("RATE_LIMIT", "CACHE"):
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(port))
        with Valkey(folder / "valkey", port=port) as server:
            yield server


async def users(settings: Settings, limit: int, count: int) -> list[User]:
    """Users of a new tier with this limit per minute."""
    async with opened_session(settings) as db:
        tier = await create_tier(db, f"{limit} a minute")
        await create_rate_limit(db, tier, limit=limit)
        return [await create_user(db, tier_id=tier.id) for _ in range(count)]


@asynccontextmanager
async def servers() -> AsyncIterator[tuple[list[subprocess.Popen[bytes]], Clients]]:
    ports = [free_port() for _ in range(SERVERS)]
    urls = [f"http://127.0.0.1:{port}/api/v1/" for port in ports]
    command = ("uvicorn", "src.app.main:app", "--log-level", "warning", "--port")
    with ExitStack() as stack:
        started = [stack.enter_context(process(*command, str(port))) for port in ports]
        for url, server in zip(urls, started, strict=True):
            await asyncio.to_thread(wait_for_answer, f"{url}{HEALTH}", server)
        async with AsyncExitStack() as clients:
            yield (
                started,
                [await clients.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30)) for url in urls],
            )


async def until_each_knows_all(clients: Clients) -> None:
    """Returns when each server has heard of the others, with whom it shares the limits."""
    async with asyncio.timeout(10):
        for client in clients:
            while await processes_known_to(client) != SERVERS:  # noqa: ASYNC110 -- it asks another process
                await asyncio.sleep(EVERY)


async def processes_known_to(client: httpx2.AsyncClient) -> int:
    metrics = (await client.get(client.base_url.join("/metrics"))).text
    (value,) = (line.split()[1] for line in metrics.splitlines() if line.startswith("slipway_rate_limit_processes "))
    return int(float(value))
