"""A deployment as in production, on this machine: nginx, two servers, two workers, PostgreSQL and Valkey.

Servers and workers reach PostgreSQL and Valkey through a proxy each. All of it listens on 127.0.0.1, and all of it is
stopped at the end by its process ids.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Final

import asyncpg
from tests.deploy.files import DEFAULT_CONF, many_servers
from tests.nginx import Nginx, nginx_with
from tests.processes import BIN, ROOT, wait_for_answer, wait_for_worker

from chaos.proxy import HOST, Fault
from chaos.proxy_process import ProxyProcess, proxied
from scripts.embedded import Postgres, ServiceError, Valkey, free_port, scratch_folder
from scripts.unprivileged import die_with_parent

APP: Final = "tests.jobs_app:app"  # the whole API, and a route whose job leaves a row behind
# As in docker-compose.prod.yml, in the project's folder, where that app is.
SERVER: Final = f"gunicorn -c src/gunicorn.conf.py {APP} -k uvicorn_worker.UvicornWorker -b {HOST}:{{port}}"
WORKER: Final = "arq tests.jobs_app.WorkerSettings"
DATABASE: Final = "chaos"
GRACE: Final = 30.0  # seconds that a process has to end
STEPS: Final = (
    "alembic upgrade head",
    "python -m src.scripts.create_first_superuser",
    "python -m src.scripts.create_first_tier",
)


class Running:
    """A process group of ours, which can be ended and started again.

    Attributes:
        process: the one that runs, or has run last.
        log: what all of them have said.
    """

    def __init__(self, command: str, log: Path, wait: Callable[[subprocess.Popen[bytes]], None]) -> None:
        """Args: command: one of .venv/bin; log: what it says; wait: returns once it is of use."""
        self._command = [str(BIN / command.split()[0]), *command.split()[1:]]
        self.log = log
        self._wait = wait
        self.process: subprocess.Popen[bytes]

    def spawn(self) -> None:
        """Starts it without waiting. Call it in the main thread: on Linux it ends with the thread that started it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )

    async def start(self) -> None:
        """Returns when it is of use. Raises: AssertionError when it is not."""
        self.spawn()
        await asyncio.to_thread(self._wait, self.process)

    async def end(self, how: signal.Signals) -> None:
        """A signal to SIGTERM's master or, to kill, to the whole group; returns when it is gone."""
        self.tell(how)
        await asyncio.to_thread(self.process.wait, GRACE)

    def tell(self, how: signal.Signals) -> None:
        """Only the signal. One that has ended is not told."""
        if self.process.poll() is None:
            (os.killpg if how is signal.SIGKILL else os.kill)(self.process.pid, how)

    def stop(self) -> None:
        """Ends it whatever it takes."""
        self.tell(signal.SIGTERM)
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.tell(signal.SIGKILL)
            self.process.wait()


class Server(Running):
    """One of those behind nginx, at an address that stays."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        command = SERVER.format(port=port)
        super().__init__(
            command, folder / f"server-{port}.log", lambda one: wait_for_answer(f"{self.url}/api/v1/ready", one)
        )


@dataclass(frozen=True)
class Deployment:
    """All of it, running.

    Attributes:
        to_postgres, to_valkey: the proxies.
        admin: name and password of the superuser.
        metrics: headers with which the servers' `/metrics` can be read.
        folder: holds the logs.
    """

    nginx: Nginx
    servers: list[Server]
    workers: list[Running]
    postgres: Postgres
    valkey: Valkey
    to_postgres: ProxyProcess
    to_valkey: ProxyProcess
    admin: dict[str, str]
    metrics: dict[str, str]
    folder: Path

    async def fetch(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Rows, straight from PostgreSQL."""
        connection = await _connect(self.postgres.port)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()


@asynccontextmanager
async def deployed() -> AsyncIterator[Deployment]:
    """Everything, once it answers. Raises: AssertionError, ServiceError when something does not start."""
    stack = ExitStack()
    try:
        folder = stack.enter_context(scratch_folder())
        ports = {name: free_port() for name in ("postgres", "valkey")}
        async with (
            proxied(free_port(), ports["postgres"]) as to_postgres,
            proxied(free_port(), ports["valkey"]) as to_valkey,
        ):
            try:
                _set_environment(to_postgres.port, to_valkey.port)
                # Durable: what PostgreSQL has acknowledged has to be there after a kill. Valkey is to lose all of it.
                postgres = Postgres(
                    folder / "postgres",
                    port=ports["postgres"],
                    user=DATABASE,
                    password=os.environ["POSTGRES_PASSWORD"],
                    database=DATABASE,
                )
                valkey = Valkey(folder / "valkey", port=ports["valkey"], durable=False)
                for service in (postgres, valkey):
                    await asyncio.to_thread(stack.enter_context, service)
                await _prepare(postgres.port)
                servers, workers = await _started(stack, folder, valkey.port)
                names = {"fastapi1:8000": servers[0].url, "fastapi2:8000": servers[1].url}
                conf = many_servers(DEFAULT_CONF.read_text())
                nginx = await asyncio.to_thread(stack.enter_context, nginx_with(conf, names))
                admin = {"username": "admin", "password": os.environ["ADMIN_PASSWORD"]}
                metrics = {"Authorization": f"Bearer {os.environ['METRICS_TOKEN']}"}
                yield Deployment(
                    nginx, servers, workers, postgres, valkey, to_postgres, to_valkey, admin, metrics, folder
                )
            finally:  # While the proxies serve those who stop, whatever they were told before.
                for proxy in (to_postgres, to_valkey):
                    await proxy.switch(Fault.NONE)
                stack.close()
    finally:
        stack.close()


def _set_environment(postgres_port: int, valkey_port: int) -> None:
    """What the children inherit."""
    os.environ.update(
        ENV_FILE=os.devnull,
        ENVIRONMENT="production",
        SECRET_KEY=token_urlsafe(48),
        ADMIN_PASSWORD=token_urlsafe(24),
        METRICS_TOKEN=token_urlsafe(24),
        POSTGRES_USER=DATABASE,
        POSTGRES_PASSWORD=token_urlsafe(24),
        POSTGRES_SERVER=HOST,
        POSTGRES_PORT=str(postgres_port),
        POSTGRES_DB=DATABASE,
        TRUSTED_PROXIES=HOST,
        SHUTDOWN_DELAY_SECONDS="1",
        DEFAULT_RATE_LIMIT_LIMIT="2000000000",  # All is counted, and only one caller is refused.
    )
    for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
        os.environ.update({f"REDIS_{use}_HOST": HOST, f"REDIS_{use}_PORT": str(valkey_port)})


async def _connect(port: int) -> asyncpg.Connection:
    password = os.environ["POSTGRES_PASSWORD"]
    return await asyncpg.connect(host=HOST, port=port, user=DATABASE, password=password, database=DATABASE)


async def _prepare(port: int) -> None:
    """The schema, a superuser, a tier, and the tables of the app's extra route."""
    for step in STEPS:
        name, *words = step.split()
        program = sys.executable if name == "python" else BIN / name
        cwd = ROOT / "src" if name == "alembic" else ROOT
        done = await asyncio.create_subprocess_exec(program, *words, cwd=cwd, stdout=subprocess.DEVNULL)
        if await done.wait():
            raise ServiceError(f"{step} failed.")
    from tests.jobs_app import TABLES  # It reads the settings, which are known by now.

    connection = await _connect(port)
    for table in TABLES:
        await connection.execute(table)
    await connection.close()


async def _started(stack: ExitStack, folder: Path, valkey_port: int) -> tuple[list[Server], list[Running]]:
    servers = [Server(folder) for _ in range(2)]
    workers = [
        Running(WORKER, folder / f"worker-{number}.log", lambda one: wait_for_worker(one, valkey_port))
        for number in range(2)
    ]
    async with asyncio.TaskGroup() as group:
        for one in (*servers, *workers):
            group.create_task(one.start())
            await asyncio.sleep(0)  # It is spawned now,
            stack.callback(one.stop)  # and stopped whatever becomes of the others.
    stack.callback(_tell_all, [*servers, *workers])  # First, so that they end at the same time.
    return servers, workers


def _tell_all(processes: list[Running]) -> None:
    for one in processes:
        one.tell(signal.SIGTERM)
