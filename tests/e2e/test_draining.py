"""SIGTERM: the server says that it is not ready, finishes what it has accepted, and ends with exit code 0."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from app.core.config import Settings
from scripts.embedded import free_port
from tests.conftest import connect
from tests.processes import ROOT, process, wait_for_answer

pytestmark = pytest.mark.anyio

GRACE = 30  # seconds, which is what Kubernetes gives; Docker's 10 are raised in the compose files
ACCEPTED = 20  # requests that the server is at when it is told to stop
COMMANDS = [
    "uvicorn app.main:app --port {port} --timeout-graceful-shutdown 20",
    "gunicorn app.main:app -w 2 -k uvicorn.workers.UvicornWorker -b 127.0.0.1:{port}",
    "gunicorn app.main:app -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}",
]


@asynccontextmanager
async def server(command: str) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx2.AsyncClient]]:
    port = free_port()
    with process(*command.format(port=port).split(), cwd=ROOT / "src") as started:
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_for_answer, f"{url}/api/v1/health", started)
        async with httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30) as client:
            yield started, client


async def exit_code_of(started: subprocess.Popen[bytes]) -> int:
    async with asyncio.timeout(GRACE):
        return await asyncio.to_thread(started.wait)


@asynccontextmanager
async def users_locked(database: str) -> AsyncIterator[asyncio.Event]:
    """Whoever reads users waits, until the event is set."""
    db = await connect(database)
    release = asyncio.Event()
    transaction = db.transaction()
    await transaction.start()
    await db.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')

    async def end() -> None:
        await release.wait()
        await transaction.rollback()

    ending = asyncio.create_task(end())
    try:
        yield release
    finally:
        release.set()
        await ending
        await db.close()


async def until_waiting(database: str, count: int) -> None:
    """Returns when so many statements wait for a lock."""
    db = await connect(database)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(20):
        while await db.fetchval(waiting) < count:  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.02)
    await db.close()


@pytest.mark.parametrize("command", COMMANDS)
async def test_what_was_accepted_is_finished(settings: Settings, database: str, command: str) -> None:
    async with server(command) as (started, client), users_locked(database) as release:
        asking = [asyncio.create_task(client.get("users")) for _ in range(ACCEPTED)]
        # Each process has ten connections to the database: the others wait for one of those.
        await until_waiting(database, count=2)
        await asyncio.sleep(0.3)
        started.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert started.poll() is None
        release.set()

        answers = await asyncio.gather(*asking)

        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert await exit_code_of(started) == 0


@pytest.mark.parametrize("command", COMMANDS[:2])
async def test_it_is_not_ready_first_and_serves_on_until_its_connections_are_used_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "2")
    async with server(command.replace("-w 2", "-w 1")) as (started, client):
        assert (await client.get("ready")).status_code == 200
        told = time.monotonic()
        started.send_signal(signal.SIGTERM)
        async with asyncio.timeout(1.9):
            while (ready := await client.get("ready")).status_code == 200:  # noqa: ASYNC110 -- it asks another process
                await asyncio.sleep(0.02)
        assert ready.status_code == 503
        assert ready.json()["detail"] == "The server is stopping."
        assert "Retry-After" in ready.headers
        async with httpx2.AsyncClient(base_url=client.base_url) as newcomer:
            assert (await newcomer.get("health")).status_code == 200, "whoever has not noticed is served"

        await until_it_takes_no_more(client)
        assert time.monotonic() - told > 2
        # On the connection that is there, one more is answered; it is the last one.
        last = await client.get("health")
        assert last.status_code == 200
        assert last.headers["connection"] == "close"
        assert await exit_code_of(started) == 0


async def test_without_a_delay_it_uses_up_its_connections_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    async with server(COMMANDS[0]) as (started, client):
        assert (await client.get("health")).status_code == 200
        started.send_signal(signal.SIGTERM)
        await until_it_takes_no_more(client)
        last = await client.get("health")
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert await exit_code_of(started) == 0


async def test_ctrl_c_ends_the_waiting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "60")
    for signals in ([signal.SIGINT], [signal.SIGTERM, signal.SIGINT]):
        async with server(COMMANDS[0]) as (started, _):
            for number in signals:
                started.send_signal(number)
                await asyncio.sleep(0.3)
            await exit_code_of(started)


async def test_a_signal_to_the_whole_group_is_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd sends it to all processes of a service, and gunicorn passes it on to those that have it already."""
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "2")
    async with server(COMMANDS[2]) as (started, client):
        told = time.monotonic()
        os.killpg(started.pid, signal.SIGTERM)
        await asyncio.sleep(1)
        assert (await client.get("health")).status_code == 200
        assert await exit_code_of(started) == 0
        assert time.monotonic() - told > 2


async def test_a_signal_before_the_start_is_over_ends_it(settings: Settings, database: str) -> None:
    """The start waits for the rules of the limits."""
    db = await connect(database)
    async with db.transaction():
        await db.execute("LOCK TABLE rate_limit IN ACCESS EXCLUSIVE MODE")
        with process(*COMMANDS[0].format(port=free_port()).split(), cwd=ROOT / "src") as started:
            await until_waiting(database, count=1)
            started.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            await db.execute("ROLLBACK; BEGIN")
            await exit_code_of(started)
    await db.close()


@pytest.mark.parametrize("command", [f"{COMMANDS[0]} --limit-max-requests 20", f"{COMMANDS[2]} --max-requests 20"])
async def test_a_process_that_has_served_enough_uses_up_its_connections(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """gunicorn starts another one: a proxy that holds a connection to the old one loses no request."""
    monkeypatch.setenv("ENVIRONMENT", "staging")
    command = command.replace("-w 2", "-w 1 --max-requests-jitter 0")
    async with server(command) as (started, client), httpx2.AsyncClient(base_url=client.base_url, timeout=30) as other:
        assert (await other.get("health")).status_code == 200
        while (answer := await client.get("health")).headers.get("connection") != "close":
            assert answer.status_code == 200
            await asyncio.sleep(0.05)
        # Not a moment ago, but by uvicorn itself this connection would have been closed.
        last = await other.get("health")
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        if "gunicorn" in command:
            async with asyncio.timeout(20):
                while not await answers(client):  # noqa: ASYNC110 -- it asks another process
                    await asyncio.sleep(0.05)
        else:
            assert await exit_code_of(started) == 0


async def until_it_takes_no_more(client: httpx2.AsyncClient) -> None:
    """Returns when there is nobody to connect to."""
    async with asyncio.timeout(20):
        while True:
            async with httpx2.AsyncClient(base_url=client.base_url) as newcomer:
                if not await answers(newcomer):
                    return
            await asyncio.sleep(0.05)


async def answers(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("health")).status_code == 200
    except httpx2.TransportError:
        return False


async def test_what_never_ends_is_cut_off_within_the_grace(settings: Settings, database: str) -> None:
    async with server(COMMANDS[0].replace(" 20", " 1")) as (started, client), users_locked(database):
        asking = asyncio.create_task(client.get("users"))
        await until_waiting(database, count=1)
        started.send_signal(signal.SIGTERM)
        assert await exit_code_of(started) == 0
        assert (await asking).status_code == 500
