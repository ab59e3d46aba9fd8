"""A replica for what is only read, and PgBouncer in transaction mode: real servers, and two of ours."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from urllib.parse import quote

import asyncpg
import httpx2
import pytest
from redis import Redis

from app.core.config import Settings
from app.models.user import User
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from tests.conftest import connect, opened_session
from tests.helper import create_superuser, create_user, signed_in
from tests.postgres_topologies import Standby, pgbouncer_before, standby_of
from tests.processes import BIN, ROOT, running_api, running_worker

pytestmark = pytest.mark.anyio

Clients = list[httpx2.AsyncClient]

PERSONS = 24  # at once
JOBS = 8  # of them have one


@asynccontextmanager
async def two_servers() -> AsyncIterator[Clients]:
    """Clients of two servers of ours."""
    with ExitStack() as stack:
        starting = (asyncio.to_thread(stack.enter_context, running_api()) for _ in range(2))
        urls = await asyncio.gather(*starting)
        async with AsyncExitStack() as clients:
            yield [
                await clients.enter_async_context(httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30))
                for url in urls
            ]


# ---- A replica ----


@pytest.fixture
def own_valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """For this test alone, which stops it."""
    with scratch_folder() as folder:
        port = free_port()
        for use in ("RATE_LIMIT", "CACHE", "QUEUE"):
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(port))
        with Valkey(folder / "valkey", port=port) as server:
            yield server


async def count_of_users(client: httpx2.AsyncClient, headers: dict[str, str] | None = None) -> int:
    answer = await client.get("users", headers=headers)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["total_count"])


async def reads(clients: Clients) -> dict[str, int]:
    """How many sessions were answered by whom, by all servers together."""
    found: dict[str, int] = {}
    for client in clients:
        metrics = (await client.get(client.base_url.join("/metrics"))).text
        for line in metrics.splitlines():
            if line.startswith("slipway_database_reads_total{"):
                who, value = line.split('"')[1], float(line.split()[-1])
                found[who] = found.get(who, 0) + int(value)
    return found


async def caught_up(standby: Standby, database: str) -> None:
    """Returns when the replica has all that is committed now."""
    primary = await connect(database)
    written = await primary.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'")
    await primary.close()
    replica = await _connect_to(standby, database)
    async with asyncio.timeout(20):
        while await replica.fetchval("SELECT pg_last_wal_replay_lsn() - '0/0'") < written:  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.01)
    await replica.close()


async def _connect_to(standby: Standby, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="127.0.0.1",
        port=standby.port,
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        database=database,
    )


async def test_reads_go_to_the_replica_and_everybody_sees_what_they_wrote(
    settings: Settings,
    database: str,
    postgres: Postgres,
    own_valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """One test for all of it: a replica and two servers take seconds to start."""
    async with opened_session(settings) as db:
        admin = signed_in(await create_superuser(db), settings)
        ada, bob = [await create_user(db) for _ in range(2)]
    user, password = os.environ["POSTGRES_USER"], quote(os.environ["POSTGRES_PASSWORD"])
    with standby_of(postgres) as standby:
        url = f"postgresql://{user}:{password}@127.0.0.1:{standby.port}/{database}"
        monkeypatch.setenv("POSTGRES_READ_URL", url)
        await caught_up(standby, database)
        async with two_servers() as clients:
            with subtests.test("the replica answers"):
                before = await reads(clients)
                assert await count_of_users(clients[0]) == await count_of_users(clients[1]) == 3
                assert await count_of_users(clients[0], signed_in(ada, settings)) == 3
                assert (await reads(clients)).get("replica", 0) == before.get("replica", 0) + 3
                assert (await clients[0].get("ready")).json()["dependencies"]["postgres_read"] == "up"
            with subtests.test("whoever wrote sees it on every server, while the replica lags"):
                await what_is_written_is_seen(clients, standby, settings, ada, bob, database)
            with subtests.test("it is used again once it has caught up"):
                standby.resume()
                await caught_up(standby, database)
                before = await reads(clients)
                assert await count_of_users(clients[1], signed_in(ada, settings)) == 4
                assert (await reads(clients))["replica"] == before["replica"] + 1
            with subtests.test("a login that has just begun is in the list of logins"):
                standby.pause()
                form = {"username": bob.username, "password": "correct horse battery"}
                token = (await clients[0].post("login", data=form)).json()["access_token"]
                sessions = await clients[1].get("user/me/sessions", headers={"Authorization": f"Bearer {token}"})
                assert sessions.json()["total_count"] == 2
                standby.resume()
            with subtests.test("without Redis/Valkey nobody can tell who has written: the primary answers"):
                await without_valkey(clients, own_valkey, standby, admin, ada, database)
            with subtests.test("without the replica the primary answers, and it is only degraded"):
                await without_replica(clients, standby)


async def what_is_written_is_seen(
    clients: Clients, standby: Standby, settings: Settings, ada: User, bob: User, database: str
) -> None:
    standby.pause()
    job = await clients[0].post("tasks/task", params={"message": "hello"}, headers=signed_in(ada, settings))
    for client in clients:
        tasks = (await client.get("tasks", headers=signed_in(ada, settings))).json()
        assert [task["id"] for task in tasks["data"]] == [job.json()["id"]]
    changed = await clients[0].patch(
        f"user/{ada.username}", json={"name": "Ada Lovelace"}, headers=signed_in(ada, settings)
    )
    assert changed.status_code == 200, changed.text
    for client in clients:
        listed = (await client.get("users", params={"items_per_page": 100}, headers=signed_in(ada, settings))).json()
        assert "Ada Lovelace" in {one["name"] for one in listed["data"]}
    # Somebody at another address, who has written nothing, may see what was true a moment ago: that is the replica's.
    async with httpx2.AsyncClient(
        base_url=clients[0].base_url, transport=httpx2.AsyncHTTPTransport(local_address="127.0.0.9")
    ) as stranger:
        listed = (await stranger.get("users", params={"items_per_page": 100}, headers=signed_in(bob, settings))).json()
    assert "Ada Lovelace" not in {one["name"] for one in listed["data"]}
    # Who is not signed in is known by the address.
    new = {"name": "New", "username": "newcomer", "email": "new@example.com", "password": "correct horse battery"}
    assert (await clients[0].post("user", json=new)).status_code == 201
    assert await count_of_users(clients[1]) == 4


async def without_valkey(
    clients: Clients, valkey: Valkey, standby: Standby, admin: dict[str, str], ada: User, database: str
) -> None:
    before = await reads(clients)
    await asyncio.to_thread(valkey.stop)
    try:
        assert await count_of_users(clients[0]) == 4
        started = time.monotonic()
        answer = await clients[0].patch(f"user/{ada.username}", json={"name": "Ada King"}, headers=admin)
        assert answer.status_code == 200
        assert time.monotonic() - started < 20
        assert (await reads(clients))["unknown"] > before.get("unknown", 0)
    finally:
        await asyncio.to_thread(valkey.start)
    async with asyncio.timeout(20):
        while "replica" not in (now := await reads(clients)) or now["replica"] == before["replica"]:
            await count_of_users(clients[0])
            await asyncio.sleep(0.1)
    listed = (await clients[0].get("users", params={"items_per_page": 100}, headers=admin)).json()
    assert "Ada King" in {one["name"] for one in listed["data"]}


async def without_replica(clients: Clients, standby: Standby) -> None:
    await asyncio.to_thread(standby.stop)
    for client in clients:
        assert await count_of_users(client) == 4
        ready = (await client.get("ready")).json()
        assert ready["status"] == "degraded"
        assert ready["dependencies"]["postgres_read"] == "down"
    before = await reads(clients)
    await asyncio.to_thread(standby.start)
    async with asyncio.timeout(20):
        while (await reads(clients))["replica"] == before["replica"]:
            await count_of_users(clients[0])
            await asyncio.sleep(0.1)


# ---- PgBouncer ----


async def test_everything_works_behind_pgbouncer_in_transaction_mode(
    empty_database: str, postgres: Postgres, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis(port=valkey.port) as redis:
        redis.flushall()
    with pgbouncer_before(postgres.port) as port, monkeypatch.context() as monkeypatch:
        monkeypatch.setenv("POSTGRES_PORT", str(port))
        monkeypatch.setenv("POSTGRES_POOL_MODE", "transaction")
        for folder, *command in (
            ("src", "alembic", "upgrade", "head"),
            ("src", "alembic", "upgrade", "head"),  # There is nothing to do any more.
            (".", "python", "-m", "src.scripts.create_first_superuser"),
        ):
            done = await asyncio.create_subprocess_exec(BIN / command[0], *command[1:], cwd=ROOT / folder)
            assert await done.wait() == 0
        with running_worker(valkey.port, "src.app.core.worker.settings.WorkerSettings"):
            async with two_servers() as clients:
                await asyncio.gather(*(one_persons_day(clients, number) for number in range(PERSONS)))
        assert await statements_left(port) == 0


async def statements_left(port: int) -> int:
    """How many prepared statements are on a connection of PgBouncer's that nobody uses any more."""
    db = await asyncpg.connect(
        host="127.0.0.1",
        port=port,
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        database=os.environ["POSTGRES_DB"],
        statement_cache_size=0,
    )
    try:  # In one step: without the extended protocol, which would prepare this one.
        await db.execute(
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_prepared_statements) THEN RAISE division_by_zero; END IF; END $$"
        )
    except asyncpg.DivisionByZeroError:
        return 1
    finally:
        await db.close()
    return 0


async def one_persons_day(clients: Clients, number: int) -> None:
    """More at once than PgBouncer has connections: each transaction gets another one."""
    urls = [client.base_url for client in clients]
    name = f"person{number}"
    new = {"name": "A", "username": name, "email": f"{name}@example.com", "password": "correct horse battery"}
    async with (
        httpx2.AsyncClient(base_url=urls[number % 2], timeout=30) as here,
        httpx2.AsyncClient(base_url=urls[1 - number % 2], timeout=30) as there,
    ):
        assert (await here.post("user", json=new)).status_code == 201
        form = {"username": name, "password": new["password"]}
        token = (await there.post("login", data=form)).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(5):
            assert (await here.get("user/me/", headers=headers)).status_code == 200
            assert (await there.get("users")).status_code == 200
            assert (await here.get("user/me/sessions", headers=headers)).json()["total_count"] == 1
            assert (await there.patch(f"user/{name}", json={"name": "B"}, headers=headers)).status_code == 200
            assert (await here.get(f"user/{name}")).json()["name"] == "B"
        if number < JOBS:
            task = (await here.post("tasks/task", params={"message": "hello"}, headers=headers)).json()["id"]
            await until_complete(there, task, headers)
        assert (await here.post("logout", headers=headers)).status_code == 200
        assert (await there.get("user/me/", headers=headers)).status_code == 401


async def until_complete(client: httpx2.AsyncClient, task: str, headers: dict[str, str]) -> None:
    async with asyncio.timeout(40):
        while (status := (await client.get(f"tasks/task/{task}", headers=headers)).json()["status"]) != "complete":
            assert status in {"queued", "in_progress"}
            await asyncio.sleep(0.1)
