"""The console is used, and the API on another server does what was said there."""

import re
from collections.abc import AsyncIterator

import httpx2
import pytest
from playwright.async_api import Page, expect
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.utils.queue import JobState
from app.models.console_action import ConsoleAction
from app.models.user import User
from tests.admin.browser.conftest import NewPage, Servers
from tests.admin.browser.steps import (
    IN_FORCE,
    confirm,
    enqueue,
    open_from_menu,
    row,
    save,
    sign_in,
    state_of,
    status_of,
    within,
)
from tests.conftest import opened_session
from tests.helper import PASSWORD, create_superuser, create_tier, create_user, signed_in

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


@pytest.fixture
async def db(servers: Servers) -> AsyncIterator[AsyncSession]:
    """A session on the servers' database."""
    async with opened_session(servers.settings) as db:
        yield db


@pytest.fixture
async def api(servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    """Asks the API of the server whose console is not used."""
    async with httpx2.AsyncClient(base_url=f"{servers.api}/") as client:
        yield client


async def actions_of(db: AsyncSession, user: User) -> list[str]:
    """What the audit trail says that somebody did."""
    await db.rollback()
    mine = select(ConsoleAction.action).where(col(ConsoleAction.actor_id) == user.id)
    return list(await db.exec(mine.order_by(col(ConsoleAction.id))))


async def test_signing_in_and_out(page: Page, superuser: User) -> None:
    await page.goto("tier/list")
    await page.get_by_label("User name or e-mail address").fill(superuser.username)
    await page.get_by_label("Password").fill("a wrong password")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("Wrong user name")
    await page.get_by_label("User name or e-mail address").fill(superuser.username)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", level=1, name="Tiers")).to_be_visible()
    [cookie] = [cookie for cookie in await page.context.cookies() if cookie["name"] == "slipway_console"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["expires"]) == (True, "Lax", "/", -1)

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    copied = {"name": cookie["name"], "value": cookie["value"], "url": page.url}
    await page.context.add_cookies([copied])  # type: ignore[list-item] # its stubs want all of them or a class
    await page.goto("tier/list")
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    await page.go_back()
    await expect(page.get_by_role("button", name="Sign out")).to_be_hidden()


async def test_a_tier_and_its_rule_are_in_force_on_the_other_server(
    page: Page, superuser: User, db: AsyncSession, api: httpx2.AsyncClient, servers: Servers
) -> None:
    await sign_in(page, superuser)
    await open_from_menu(page, "Tiers")
    await page.get_by_role("link", name="New tier").click()
    await page.get_by_label("Name").fill("platinum")
    await save(page)
    await expect(row(page, "platinum")).to_be_visible()

    # It is renamed, and what the other server had cached is dropped.
    headers = signed_in(superuser, servers.settings)
    assert await status_of(api, "tier/platinum", headers) == 200
    await row(page, "platinum").get_by_role("link", name="Edit").click()
    await page.get_by_label("Name").fill("titanium")
    await save(page)

    async def is_renamed() -> bool:
        statuses = [await status_of(api, f"tier/{name}", headers) for name in ("platinum", "titanium")]
        return statuses == [404, 200]

    await within(IN_FORCE, is_renamed)

    # A user is moved to it.
    user = await create_user(db)
    await page.goto(f"user/edit?pk={user.id}")
    await page.get_by_label("Tier").select_option("titanium")
    await save(page)

    # It gets a rule, which refuses; and the rule is made wider.
    async def calls_are(status: int) -> bool:
        return await status_of(api, "users", signed_in(user, servers.settings)) == status

    assert await calls_are(200)
    await open_from_menu(page, "Rate limits")
    await page.get_by_role("link", name="New rate limit").click()
    await page.get_by_label("Tier").select_option("titanium")
    await page.get_by_label("Name").fill("few")
    await page.get_by_label("Path").select_option("/api/v1/users")
    await page.get_by_label("Limit").fill("2")
    await page.get_by_label("Period").fill("3600")
    await save(page)
    await within(IN_FORCE, lambda: calls_are(429))
    await row(page, "titanium").get_by_role("link", name="Edit").click()
    await page.get_by_label("Limit").fill("100000")
    await save(page)
    await within(IN_FORCE, lambda: calls_are(200))
    done = [action for action in await actions_of(db, superuser) if not action.startswith("user.")]
    assert [action.replace(" ", "_") for action in done] == [
        "tier.create",
        "tier.edit",
        "rate_limit.create",
        "rate_limit.edit",
    ]


@pytest.mark.usefixtures("tables")
async def test_a_job_s_progress_moves_without_loading_the_page_again(
    page: Page, superuser: User, db: AsyncSession
) -> None:
    job_id = await enqueue(db, "count_to", 40, 0.1)
    await sign_in(page, superuser, f"job/detail?pk={job_id}")
    bar = page.get_by_role("progressbar").first
    await page.evaluate("window.loadedOnce = true")

    async def done() -> float:
        return float(await bar.get_attribute("value") or await bar.get_attribute("aria-valuenow") or 0)

    await expect(bar).to_be_visible()
    first = await done()

    async def has_moved() -> bool:
        return await done() > first

    await within(10, has_moved)
    second = await done()
    first = second
    await within(10, has_moved)
    await expect(page.get_by_text(re.compile(r"\b40 of 40\b|counted")).first).to_be_visible()
    assert await page.evaluate("window.loadedOnce"), "it was the page's own doing"
    assert (await state_of(db, job_id)).state == JobState.SUCCEEDED


@pytest.mark.usefixtures("tables")
async def test_a_dead_letter_is_replayed(page: Page, superuser: User, db: AsyncSession) -> None:
    job_id = await enqueue(db, "fail", 7)

    async def has_died() -> bool:
        return (await state_of(db, job_id)).state == JobState.DEAD

    await within(20, has_died)
    runs = (await state_of(db, job_id)).runs
    await sign_in(page, superuser)
    await open_from_menu(page, "Jobs")
    await expect(row(page, job_id)).to_contain_text("dead")
    await row(page, job_id).get_by_role("link", name="View").click()
    await expect(page.get_by_text("order 7 cannot be delivered").first).to_be_visible()
    await page.get_by_role("button", name="Replay").click()
    await confirm(page, "Replay")

    async def was_done_again() -> bool:
        return (await state_of(db, job_id)).runs > runs

    await within(20, was_done_again)
    assert await actions_of(db, superuser) == ["job.replay"]
    await within(20, has_died)


async def test_a_cached_answer_is_purged(
    page: Page, superuser: User, db: AsyncSession, api: httpx2.AsyncClient, servers: Servers
) -> None:
    await create_tier(db, "cached")
    headers = signed_in(superuser, servers.settings)

    async def x_cache() -> str:
        return (await api.get("tier/cached", headers=headers)).headers["X-Cache"]

    async def is_hit() -> bool:
        return await x_cache() == "HIT"

    await within(10, is_hit)
    await sign_in(page, superuser)
    await open_from_menu(page, "Cache")
    await page.get_by_label("Prefix", exact=True).select_option("tier")
    await page.get_by_label("Id", exact=True).fill("cached")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_role("region", name="Variants").get_by_role("row")).to_have_count(2)
    assert await x_cache() == "HIT", "looking at it changes nothing"
    await page.get_by_role("button", name="Purge this resource").click()
    await expect(page.get_by_text("Nothing is stored of this resource")).to_be_visible()
    assert await x_cache() == "MISS"
    assert [action.partition(".")[0] for action in await actions_of(db, superuser)] == ["cache"]


async def test_ending_a_login_kills_its_tokens(
    page: Page, superuser: User, db: AsyncSession, api: httpx2.AsyncClient, servers: Servers
) -> None:
    user = await create_user(db)
    headers = signed_in(user, servers.settings)
    assert await status_of(api, "user/me/", headers) == 200
    await sign_in(page, superuser, f"user/detail?pk={user.id}")
    await page.get_by_role("button", name="End the login").click()
    await expect(page.get_by_role("heading", name="Live logins (0)")).to_be_visible()
    assert await status_of(api, "user/me/", headers) == 401


async def test_an_open_console_dies_with_its_operator_s_rank(
    page: Page, new_page: NewPage, superuser: User, db: AsyncSession
) -> None:
    """One superuser takes another's rank while that one has a form open."""
    other = await create_superuser(db)
    open_page = await new_page()
    await sign_in(open_page, other, "tier/create")
    await open_page.get_by_label("Name").fill("too late")

    await sign_in(page, superuser, f"user/detail?pk={other.id}")
    await page.get_by_role("button", name="No superuser").click()
    await confirm(page, "Take the rank")
    await expect(row(page, other.username).get_by_role("cell", name="yes")).to_have_count(0)

    await open_page.get_by_role("button", name="Save", exact=True).click()
    await expect(open_page.get_by_role("heading", level=1)).to_contain_text(re.compile("403|not from your own"))
    await open_page.goto("tier/list")
    await expect(open_page.get_by_role("button", name="Sign in")).to_be_visible()
    assert await actions_of(db, other) == []


async def test_a_page_that_refreshes_itself_leads_to_the_form_when_its_login_ends(
    page: Page, superuser: User, db: AsyncSession
) -> None:
    await sign_in(page, superuser, "workers")
    user = await db.get(User, superuser.id)
    assert user is not None
    user.is_superuser = False
    await db.commit()
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
