"""Every page in a real browser: accessible in light and dark, fits a phone and a desk, and pictures of all of them."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, BrowserContext, Page, ViewportSize, expect

from app.models.user import User
from tests.admin.browser.conftest import NARROW, SHOTS, WIDE, NewPage, Servers, new_context
from tests.admin.browser.steps import sign_in
from tests.admin.world import create_world
from tests.conftest import opened_session
from tests.helper import create_superuser

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

PAGES = {
    "overview": "",
    "users": "user/list",
    "user": "user/detail?pk=3",
    "user-edit": "user/edit?pk=3",
    "tiers": "tier/list",
    "tier": "tier/detail?pk=2",
    "tier-create": "tier/create",
    "tier-edit": "tier/edit?pk=2",
    "rate-limits": "rate-limit/list",
    "rate-limit": "rate-limit/detail?pk=2",
    "rate-limit-create": "rate-limit/create",
    "rate-limit-edit": "rate-limit/edit?pk=2",
    "limits": "limits",
    "jobs": "job/list",
    "job-running": "job/detail?pk=job-running",
    "job-dead": "job/detail?pk=job-dead",
    "workers": "workers",
    "cache": "cache?prefix=tiers&id=all",
    "security-events": "security-event/list",
    "security-event": "security-event/detail?pk=1",
    "audit-trail": "console-action/list",
    "audit-entry": "console-action/detail?pk=1",
    "not-found": "nothing",
}
LOOKS: tuple[tuple[ViewportSize, Literal["light", "dark"]], ...] = (
    (WIDE, "light"),
    (NARROW, "dark"),
    (NARROW, "light"),
    (WIDE, "dark"),
)
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
CONTRAST = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}  # where the rest was looked at already


@pytest.fixture(scope="module")
async def looker(chromium: Browser, servers: Servers) -> AsyncIterator[BrowserContext]:
    """A browser that is signed in, with the world to look at."""
    async with opened_session(servers.settings) as db:
        operator = await create_superuser(db, username="looker")
        await create_world(db)
    context = await new_context(chromium, servers)
    page = await context.new_page()
    await sign_in(page, operator)
    await page.close()
    yield context
    await context.close()


async def assert_fits(page: Page, name: str, width: int) -> None:
    """Nothing makes the page itself scroll sideways."""
    wide = await page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".table-responsive"))
            .slice(0, 5).map((one) => one.outerHTML.slice(0, 120))"""
    )
    scrolls = await page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not scrolls, f"{name} is wider than {width}: {wide}"


async def assert_accessible(page: Page, name: str, rules: dict[str, Any] = AXE) -> None:
    """axe finds no violation of WCAG 2.1, A and AA, or of these of its rules."""
    results = await Axe().run(page, options=rules)
    found = [
        {"rule": one["id"], "help": one["help"], "where": [node["html"][:160] for node in one["nodes"][:4]]}
        for one in results.response["violations"]
    ]
    assert not found, f"{name}: {json.dumps(found, indent=1)}"


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_accessible_and_fits(new_page: NewPage, looker: BrowserContext, name: str) -> None:
    """Pictures of it are kept, in light at the desk and in dark on the phone."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = await new_page(looker)
    answer = await page.goto(PAGES[name])
    assert answer is not None
    assert answer.status == (404 if name == "not-found" else 200)
    for viewport, scheme in LOOKS:
        await page.set_viewport_size(viewport)
        await page.emulate_media(color_scheme=scheme)
        width = viewport["width"]
        await expect(page.locator("html")).to_have_attribute("data-bs-theme", scheme)
        await assert_fits(page, name, width)
        if (width, scheme) in {(1440, "light"), (390, "dark")}:
            await page.screenshot(path=SHOTS / f"{name}-{width}.png", full_page=True)
            await assert_accessible(page, f"{name} at {width} in {scheme}", AXE)
        else:
            await assert_accessible(page, f"{name} at {width} in {scheme}", CONTRAST)


@pytest.mark.parametrize("viewport", [WIDE, NARROW])
async def test_the_form_for_signing_in_is_accessible_and_fits(new_page: NewPage, viewport: ViewportSize) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        page = await new_page(viewport=viewport, color_scheme=scheme)
        await page.goto("login")
        await assert_fits(page, "login", viewport["width"])
        await assert_accessible(page, f"login in {scheme}")
        await page.screenshot(path=SHOTS / f"login-{viewport['width']}.png", full_page=True)
        await page.get_by_label("User name or e-mail address").fill("nobody")
        await page.get_by_label("Password").fill("a wrong password")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await assert_accessible(page, f"refused login in {scheme}")


async def test_every_page_of_the_menu_has_its_picture(new_page: NewPage, looker: BrowserContext) -> None:
    """And every list and page that the console ships is in the menu."""
    page = await new_page(looker)
    await page.goto("")
    links = page.get_by_role("navigation", name="Main menu").get_by_role("link")
    addresses = {await link.get_attribute("href") for link in await links.all()}
    known = {"/admin/" + re.sub(r"\?.*", "", path) for path in PAGES.values()}
    missing = sorted(str(address).removeprefix("/admin/") for address in addresses - known)
    lines = "\n".join(f'    "{path.partition("/")[0]}": "{path}",' for path in missing)
    assert not missing, f"PAGES in tests/admin/browser/test_pages.py lacks these lines:\n{lines}"
    shipped = {path for path in known if path.endswith(("/list", "/limits", "/workers", "/cache", "/admin/"))}
    assert shipped <= addresses


async def test_the_menu_of_a_phone_opens_and_leads_on(new_page: NewPage, looker: BrowserContext) -> None:
    page = await new_page(storage_state=await looker.storage_state(), viewport=NARROW, has_touch=True, is_mobile=True)
    await page.goto("")
    tiers = page.get_by_role("link", name="Tiers", exact=True)
    await expect(tiers).to_be_hidden()
    await page.get_by_role("button", name=re.compile("menu|navigation", re.IGNORECASE)).first.click()
    await expect(tiers).to_be_visible()
    await tiers.click()
    await expect(page.get_by_role("heading", level=1, name="Tiers")).to_be_visible()


async def test_light_and_dark_are_chosen_and_kept(new_page: NewPage, looker: BrowserContext) -> None:
    page = await new_page(storage_state=await looker.storage_state(), color_scheme="light")
    await page.goto("")
    theme = page.locator("html")
    await expect(theme).to_have_attribute("data-bs-theme", "light")
    await page.get_by_role("button", name="Dark theme").click()
    await expect(theme).to_have_attribute("data-bs-theme", "dark")
    await page.goto("tier/list")
    await expect(theme).to_have_attribute("data-bs-theme", "dark")


async def test_a_keyboard_is_enough(new_page: NewPage, servers: Servers, superuser: User) -> None:
    """Signing in, making a tier, changing it, deleting it with its confirmation, and signing out."""
    page = await new_page()

    async def tab_to(name: str, role: str) -> None:
        for _ in range(80):
            await page.keyboard.press("Tab")
            focused = page.locator(":focus")
            if await focused.count() and await focused.and_(page.get_by_role(role, name=name)).count():  # type: ignore[arg-type]
                return
        raise AssertionError(f"Tab does not lead to the {role} {name!r}")

    await page.goto("tier/create")
    await page.keyboard.type(superuser.username)  # The first field has the focus.
    await page.keyboard.press("Tab")
    await page.keyboard.type("correct horse battery")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=2, name="New tier")).to_be_visible()

    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("To the content")
    await tab_to("Name", "textbox")
    await page.keyboard.type("by keys")
    await tab_to("Save", "button")
    while (await page.locator(":focus").inner_text()).strip() != "Save":
        await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/tier/list*")
    row = page.get_by_role("row").filter(has_text="by keys")
    await row.get_by_role("link", name="Edit").focus()
    await page.keyboard.press("Enter")
    await tab_to("Name", "textbox")
    await page.keyboard.press("End")
    await page.keyboard.type("board")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("was changed")).to_be_visible()
    await page.goto("tier/list")

    delete = page.get_by_role("row").filter(has_text="by keysboard").get_by_role("button", name="Delete")
    await delete.focus()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    focus_inside = dialog.locator(":focus").or_(page.locator("[role=dialog]:focus"))
    await expect(focus_inside).to_have_count(1)  # Until then it is still opening.
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await delete.focus()
    await page.keyboard.press("Enter")
    await expect(focus_inside).to_have_count(1)
    for _ in range(6):
        await page.keyboard.press("Tab")
        if await dialog.locator("button:focus").count() and "Cancel" not in await page.locator(":focus").inner_text():
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("row").filter(has_text="by keysboard")).to_have_count(0)
    await tab_to("Sign out", "button")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
