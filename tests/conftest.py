"""Real PostgreSQL and Valkey for every test: servers per test process, a database per test."""

import os
import tempfile

# Before anything of the app is imported: its settings come from here, and never from a developer's `src/.env`.
os.environ.update(
    ENV_FILE=os.devnull,
    SECRET_KEY="test-5f0c1b7a9e3d4c6f8a2b0e1d7c9f3a5b",
    ADMIN_PASSWORD="a test's own admin password",
    POSTGRES_USER="tester",
    POSTGRES_PASSWORD="a test's own database password",
    POSTGRES_SERVER="127.0.0.1",
    ENVIRONMENT="local",
    STORAGE_URL=f"file://{tempfile.gettempdir()}/slipway-uploads-{os.getpid()}",
    MEDIA_URL="http://localhost:8000/api/v1/media",
    DEFAULT_RATE_LIMIT_LIMIT="1000000",  # Tests ask much; those about the limit set their own.
)

import asyncio
import gc
import shutil
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import pytest
import structlog
from alembic import command
from alembic.config import Config
from fastapi import Depends, FastAPI
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import PREFIX, build_router
from app.api.dependencies import get_current_superuser
from app.core.config import Settings, SettingsError, get_settings
from app.core.db.database import async_get_db, begin_request, close_database, open_database
from app.core.setup import create_application
from app.subscriptions import SUBSCRIPTIONS
from scripts import server
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from tests.processes import IN_FULL

pytest_plugins = ["tests.canaries"]

try:
    Settings()
except SettingsError as error:
    raise pytest.UsageError(
        f"{error.code}\nGive it a value for the tests, in os.environ.update() at the top of tests/conftest.py."
    ) from None

# Test processes that run at the same time take their ports from different ranges.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
_NUMBER = (int(_WORKER.removeprefix("gw")) if _WORKER else os.getpid()) % 12
server.PORTS = range(20_000 + 1_000 * _NUMBER, 21_000 + 1_000 * _NUMBER)

# The app is a quarter of a million objects that stay: the collector would look through them again and again.
gc.set_threshold(200_000, 20, 100)

TEMPLATE = "template_slipway"
ALEMBIC_INI = Path(__file__).parents[1] / "src" / "alembic.ini"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many `-n auto` is: more than there are cores, since many tests wait for the processes they started."""
    return (os.cpu_count() or 1) * 3 // 2


# Each keeps several processes busy for long, and compares how long things take: not while others run.
ALONE = {
    "test_cache_faults",
    "test_cache_on_many_servers",
    "test_cache_on_topologies",
    "test_deployment",
    "test_postgres_topologies",
    "test_rate_limit_faults",
    "test_rate_limits_on_many_servers",
    "test_stampede",
}
# These only take long: they come first.
LONG = {"test_job_faults", "test_jobs_survive_kills", "test_make_run", "test_outage", "test_sign_in_on_many_servers"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make` runs after everything else, in one process: `-m alone`."""
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def _unmeasured_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started to be killed, or to be timed, is not measured: that takes time and shows nothing."""
    if request.path.stem in ALONE | LONG:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


def pytest_sessionfinish() -> None:
    """Removes what tests have uploaded."""
    shutil.rmtree(os.environ["STORAGE_URL"].removeprefix("file://"), ignore_errors=True)


# structlog's default renders a traceback with all local variables, which takes seconds.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skip is a failure: what a test needs can be installed there. Not so root, or another system."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and "Skipped: only " not in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """PostgreSQL's data after a first start, for tests to copy: initdb is most of what that start costs."""
    with scratch_folder() as folder:
        with a_postgres(folder / "postgres", free_port()):
            pass
        yield folder / "postgres"


def a_postgres(data: Path, port: int) -> Postgres:
    """The server that the tests' settings name, not started."""
    user, password = os.environ["POSTGRES_USER"], os.environ["POSTGRES_PASSWORD"]
    return Postgres(data, port=port, user=user, password=password, database="tester", durable=False)


@pytest.fixture(scope="session")
def postgres(cluster: Path) -> Iterator[Postgres]:
    """A PostgreSQL server of this test process alone."""
    with scratch_folder() as folder:
        port = free_port()
        os.environ["POSTGRES_PORT"] = str(port)
        with a_postgres(shutil.copytree(cluster, folder / "postgres"), port) as server:
            yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey server of this test process alone."""
    with scratch_folder() as folder:
        port = free_port()
        for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
            os.environ[f"REDIS_{use}_HOST"] = "127.0.0.1"
            os.environ[f"REDIS_{use}_PORT"] = str(port)
        with Valkey(folder / "valkey", port=port, durable=False) as server:
            yield server


async def connect(database: str) -> asyncpg.Connection:
    """A connection to a database of the test's server, past everything of ours."""
    return await asyncpg.connect(
        host="127.0.0.1",
        port=int(os.environ["POSTGRES_PORT"]),
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        database=database,
    )


Execute = Callable[[str], object]


@pytest.fixture(scope="session")
def execute(postgres: Postgres) -> Iterator[Execute]:
    """Runs one statement outside of any database that a test uses."""
    with asyncio.Runner() as runner:
        connection = runner.run(connect("tester"))
        yield lambda statement: runner.run(connection.execute(statement))
        runner.run(connection.close())


@pytest.fixture
def empty_database(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of this test alone, without tables; `get_settings()` names it."""
    with cloned_database(execute, monkeypatch, template="template1") as name:
        yield name


@pytest.fixture(scope="session")
def migrated_template(execute: Execute) -> str:
    """A database at the newest schema, to clone."""
    execute(f"CREATE DATABASE {TEMPLATE}")
    os.environ["POSTGRES_DB"] = TEMPLATE
    get_settings.cache_clear()
    command.upgrade(Config(ALEMBIC_INI), "head")
    return TEMPLATE


@pytest.fixture
def database(execute: Execute, migrated_template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of this test alone, at the newest schema; `get_settings()` names it."""
    with cloned_database(execute, monkeypatch, template=migrated_template) as name:
        yield name


@contextmanager
def cloned_database(execute: Execute, monkeypatch: pytest.MonkeyPatch, template: str) -> Iterator[str]:
    """A new database, while the settings name it."""
    name = f"test_{uuid4().hex}"
    execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    monkeypatch.setenv("POSTGRES_DB", name)
    get_settings.cache_clear()
    yield name
    get_settings.cache_clear()
    if IN_FULL:
        asyncio.run(_look_at_jobs(name))
    _drop(execute, name)


async def _look_at_jobs(database: str) -> None:
    from tests.canaries import refuse_secrets_in_jobs  # pytest imports its plugins itself

    connection = await connect(database)
    try:
        await refuse_secrets_in_jobs(connection)
    finally:
        await connection.close()


def _drop(execute: Execute, name: str) -> None:
    for patience in range(20, -1, -1):
        try:
            execute(f"DROP DATABASE {name} WITH (FORCE)")
            return
        except asyncpg.InsufficientPrivilegeError:  # The autovacuum, which is a superuser's, is about to leave.
            if not patience:
                raise
            time.sleep(0.25)


@pytest.fixture
def settings(database: str, valkey: Valkey) -> Settings:
    """The app's settings for this test, with an empty Valkey."""
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        client.flushall()
    return get_settings()


@cache
def whole_app() -> FastAPI:
    """The app with all features, built once: that takes longer than most tests. Starting it reads its settings."""
    settings = get_settings()
    return create_application(
        build_router(settings),
        settings,
        docs_guard=[Depends(get_current_superuser)],
        subscriptions=SUBSCRIPTIONS,
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The whole app, started."""
    app = whole_app()
    app.state.settings = settings
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Asks the app over HTTP."""
    async with client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    """A client of an app in this process, with the API's prefix as its base."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=f"http://test{PREFIX}/")


@pytest.fixture
async def db(app: FastAPI) -> AsyncIterator[AsyncSession]:
    """A session to arrange and look at rows; a test commits what the app is to see."""
    async with asynccontextmanager(async_get_db)() as db:
        begin_request()  # It is no transaction of the code under test.
        yield db


second_session = asynccontextmanager(async_get_db)  # another transaction, while the database is open


@asynccontextmanager
async def opened_session(settings: Settings) -> AsyncIterator[AsyncSession]:
    """A session for a test whose app runs in another process."""
    engine = open_database(settings)
    try:
        async with asynccontextmanager(async_get_db)() as db:
            yield db
    finally:
        await close_database(engine)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio only: asyncpg knows nothing else."""
    return "asyncio"
