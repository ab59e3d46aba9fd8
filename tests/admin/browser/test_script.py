"""Script in every text field, put there through the browser: it is shown as text everywhere and never runs.

What runs, opens a dialog or breaks the policy is noticed by the page's watch (conftest).
"""

import pytest
from playwright.async_api import Page, expect

from app.models.user import User
from tests.admin.browser.conftest import Servers
from tests.admin.browser.steps import save, sign_in
from tests.conftest import opened_session
from tests.helper import create_tier, create_user

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

# No slash: names of tiers are parts of addresses.
TIER = "'\"><img src=x onerror=alert(1)>{{7*7}}"
NAME = "<script>alert(1)</script>"
RULE = "'\"><svg onload=alert(1)></svg>"


async def look(page: Page, *paths: str, text: str) -> None:
    """Opens pages and finds the text on each, as text."""
    for path in paths:
        await page.goto(path)
        content = page.get_by_role("main")
        value = f"input[value={_quoted(text)}]"
        await expect(content.get_by_text(text).or_(content.locator(value)).first).to_be_attached()
        assert await page.locator("main img[src=x], main svg[onload], main script:not([nonce])").count() == 0


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


async def test_in_the_names_of_tiers_and_rules(page: Page, superuser: User) -> None:
    await sign_in(page, superuser, "tier/create")
    await page.get_by_label("Name").fill(TIER)
    await save(page)  # The list says what it did.
    tier = await page.get_by_role("row").filter(has_text=TIER).get_by_role("link", name="View").get_attribute("href")
    assert tier is not None
    await page.goto("rate-limit/create")
    await page.get_by_label("Tier").select_option(TIER)
    await page.get_by_label("Name").fill(RULE)
    await page.get_by_label("Path").select_option("*")
    await page.get_by_label("Limit").fill("1000000")
    await page.get_by_label("Period").fill("1")
    await page.get_by_label("Further windows").fill("<script>alert(1)</script>")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_text("1000 per 86400").first).to_be_visible()  # It is refused, and stands in the field.
    await page.get_by_label("Further windows").fill("")
    await save(page)
    rule = page.get_by_role("row").filter(has_text=RULE)
    href = await rule.get_by_role("link", name="View").get_attribute("href")
    assert href is not None
    await look(page, tier, tier.replace("detail", "edit"), "tier/list", "limits", text=TIER)
    await look(page, href, href.replace("detail", "edit"), "rate-limit/list", text=RULE)
    await page.goto("console-action/list")
    mine = page.get_by_role("row").filter(has_text=superuser.username).filter(has_text="tier.create")
    href = await mine.get_by_role("link", name="View").get_attribute("href")
    assert href is not None
    await look(page, href, text=TIER)


async def test_in_a_user_s_name_and_in_what_is_searched(page: Page, superuser: User, servers: Servers) -> None:
    async with opened_session(servers.settings) as db:
        tier = await create_tier(db, "<img src=x onerror=alert(2)>")
        user = await create_user(db, tier_id=tier.id)
    await sign_in(page, superuser, f"user/edit?pk={user.id}")
    await page.get_by_label("Name", exact=False).nth(1).fill(NAME)
    await page.get_by_label("Profile image").fill("https://images.example/'onerror=alert(1)")
    await save(page)
    await look(page, f"user/detail?pk={user.id}", f"user/edit?pk={user.id}", "user/list", text=NAME)
    for key in ("user", "tier", "rate-limit", "job", "security-event", "console-action"):
        await page.goto(f"{key}/list")
        search = page.get_by_role("searchbox")
        for text in (NAME, TIER, "javascript:alert(1)"):
            await search.fill(text)
            await search.press("Enter")
            await expect(search).to_have_value(text)
    await page.goto(f"user/detail?pk={user.id}")
    await page.get_by_role("button", name="Move to tier").click()
    await expect(page.get_by_role("dialog").get_by_role("combobox")).to_be_visible()


async def test_in_what_the_cache_is_asked_for(page: Page, superuser: User) -> None:
    await sign_in(page, superuser, "cache")
    await page.get_by_label("Id", exact=True).fill(TIER)
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_role("heading", name=TIER)).to_be_visible()
    await page.get_by_role("button", name="Purge this resource").click()
    await expect(page.get_by_role("heading", name=TIER)).to_be_visible()


async def test_in_the_form_for_signing_in(page: Page) -> None:
    await page.goto(f"login?next={NAME}")
    await page.get_by_label("User name or e-mail address").fill(TIER)
    await page.get_by_label("Password").fill(NAME)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_be_visible()
