"""What of a list is seen on a phone without scrolling it sideways."""

import pytest
from playwright.async_api import expect

from app.core.db.models import utc_now
from app.core.utils.queue import Job, JobState
from app.models.user import User
from tests.admin.browser.conftest import NARROW, NewPage, Servers
from tests.admin.browser.steps import row, sign_in
from tests.conftest import opened_session

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


async def test_what_a_job_does_and_how_it_stands_comes_first(
    new_page: NewPage, superuser: User, servers: Servers
) -> None:
    now, job_id = utc_now(), "0123456789abcdef0123456789abcdef"
    async with opened_session(servers.settings) as db:
        db.add(Job(id=job_id, queue="q", function="send_email_verification", run_after=now, sent_at=now))
        long_name = "what_somebody_gave_a_name_that_says_all_of_what_it_does"
        db.add(Job(queue="q", id="long", function=long_name, state=JobState.CANCELLED, finished_at=now))
        await db.commit()
        page = await new_page(viewport=NARROW)
        await sign_in(page, superuser, "job/list")
        cells = row(page, job_id).locator("td[data-column], td").filter(has_text="queued")
        box = await cells.first.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= NARROW["width"]
        await expect(row(page, job_id).get_by_title(job_id)).to_contain_text("01234567\u2026")
        await row(page, job_id).get_by_role("link", name="View").click()
        await expect(page.get_by_role("main").get_by_text(job_id, exact=True).first).to_be_visible()
        job = await db.get(Job, job_id)
        assert job is not None
        job.state, job.finished_at = JobState.CANCELLED, utc_now()  # No worker takes it, and nobody counts it as due.
        await db.commit()


async def test_prefixes_are_not_broken(new_page: NewPage, superuser: User) -> None:
    page = await new_page(viewport=NARROW)
    await sign_in(page, superuser, "cache")
    prefix = page.get_by_role("rowheader", name="tier_rate_limits", exact=True)
    lines = "(cell) => { const all = new Range(); all.selectNodeContents(cell); return all.getClientRects().length; }"
    assert await prefix.evaluate(lines) == 1
