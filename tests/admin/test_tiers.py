"""The console's pages of tiers, over HTTP."""

import httpx2
import pytest
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.models.tier import Tier
from tests.admin.operator import post, text_of
from tests.admin.people import act, cache, entries, is_cached, shows_as_text
from tests.admin.world import HOSTILE
from tests.helper import create_rate_limit, create_tier, create_user, make_room

pytestmark = pytest.mark.anyio


async def names(db: AsyncSession) -> set[str]:
    return set(await db.exec(select(col(Tier.name))))


async def test_a_tier_is_made_changed_and_deleted(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    await cache(client, "tiers")
    assert (await post(operator, "tier/create", {"name": "pro"})).status_code == 303
    assert await names(db) == {"pro"}
    assert not await is_cached(client, "tiers")
    tier = (await db.exec(select(Tier))).one()
    await cache(client, "tiers", "tier/pro", "tier/pro/rate_limits")

    assert (await post(operator, f"tier/edit?pk={tier.id}", {"name": "gold"})).status_code == 303
    assert await names(db) == {"gold"}
    assert (await client.get("tier/pro")).status_code == 404
    assert (await client.get("tier/pro/rate_limits")).status_code == 404
    assert not await is_cached(client, "tiers")
    await cache(client, "tiers")

    assert (await act(operator, "tier", "delete", tier.id)).status_code == 200
    assert await names(db) == set()
    assert not await is_cached(client, "tiers")
    written = await entries(db)
    assert [entry[:4] for entry in written[:2]] == [
        ("operator", "tier.create", f"tier {tier.id}", {}),
        ("operator", "tier.edit", f"tier {tier.id}", {"name": "pro"}),
    ]
    assert [entry[4] for entry in written] == [{"name": "pro"}, {"name": "gold"}, {}]
    assert written[2][1] == "tier.delete"
    assert written[2][3]["name"] == "gold"


@pytest.mark.parametrize("name", ["", "  ", "a/b", "..", "taken", "x" * 51])
async def test_a_wrong_name_is_said_at_its_field(operator: httpx2.AsyncClient, db: AsyncSession, name: str) -> None:
    await create_tier(db, "taken")
    other = await create_tier(db, "other")

    for path in ("tier/create", f"tier/edit?pk={other.id}"):
        answer = await post(operator, path, {"name": name})
        assert answer.status_code == 422
        assert 'id="name-error"' in answer.text
    assert await names(db) == {"taken", "other"}
    assert await entries(db) == []


async def test_a_tier_that_somebody_has_stays(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    await create_user(db, tier_id=tier.id)

    answer = await act(operator, "tier", "delete", tier.id)

    assert (answer.status_code, answer.json()) == (
        400,
        {"msg": "Users still have this tier: move them to another one first."},
    )
    assert await names(db) == {"pro"}
    assert await entries(db) == []


async def test_a_tiers_page_says_who_has_it_and_what_its_rules_are(
    operator: httpx2.AsyncClient, db: AsyncSession
) -> None:
    tier = await create_tier(db)
    rule = await create_rate_limit(db, tier, name="burst", additional_windows=[{"limit": 1000, "period": 86_400}])
    for _ in range(2):
        await create_user(db, tier_id=tier.id)
    await create_user(db, username="elsewhere")

    page = await operator.get("tier/detail", params={"pk": tier.id})

    assert "2 users have this tier" in text_of(page)
    assert "burst * 10 per minute, 1,000 per day" in text_of(page)
    assert f'href="/admin/rate-limit/detail?pk={rule.id}"' in page.text
    users = await operator.get("user/list", params={"filter": f"tier_id__eq={tier.id}"})
    assert f"/admin/user/list?filter=tier_id__eq%3D{tier.id}" in page.text
    assert "elsewhere" not in users.text


async def test_script_in_tiers_is_text(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    name = '"><script>fail()<br>'
    tier = await create_tier(db, name)
    await create_rate_limit(db, tier, name=HOSTILE)
    pages = [
        await operator.get("tier/list"),
        await operator.get("tier/list", params={"q": HOSTILE, "filter": "name__contains=<script>fail"}),
        await operator.get("tier/detail", params={"pk": tier.id}),
        await operator.get("tier/edit", params={"pk": tier.id}),
        await post(operator, "tier/create", {"name": HOSTILE}),
        await post(operator, "tier/create", {"name": name}),
    ]
    assert (await post(operator, f"tier/edit?pk={tier.id}", {"name": f"{name}2"})).status_code == 303
    pages.append(await operator.get("tier/list"))  # With the message that it was changed.
    for page in pages:
        shows_as_text(page, "<script>fail", "<br>2")
    assert "was changed" in text_of(pages[-1])


@pytest.mark.parametrize("options", ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED"])
async def test_a_tier_that_an_applications_table_refers_to_stays_and_the_table_is_named(
    operator: httpx2.AsyncClient, db: AsyncSession, options: str
) -> None:
    tier = await create_tier(db, "pro")
    reference = f"tier_id int CONSTRAINT fk_plan_tier REFERENCES tier {options}"
    await make_room(await db.connection(), "plan")
    await (await db.connection()).execute(text(f"CREATE TABLE plan ({reference})"))
    await (await db.connection()).execute(text("INSERT INTO plan VALUES (:tier_id)"), {"tier_id": tier.id})
    await db.commit()

    answer = await act(operator, "tier", "delete", tier.id)

    assert 400 <= answer.status_code < 500
    assert "plan" in answer.text
    assert "fk_plan_tier" in answer.text
    assert await names(db) == {"pro"}
