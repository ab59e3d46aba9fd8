"""What an operator does with a browser, found by labels and roles, as a person finds it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from playwright.async_api import Locator, Page, expect
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils import queue
from app.core.utils.queue import Job
from app.models.user import User
from tests.helper import PASSWORD

IN_FORCE = 2.0  # seconds after which a change counts on all servers


async def sign_in(page: Page, user: User, path: str = "") -> None:
    """Opens a page of the console and signs in on the way."""
    await page.goto(path)
    await page.get_by_label("User name or e-mail address").fill(user.username)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


async def open_from_menu(page: Page, name: str) -> None:
    """Follows a link of the main menu."""
    await page.get_by_role("navigation", name="Main menu").get_by_role("link", name=name, exact=True).click()
    await expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


async def save(page: Page) -> None:
    """Saves a form, which leads to the list."""
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_url("**/list*")


async def confirm(page: Page, button: str) -> None:
    """Says yes to what a dialog asks, and waits for the page that follows."""
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    await dialog.get_by_role("button", name=button, exact=True).click()
    await expect(dialog).to_be_hidden()


def row(page: Page, text: str) -> Locator:
    """The row of the list that has this text."""
    return page.get_by_role("row").filter(has_text=text)


async def within(seconds: float, condition: Callable[[], Awaitable[Any]]) -> float:
    """Returns once it is so: after how many seconds. Raises: AssertionError when it is not in time.

    The last question may be asked in time and answered late: a machine can be busy.
    """
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        if await condition():
            return asked - began
        assert asked - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.05)


async def state_of(db: AsyncSession, job_id: str) -> Job:
    """A job's row, as it is now."""
    await db.rollback()
    job = await db.get(Job, job_id, populate_existing=True)
    assert job is not None
    return job


async def enqueue(db: AsyncSession, function: str, *args: Any) -> str:
    """Commits a job, which a worker gets by the drain. Its id."""
    job = await queue.enqueue(db, function, *args)
    await db.commit()
    return job.job_id


async def status_of(client: httpx2.AsyncClient, path: str, headers: dict[str, str]) -> int:
    """The status of an answer of the API."""
    return (await client.get(path, headers=headers)).status_code
