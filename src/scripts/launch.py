"""What `make run` and `make services` start, watch and stop; `dev.py` is their command line."""

import http.client
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

from .children import Children
from .embedded import ServiceError, is_port_free
from .env_file import VALKEY_PORTS, write_env_file
from .server import HOST, exists, locked
from .services import DATA, ROOT, Config, Services, attach

_BIN = Path(sys.executable).parent
KILLED_RUN_SECONDS = 15.0
_LOOPBACK = (HOST, "localhost")


class DevSettings(SettingsGroup):
    """What only the development commands read."""

    EMBEDDED_SERVICES: bool = Field(False, description="true (start PostgreSQL and Valkey for me) or false")


def run(port: int) -> NoReturn:
    """Start everything and stay until something asks to stop. Raises: ServiceError."""
    if not 0 < port < 65536:
        raise ServiceError(f"PORT must be a TCP port, 1 to 65535, not {port}.")
    with _only_run() as lock:
        if not is_port_free(port):
            raise ServiceError(f"Port {port} is in use by another program: `make run PORT={port + 1}`.")
        is_first = _write_env_file()
        settings = get_settings()
        with (
            _services(settings) as services,
            Children(ROOT, [lock, *([services.lock] if services else [])]) as children,
        ):
            _prepare_database(settings)
            if services:
                children.follow("db", services.config.log)
            _start(children, settings, port)
            _watch(children, services, _banner(settings, port, is_first), port)


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
    try:
        DATA.mkdir(exist_ok=True)
        lock = (DATA / "run.lock").open("a+")
    except PermissionError as error:
        raise ServiceError(f"{DATA} belongs to another user: run as that user.") from error
    with lock:
        lock.seek(0)
        pid = lock.read()
        # After a kill -9 the reaper still holds it, until the killed run's processes have freed their ports.
        was_killed = pid.isdigit() and not exists(int(pid))
        if not locked(lock.fileno(), KILLED_RUN_SECONDS if was_killed else 0):
            raise ServiceError(
                f"`make run` is already running here (pid {pid or 'unknown'}): stop it first, or clone the project to "
                "another folder for a second one."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
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
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from . import create_first_superuser, create_first_tier

    try:
        command.upgrade(AlembicConfig(ROOT / "src" / "alembic.ini"), "head")
    except (OSError, DBAPIError, CommandError) as error:
        raise ServiceError(f"The database can't be migrated: {str(error).splitlines()[0]}") from error
    if isinstance(settings, FirstUserSettings):
        create_first_superuser.run()
    if isinstance(settings, FirstTierSettings):
        create_first_tier.run()


def _start(children: Children, settings: Settings, port: int) -> None:
    api = [str(_BIN / "uvicorn"), "src.app.main:app", "--reload", "--reload-dir", "src/app"]
    children.start("api", *api, "--host", "127.0.0.1", "--port", str(port))
    if isinstance(settings, RedisQueueSettings):
        worker = shlex.join([str(_BIN / "arq"), "src.app.core.worker.settings.WorkerSettings"])
        children.start("worker", str(_BIN / "watchfiles"), "--filter", "python", worker, "src/app")


def _watch(children: Children, services: Services | None, banner: str, port: int) -> NoReturn:
    """Print the log until a child or the services end. Raises: ServiceError."""
    is_up = False
    while True:
        children.print_lines(0.1 if is_up else 0.05)
        children.check()
        if services:
            _check(services)
        if not is_up and _answers(port):
            is_up = True
            print(banner, flush=True)


def _check(services: Services) -> None:
    problem = services.problem()
    if problem:
        raise ServiceError(problem)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/api/v1/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _banner(settings: Settings, port: int, is_first: bool) -> str:
    url = f"http://127.0.0.1:{port}"
    secret = getattr(settings, "ADMIN_PASSWORD", None) if is_first else None
    password = secret.get_secret_value() if secret else "ADMIN_PASSWORD in src/.env"
    return f"""
  {getattr(settings, "APP_NAME", "The API")} is running at {url}

    documentation  {url}/docs
    log in         "Authorize" there, or POST {url}/api/v1/login
    user name      {getattr(settings, "ADMIN_USERNAME", "(no FirstUserSettings)")}
    password       {password}

  Ctrl-C stops everything.
"""
