"""The cache across four server processes: one computation for all who wait, and never an answer of the past."""

import asyncio
import json
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from app.core.config import Settings
from scripts.embedded import Valkey
from tests.cache_app_values import NEVER_COMMITTED, SLOW_LEASE, TABLES
from tests.conftest import connect
from tests.processes import running_api

pytestmark = pytest.mark.anyio

SERVERS = 4
SIMULTANEOUS = 1_000
COUNTERS = 10  # each of another owner, and one more that is never changed
MARGIN = 5.0  # seconds, for a machine that is busy with other tests

Clients = list[httpx2.AsyncClient]


@asynccontextmanager
async def clients_of(servers: list[str]) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        clients = [httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30) for url in servers]
        yield [await stack.enter_async_context(client) for client in clients]


@contextmanager
def many_open_files() -> Iterator[None]:
    """A thousand connections are more than many systems allow a process, unless it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * SIMULTANEOUS if hard == resource.RLIM_INFINITY else min(4 * SIMULTANEOUS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def counters(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database)
    try:
        await connection.execute(TABLES)
        rows = [(number, f"owner{number}") for number in range(1, COUNTERS + 2)]
        await connection.executemany("INSERT INTO counter VALUES ($1, $2)", rows)
        yield connection
    finally:
        await connection.close()


async def test_the_cache_on_four_servers(
    settings: Settings, database: str, valkey: Valkey, subtests: pytest.Subtests
) -> None:
    """One test for all of it: four servers take as many seconds to start. The last part ends one of them."""
    command = ("uvicorn", "tests.cache_app:app", "--port", "{port}", "--log-level", "warning")
    with many_open_files(), ExitStack() as stack:
        async with counters(database) as db:
            starting = (asyncio.to_thread(stack.enter_context, running_api(*command)) for _ in range(SERVERS))
            servers = await asyncio.gather(*starting)
            async with clients_of(servers) as clients:
                for part in (
                    partial(a_thousand_misses_are_one_computation, clients, db),
                    partial(a_change_meanwhile_makes_no_herd_of_them, clients, db),
                    partial(a_thousand_random_races_and_no_answer_of_the_past, clients),
                    partial(patterns_race_as_well, clients),
                    partial(lost_scripts_change_nothing, clients, valkey),
                    partial(another_computes_when_one_is_killed, clients, db),
                ):
                    with subtests.test(part.func.__name__):
                        await part()


# ---- One computation ----


async def a_thousand_misses_are_one_computation(clients: Clients, db: asyncpg.Connection) -> None:
    for expected in (0, 1):
        if expected:  # At once after a change.
            assert (await clients[expected].patch("counter/1")).json()["value"] == expected
        await db.execute("TRUNCATE computation")

        answers = await ask_at_once(clients, "slow/1", {"Wait-after-read": "0.5"})

        assert {head.split()[1] for head, _ in answers} == {b"200"}
        (body,) = {body for _, body in answers}
        assert json.loads(body)["value"] == expected
        assert await db.fetchval("SELECT count(*) FROM computation") == 1


async def a_change_meanwhile_makes_no_herd_of_them(clients: Clients, db: asyncpg.Connection) -> None:
    await db.execute("TRUNCATE computation")
    asking = asyncio.create_task(ask_at_once(clients, "slow/2", {"Wait-after-read": "1"}))
    while not await db.fetchval("SELECT count(*) FROM computation"):  # noqa: ASYNC110 -- it asks a server
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.4)  # All of them wait by now.
    assert (await clients[0].patch("counter/2")).status_code == 200

    answers = await asking

    computations = await db.fetchval("SELECT count(*) FROM computation")
    assert {head.split()[1] for head, _ in answers} == {b"200"}, computations
    assert computations <= 5 * SERVERS


async def ask_at_once(clients: Clients, path: str, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """A thousand requests over as many connections, all of which are made before: what comes back, head and body.

    Not with the client: a thousand of its requests begin over more than a second.
    """
    connections = await asyncio.gather(
        *(
            asyncio.open_connection(client.base_url.host, client.base_url.port)
            for client in clients
            for _ in range(SIMULTANEOUS // SERVERS)
        )
    )
    lines = [f"GET {clients[0].base_url.path}{path} HTTP/1.1", "Host: test", "Connection: close"]
    request = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()
    for _, writer in connections:
        writer.write(request)
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    return [(head, body) for head, _, body in (answer.partition(b"\r\n\r\n") for answer in answers)]


async def another_computes_when_one_is_killed(clients: Clients, db: asyncpg.Connection) -> None:
    """Ends one of the servers."""
    computation = 1.0  # seconds
    await db.execute("TRUNCATE computation")
    headers = {"Wait-after-read": str(computation)}
    started = time.monotonic()
    asked = [
        asyncio.gather(
            *(client.get(f"slow/{COUNTERS + 1}", headers=headers) for _ in range(20)), return_exceptions=True
        )
        for client in clients
    ]
    while (process := await db.fetchval("SELECT pid FROM computation")) is None:  # noqa: ASYNC110 -- it asks a server
        await asyncio.sleep(0.01)
    await asyncio.sleep(computation / 2)
    os.kill(process, signal.SIGKILL)

    answers = [await of_server for of_server in asked]

    assert time.monotonic() - started < SLOW_LEASE + computation + MARGIN
    survived = [of_server for of_server in answers if not any(isinstance(one, BaseException) for one in of_server)]
    assert len(survived) == SERVERS - 1
    contents = set()
    for answer in (answer for of_server in survived for answer in of_server):
        assert isinstance(answer, httpx2.Response)
        assert answer.status_code == 200
        contents.add(answer.content)
    assert len(contents) == 1
    assert await db.fetchval("SELECT count(*) FROM computation") == 2


# ---- Races ----


@dataclass
class Race:
    """Random requests about one resource, and the newest value that anybody was told of."""

    clients: Clients
    chance: random.Random
    reading: list[str]
    writing: str
    writing_in_vain: str | None = None
    acknowledged: int = 0
    violations: list[str] = field(default_factory=list)

    async def run(self, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.gather(self.write(), self.read(), self.read())
            await self.read(at_once=True)

    def some_client(self) -> httpx2.AsyncClient:
        return self.chance.choice(self.clients)

    def waits(self, *moments: str) -> dict[str, str]:
        return {
            f"Wait-{moment}": f"{self.chance.choice((0, 0, self.chance.uniform(0, 0.01))):.4f}" for moment in moments
        }

    async def some_time(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.012))

    async def write(self) -> None:
        client, headers, in_vain = self.some_client(), self.waits("before-commit"), self.chance.random() < 0.2
        await self.some_time()
        if in_vain and self.writing_in_vain:
            assert (await client.patch(self.writing_in_vain, headers=headers)).status_code == 409
            return
        answer = await client.patch(self.writing, headers=headers)
        assert answer.status_code == 200, answer.text
        self.acknowledged = max(self.acknowledged, answer.json()["value"])

    async def read(self, *, at_once: bool = False) -> None:
        client, path = self.some_client(), self.chance.choice(self.reading)
        headers = self.waits("before-read", "after-read")
        if not at_once:
            await self.some_time()
        known = self.acknowledged
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        value = answer.json()["value"]
        if value < known or value == NEVER_COMMITTED:
            self.violations.append(f"{path}: {value} after {known}, {answer.headers['X-Cache']}")


async def run_races(races: list[Race], rounds: int) -> None:
    await asyncio.gather(*(race.run(rounds // len(races)) for race in races))
    assert [violation for race in races for violation in race.violations] == []
    assert min(race.acknowledged for race in races) > rounds // len(races) // 2, "they have written"


def a_seed() -> int:
    seed = random.SystemRandom().randrange(2**32)
    print(f"the seed of these races: {seed}")  # noqa: T201 -- shown when the test fails
    return seed


async def a_thousand_random_races_and_no_answer_of_the_past(clients: Clients) -> None:
    await run_races(races_of_counters(clients, "counter/{}", "loaded/{}", "counter/{}?another=variant"), rounds=1_000)


def races_of_counters(clients: Clients, *reading: str) -> list[Race]:
    seed = a_seed()
    return [
        Race(
            clients,
            random.Random(seed + number),  # noqa: S311 -- no secret
            reading=[path.format(number) for path in reading],
            writing=f"counter/{number}",
            writing_in_vain=f"counter/{number}/in-vain",
        )
        for number in range(1, COUNTERS + 1)
    ]


async def patterns_race_as_well(clients: Clients) -> None:
    seed = a_seed()
    races = [
        Race(
            clients,
            random.Random(seed + number),  # noqa: S311 -- no secret
            reading=[f"owner/owner{number}/{kind}/{number}" for kind in ("counter", "loaded")],
            writing=f"owner/owner{number}",
        )
        for number in range(1, COUNTERS + 1)
    ]
    await run_races(races, rounds=100)


async def lost_scripts_change_nothing(clients: Clients, valkey: Valkey) -> None:
    async def keep_flushing() -> None:
        async with Redis(port=valkey.port) as redis:
            while True:
                await redis.script_flush()
                await asyncio.sleep(0.001)

    flushing = asyncio.create_task(keep_flushing())
    try:
        # What is read before the lease needs the order in which the scripts are done.
        await run_races(races_of_counters(clients, "loaded/{}"), rounds=400)
    finally:
        flushing.cancel()
