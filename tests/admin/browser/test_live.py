"""Parts of a page that are about now: what stands there while the server has no answer, and how often it is asked."""

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, Locator, Page, expect
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.utils.queue import Job, JobState
from app.models.user import User
from scripts.embedded import free_port
from tests.admin.browser.conftest import Servers, pages
from tests.admin.browser.steps import sign_in, state_of, within
from tests.conftest import connect, opened_session
from tests.processes import process, wait_for_answer

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

LONG = 20_000  # milliseconds: longer than a question may take, and until it is asked


@contextmanager
def api_at(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server of a test's own, to stop."""
    with process("uvicorn", "src.app.main:app", "--port", str(port), "--log-level", "warning") as server:
        wait_for_answer(f"http://127.0.0.1:{port}/api/v1/health", server)
        yield server


def note(page: Page) -> Locator:
    """What says that the page is not about now."""
    return page.get_by_role("main").get_by_role("alert").filter(has_text="does not answer")


@dataclass
class Questions:
    """What a page has asked since `over`."""

    sent: int = 0
    ended: int = 0
    most_at_once: int = 0

    def over(self, page: Page) -> None:
        """Counts from now on."""
        page.on("request", lambda _: self._begin())
        page.on("requestfinished", lambda _: self._end())
        page.on("requestfailed", lambda _: self._end())

    def _begin(self) -> None:
        self.sent += 1
        self.most_at_once = max(self.most_at_once, self.sent - self.ended)

    def _end(self) -> None:
        self.ended += 1


@asynccontextmanager
async def away(database: str) -> AsyncIterator[None]:
    """A database that takes no connections, and has lost those it had."""
    elsewhere = await connect("tester")
    try:
        await elsewhere.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
        await elsewhere.execute(ended, database)
        yield
    finally:
        await elsewhere.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        await elsewhere.close()


async def test_what_is_old_looks_old_while_the_database_is_away(page: Page, superuser: User, servers: Servers) -> None:
    await sign_in(page, superuser)
    wellness = page.locator("#wellness")
    await expect(note(page)).to_be_hidden()
    async with away(servers.settings.model_dump()["POSTGRES_DB"]):
        await expect(note(page)).to_be_visible(timeout=LONG)
        await expect(wellness.get_by_text("The system is well", exact=True)).to_be_hidden()
        results = await Axe().run(page, options={"runOnly": ["color-contrast"]})
        assert not results.response["violations"]
    await expect(note(page)).to_be_hidden(timeout=LONG)
    await expect(page.locator("body.console-stale")).to_have_count(0)
    await expect(wellness.get_by_text("The system is").first).to_be_visible()


async def test_it_is_asked_again_when_it_has_answered_or_cannot_any_more(
    chromium: Browser, superuser: User, servers: Servers
) -> None:
    """A server that hangs gets one question at a time; one that has ended is asked until there is another."""
    port, questions = free_port(), Questions()
    own = replace(servers, console=f"http://127.0.0.1:{port}/admin")
    async with pages(chromium, own) as new_page:
        page = await new_page()
        with api_at(port) as server:
            await sign_in(page, superuser, "workers")
            await page.evaluate("window.loadedOnce = true")
            await page.wait_for_load_state("networkidle")
            questions.over(page)
            server.send_signal(signal.SIGSTOP)
            try:
                await expect(note(page)).to_be_visible(timeout=LONG)
            finally:
                server.send_signal(signal.SIGCONT)
            assert questions.most_at_once == 1
            await expect(note(page)).to_be_hidden(timeout=LONG)
        await expect(note(page)).to_be_visible(timeout=LONG)
        with api_at(port):
            await expect(note(page)).to_be_hidden(timeout=LONG)
            assert await page.evaluate("window.loadedOnce"), "it was the page's own doing"


async def test_a_job_that_has_ended_is_not_asked_for_any_more(page: Page, superuser: User, servers: Servers) -> None:
    now, questions = utc_now(), Questions()
    facts: dict[str, Any] = {
        "queue": "nobody's",
        "function": "f",
        "worker": "w",
        "run_after": now,
        "sent_at": now,
        "started_at": now,
    }
    async with opened_session(servers.settings) as db:
        lease = now + timedelta(hours=1)
        db.add(Job(id="followed", state=JobState.RUNNING, lease_until=lease, attempt=1, **facts))
        await db.commit()
        await sign_in(page, superuser, "job/detail?pk=followed")
        questions.over(page)

        async def is_followed() -> bool:
            await page.wait_for_timeout(100)
            return questions.ended >= 2

        await within(10, is_followed)
        await _end(db, "followed")
        await expect(page.get_by_text("complete", exact=True)).to_be_visible()
        await expect(page.locator("[data-live]")).to_have_count(0)
        await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        asked = questions.sent
        await page.wait_for_timeout(2_500)
        assert questions.sent == asked


async def _end(db: AsyncSession, job_id: str) -> None:
    job = await state_of(db, job_id)
    job.state, job.finished_at, job.result, job.lease_until = JobState.SUCCEEDED, utc_now(), 1, None
    await db.commit()
