"""What `make run` and `make services` start, watch and stop; `dev.py` is their command line."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pydantic import Field

from app.core.config import (
    ENV_FILE,
    FirstTierSettings,
    FirstUserSettings,
    RedisQueueSettings,
    Settings,
    SettingsGroup,
    get_settings,
)

from .api_port import check_port
from .changes import Changes
from .children import Children
from .env_file import VALKEY_PORTS, write_env_file
from .merged_log import MergedLog, say
from .server import HOST, exists, locked
from .services import DATA, ROOT, Config, Services, attach, open_in
from .unprivileged import ServiceError

KILLED_RUN_SECONDS = 15.0
_LOOPBACK = (HOST, "localhost")


class DevSettings(SettingsGroup):
    """What only the development commands read."""

    EMBEDDED_SERVICES: bool = Field(False, description="true (start PostgreSQL and Valkey for me) or false")


def run(port: int) -> NoReturn:
    """Start everything and stay until something asks to stop. Raises: ServiceError."""
    with _only_run() as lock:
        check_port(port)
        is_first = _write_env_file()
        settings = get_settings()
        with _services(settings) as services:
            _prepare_database(settings)
            keep = [lock, services.lock] if services else [lock]
            with MergedLog() as log, Children(ROOT, log, keep) as children:
                if services:
                    log.follow("db", services.config.log)
                _start(children, settings, port)
                with Changes(ROOT / "src" / "app") as changes:
                    while not _listens(port):
                        log.print_lines(0.05)
                        _look_after(children, changes, services, is_up=False)
                    _start_long_worker(children, settings)
                    say(_banner(settings, port, is_first))
                    while True:
                        log.print_lines(0.1)
                        _look_after(children, changes, services, is_up=True)


def services() -> NoReturn:
    """Start only PostgreSQL and Valkey and stay until something asks to stop. Raises: ServiceError."""
    _write_env_file()
    settings = get_settings()
    with _services(settings) as services:
        if services is None:
            raise ServiceError("EMBEDDED_SERVICES is not true in src/.env: PostgreSQL and Valkey are your own.")
        print(f"PostgreSQL  127.0.0.1:{services.config.postgres_port}, database {services.config.postgres_db}")
        print(f"Valkey      127.0.0.1:{services.config.valkey_port}", "Ctrl-C stops them.", sep="\n", flush=True)
        while True:
            time.sleep(0.5)
            _check(services)


@contextmanager
def _only_run() -> Iterator[int]:
    """Hold this checkout's run lock, and give its open file. Raises: ServiceError when another run has it."""
    with open_in(DATA, "run.lock") as lock:
        lock.seek(0)
        pid = lock.read().decode(errors="replace")
        # After a kill -9 the reaper still holds it, until the killed run's processes have freed their ports.
        was_killed = pid.isdigit() and not exists(int(pid))
        if not locked(lock.fileno(), KILLED_RUN_SECONDS if was_killed else 0):
            raise ServiceError(
                f"`make run` is already running here (pid {pid or 'unknown'}): stop it first, or clone the project to "
                "another folder for a second one."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        yield lock.fileno()


def _write_env_file() -> bool:
    is_first = write_env_file(ENV_FILE, ROOT / "src" / ".env.example")
    if is_first:
        print(f"Wrote {os.path.relpath(ENV_FILE, ROOT)} with fresh secrets.", flush=True)
    return is_first


@contextmanager
def _services(settings: Settings) -> Iterator[Services | None]:
    if DevSettings().EMBEDDED_SERVICES:
        with attach(_config(settings)) as services:
            yield services
    else:
        yield None


def _config(settings: Settings) -> Config:
    """The services' addresses. Raises: ServiceError when the settings name somebody else's."""
    for name in ("POSTGRES_URL", *(name.replace("_PORT", "_URL") for name in VALKEY_PORTS)):
        if getattr(settings, name, None) is not None:
            raise ServiceError(f"{name} is set, but EMBEDDED_SERVICES is true: remove one of them from src/.env.")
    for name in ("POSTGRES_SERVER", *(name.replace("_PORT", "_HOST") for name in VALKEY_PORTS)):
        if getattr(settings, name, HOST) not in _LOOPBACK:
            raise ServiceError(f'{name} must be "127.0.0.1" while EMBEDDED_SERVICES is true.')
    valkey_ports = {getattr(settings, name) for name in VALKEY_PORTS if hasattr(settings, name)}
    if len(valkey_ports) > 1:
        raise ServiceError(f"{', '.join(VALKEY_PORTS)} must be one and the same while EMBEDDED_SERVICES is true.")
    return Config(
        folder=str(DATA),
        postgres_port=settings.POSTGRES_PORT,
        postgres_user=settings.POSTGRES_USER,
        postgres_password=settings.POSTGRES_PASSWORD.get_secret_value(),
        postgres_db=settings.POSTGRES_DB,
        valkey_port=valkey_ports.pop(),
    )


def _prepare_database(settings: Settings) -> None:
    """Migrate to the newest schema and create the first superuser and tier. Raises: ServiceError, SystemExit."""
    # Imported here: a start that fails for a simple reason should not wait for them.
    import asyncpg
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from . import create_first_superuser, create_first_tier
    from .database_script import first_line

    try:
        command.upgrade(AlembicConfig(ROOT / "src" / "alembic.ini"), "head")
    except (OSError, DBAPIError, CommandError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ServiceError(f"The database can't be migrated: {first_line(error)}") from error
    if isinstance(settings, FirstUserSettings):
        create_first_superuser.run()
    if isinstance(settings, FirstTierSettings):
        create_first_tier.run()


def _start(children: Children, settings: Settings, port: int) -> None:
    api = ["src.app.main:app", "--port", str(port), "--timeout-graceful-shutdown", "3"]
    children.start("api", sys.executable, "-m", "uvicorn", *api)
    if isinstance(settings, RedisQueueSettings):
        children.start("worker", sys.executable, "-m", "arq", "src.app.core.worker.settings.WorkerSettings")


def _start_long_worker(children: Children, settings: Settings) -> None:
    """Once the API answers: a newcomer waits for that, and for no job that takes minutes."""
    if isinstance(settings, RedisQueueSettings):
        children.start("long", sys.executable, "-m", "arq", "src.app.core.worker.settings.LongWorkerSettings")


def _look_after(children: Children, changes: Changes, services: Services | None, *, is_up: bool) -> None:
    """Restart what has changed or ended. Raises: ServiceError when that can't help."""
    if services:
        _check(services)
    if changed := changes.take():
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        say(f"Changed {os.path.relpath(changed[0], ROOT)}{more}: restarting.")
        children.restart()
    children.check(is_up=is_up)


def _check(services: Services) -> None:
    problem = services.problem()
    if problem:
        raise ServiceError(problem)


def _listens(port: int) -> bool:
    """Whether the API takes connections, which uvicorn does once the application has started."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _banner(settings: Settings, port: int, is_first: bool) -> str:
    url = f"http://127.0.0.1:{port}"
    secret = getattr(settings, "ADMIN_PASSWORD", None) if is_first else None
    password = secret.get_secret_value() if secret else "ADMIN_PASSWORD in src/.env"
    console = f"{url}/admin/" if getattr(settings, "CONSOLE_ENABLED", False) else "(no ConsoleSettings)"
    return f"""
  {getattr(settings, "APP_NAME", "The API")} is running at {url}

    documentation  {url}/docs
    log in         "Authorize" there
    console        {console}
    user name      {getattr(settings, "ADMIN_USERNAME", "(no FirstUserSettings)")}
    password       {password}

  Ctrl-C stops everything.
"""
