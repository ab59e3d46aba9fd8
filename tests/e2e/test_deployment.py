"""Two servers behind nginx with this repository's `default.conf`, at 200 requests per second, while things are killed.

Servers, nginx and commands are the real ones. What is asked is what people ask: who am I, and what is cached; and one
in ten is a POST that writes down a job, whose row tells how often it was done.
"""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pytest

from app.core.config import Settings
from scripts.embedded import free_port
from tests.conftest import connect, opened_session
from tests.helper import create_rate_limit, create_tier, create_user, signed_in
from tests.http_lines import LinePool
from tests.nginx import nginx_with
from tests.processes import IN_FULL, ROOT, process, wait_for_answer

pytestmark = pytest.mark.anyio

RATE = 200  # requests per second
ROLLING = 10_000 if IN_FULL else 4_400  # requests, during which both servers are restarted
UVICORN = "uvicorn app.main:app --port {port} --no-proxy-headers --timeout-graceful-shutdown 20"
GUNICORN = "gunicorn app.main:app -w 1 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}"
GRACE = 30.0  # seconds
LEFT_ALONE = 3.5  # seconds for which nginx does not ask a server that it could not reach (it counts in whole ones)
DELAY = 5 if IN_FULL else 1  # SHUTDOWN_DELAY_SECONDS


class Server:
    """One of ours: can be killed and started again, at the same address."""

    def __init__(self, command: str) -> None:
        self.port = free_port()
        self._command = command.format(port=self.port).split()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes]

    async def start(self) -> None:
        """Returns when it answers."""
        self.process = self._stack.enter_context(process(*self._command, cwd=ROOT / "src"))
        await asyncio.to_thread(wait_for_answer, f"{self.url}/api/v1/ready", self.process)

    async def end(self, how: signal.Signals) -> int:
        """Its exit code."""
        self.process.send_signal(how)
        async with asyncio.timeout(GRACE):
            return await asyncio.to_thread(self.process.wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()


@dataclass
class Load:
    """Asks at a steady pace, whatever becomes of the answers.

    Attributes:
        wrong: method and what came instead of an answer, of those that failed.
        accepted: the messages of the POSTs that were answered with 201.
    """

    lines: LinePool
    headers: dict[str, str]
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    asked: int = 0

    async def run(self, requests: int) -> None:
        """So many, at `RATE`."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(requests):
                await asyncio.sleep(began + number / RATE - time.perf_counter())
                tasks.create_task(self._ask(number))

    async def _ask(self, number: int) -> None:
        self.asked += 1
        if number % 10:
            await self._expect(200, "GET", ("user/me/", "tiers", "user/somebody")[number % 3])
        elif await self._expect(201, "POST", f"tasks/task?message=message{number}"):
            self.accepted.append(f"message{number}")

    async def _expect(self, status: int, method: str, path: str) -> bool:
        try:
            answer = await self.lines.ask(f"/api/v1/{path}", self.headers, method)
        except (OSError, EOFError) as error:
            self.wrong[method, repr(error)] += 1
            return False
        if answer.status != status:
            self.wrong[method, f"{answer.status} {answer.body.decode()}"] += 1
        return answer.status == status


@asynccontextmanager
async def deployment(settings: Settings, command: str) -> AsyncIterator[tuple[list[Server], Load]]:
    """Two servers, nginx before them, and somebody who may ask as much as they like."""
    async with opened_session(settings) as db:
        tier = await create_tier(db, "unlimited")
        await create_rate_limit(db, tier, limit=1_000_000)
        headers = signed_in(await create_user(db, username="somebody", tier_id=tier.id), settings)
    with Server(command) as one, Server(command) as two:
        await asyncio.gather(one.start(), two.start())
        names = {"fastapi1:8000": one.url, "fastapi2:8000": two.url}
        with nginx_with(many_servers(), names) as nginx:
            lines = LinePool(("127.0.0.1", int(nginx.url.rpartition(":")[2])))
            try:
                yield [one, two], Load(lines, headers)
            finally:
                lines.close()


def many_servers() -> str:
    """`default.conf` as its users change it: the part for one server is a comment, the one for several is none."""
    common, rest = (ROOT / "default.conf").read_text().split("# ---------------- Running With One Server")
    many = rest.split("Uncomment below ----------------\n")[1]
    return common + "\n".join(line.removeprefix("# ").removeprefix("#") for line in many.splitlines())


async def times_done(database: str) -> Counter[str]:
    """How often each message's job was written down."""
    db = await connect(database)
    rows = await db.fetch("SELECT args ->> 0 AS message, count(*) AS times FROM job GROUP BY 1")
    await db.close()
    return Counter({row["message"]: row["times"] for row in rows})


@pytest.fixture(autouse=True)
def serve_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", str(DELAY))
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")
    monkeypatch.setenv("ENVIRONMENT", "production")


async def test_a_server_is_killed(settings: Settings, database: str) -> None:
    async with deployment(settings, UVICORN) as ((one, two), load):
        asking = asyncio.create_task(load.run(10 * RATE))
        await asyncio.sleep(1.5)
        await one.end(signal.SIGKILL)
        await asyncio.sleep(1.5)
        await one.start()
        await asyncio.sleep(LEFT_ALONE)
        await two.end(signal.SIGKILL)
        await asking
        assert not {what: times for what, times in load.wrong.items() if what[0] == "GET"}
        done = await times_done(database)
        assert set(done.values()) == {1}, "a POST was repeated"
        assert set(load.accepted) <= set(done)
        # What was answered with an error: a handful that were on their way at two moments.
        assert sum(load.wrong.values()) <= load.asked // 100


async def test_a_rolling_restart_is_not_noticed(settings: Settings, database: str) -> None:
    async with deployment(settings, GUNICORN) as (servers, load):
        asking = asyncio.create_task(load.run(ROLLING))
        pause = (ROLLING / RATE - 2 * (DELAY + 4)) / 3
        for server in servers:
            await asyncio.sleep(max(pause, LEFT_ALONE))
            assert await server.end(signal.SIGTERM) == 0
            await server.start()
        assert not asking.done(), "it was during the requests"
        await asking
        assert load.wrong == Counter()
        assert load.asked == ROLLING
        assert await times_done(database) == Counter(load.accepted)
        assert len(load.accepted) == ROLLING // 10
