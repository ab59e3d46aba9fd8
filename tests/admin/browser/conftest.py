"""Debian's Chromium before two real servers and a worker: one of each for all tests of this folder.

Playwright drives the system's browser and never its own. A page that says anything in the browser's console, throws,
breaks its policy, opens a dialog or asks another host fails its test.
"""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    ViewportSize,
    async_playwright,
)
from redis import Redis

from app.core.config import Settings, get_settings
from app.models.user import User
from scripts.embedded import Valkey
from tests.conftest import Execute, cloned_database, opened_session
from tests.helper import create_superuser
from tests.jobs_app import TABLES, write
from tests.processes import ROOT, running_api, running_worker

PATIENCE: Final = 15_000  # milliseconds that anything may take to be there, on a busy machine
WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=390, height=844)
SHOTS: Final = Path(os.environ.get("TEST_ARTIFACTS", ROOT / ".data" / "test-artifacts")) / "console"


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs.

    Attributes:
        console: the address of the server whose console is used.
        api: the address of the other server, below which the API is.
        settings: of both.
    """

    console: str
    api: str
    settings: Settings


@pytest.fixture(scope="package")
def servers(execute: Execute, migrated_template: str, valkey: Valkey) -> Iterator[Servers]:
    """Two servers and a worker, with a database of their own and an empty Valkey."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # Browsers wait for them.
        stack.enter_context(cloned_database(execute, patch, template=migrated_template))
        with Redis(port=valkey.port) as client:
            client.flushall()
        stack.enter_context(running_worker(valkey.port))
        console, api = (stack.enter_context(running_api()) for _ in range(2))
        yield Servers(f"{console}/admin", f"{api}/api/v1", get_settings())


@pytest.fixture(scope="package")
async def tables(servers: Servers) -> None:
    """Where the jobs of `tests.jobs_app` write."""
    async with opened_session(servers.settings) as db:
        for statement in TABLES:
            await write(db, statement)


@pytest.fixture(scope="package")
async def chromium() -> AsyncIterator[Browser]:
    """The browser."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    async with async_playwright() as playwright:
        # Root has no sandbox, and containers have little /dev/shm.
        options = ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        await browser.close()


class Watch:
    """What goes wrong on a page."""

    def __init__(self, origin: str) -> None:
        self.problems: list[str] = []
        self._origin = origin

    def over(self, page: Page) -> None:
        """Watches a page from now on."""
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        # That a page was answered with an error is the test's own matter; of other answers `_on_response` knows more.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.problems.append(f"{message.type}: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self._origin, "data:", "blob:")):
            self.problems.append(f"asked another host: {request.url}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.request.resource_type not in {"document", "fetch", "xhr"}:
            self.problems.append(f"{response.status} of {response.url}")


NewPage = Callable[..., Coroutine[Any, Any, Page]]


async def new_context(chromium: Browser, servers: Servers, **options: Any) -> BrowserContext:
    """A browser profile of its own; with what Playwright's contexts take, such as `color_scheme`."""
    context = await chromium.new_context(
        **{"base_url": f"{servers.console}/", "viewport": WIDE, "reduced_motion": "reduce", **options}
    )
    context.set_default_timeout(PATIENCE)
    return context


@asynccontextmanager
async def pages(chromium: Browser, servers: Servers) -> AsyncIterator[NewPage]:
    """Makes pages and looks at the end whether all was well on them.

    Yields: a function that takes a context for the page; without one, what `new_context` takes for one of its own.
    """
    watch = Watch(servers.console.removesuffix("/admin"))
    opened: list[Page | BrowserContext] = []

    async def new_page(context: BrowserContext | None = None, **options: Any) -> Page:
        shared = context is not None
        context = context or await new_context(chromium, servers, **options)
        page = await context.new_page()
        opened.append(page if shared else context)
        watch.over(page)
        return page

    try:
        yield new_page
    finally:
        for one in opened:
            await one.close()
    assert not watch.problems


@pytest.fixture
async def new_page(chromium: Browser, servers: Servers) -> AsyncIterator[NewPage]:
    """Makes pages of browsers that have not signed in."""
    async with pages(chromium, servers) as new_page:
        yield new_page


@pytest.fixture
async def page(new_page: NewPage) -> Page:
    """A page of a browser that has not signed in."""
    return await new_page()


@pytest.fixture
async def superuser(servers: Servers) -> User:
    """A superuser of this test's own, whose password is PASSWORD."""
    async with opened_session(servers.settings) as db:
        return await create_superuser(db)
