"""The console's pages of rate limits, over HTTP."""

import re
from typing import Any

import httpx2
import pytest
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.views.rate_limit_forms import per, windows_in
from app.admin.views.rate_limit_forms import text_of as windows_text
from app.core.config import Settings
from app.models.rate_limit import RateLimit
from tests.admin.operator import post, text_of
from tests.admin.people import act, cache, entries, is_cached, shows_as_text
from tests.admin.world import HOSTILE, create_world
from tests.helper import create_rate_limit, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio

PATH = "/api/v1/user/{username}"
GONE = "/api/v1/gone"


def form(tier_id: int, **values: Any) -> dict[str, Any]:
    defaults = {"tier_id": tier_id, "name": "burst", "path": "*", "limit": 10, "period": 60, "additional_windows": ""}
    return defaults | values


async def stored(db: AsyncSession) -> list[dict[str, Any]]:
    rows = await db.exec(select(RateLimit).order_by(col(RateLimit.id)).execution_options(populate_existing=True))
    return [row.model_dump(exclude={"id", "created_at", "updated_at"}) for row in rows]


async def test_a_rule_made_here_is_in_force_at_once(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    user = await create_user(db, tier_id=tier.id)
    await cache(client, "tier/pro/rate_limits")

    made = await post(operator, "rate-limit/create", form(tier.id, limit=2, additional_windows=" 5 per 3600 \r\n"))

    assert made.status_code == 303, text_of(made)
    assert not await is_cached(client, "tier/pro/rate_limits")
    answers = [await client.get("user/me/", headers=signed_in(user, settings)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    (rule,) = await stored(db)
    assert rule == {
        "tier_id": tier.id,
        "name": "burst",
        "path": "*",
        "limit": 2,
        "period": 60,
        "additional_windows": [{"limit": 5, "period": 3600}],
    }
    row = (await db.exec(select(RateLimit))).one()
    assert await entries(db) == [
        (
            "operator",
            "rate_limit.create",
            f"rate_limit {row.id}",
            {},
            rule | {"additional_windows": "5 per 3600"},
        )
    ]


async def test_a_changed_rule_drops_what_is_cached_of_both_tiers(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    one, two = await create_tier(db, "one"), await create_tier(db, "two")
    rule = await create_rate_limit(db, one, name="burst", additional_windows=[{"limit": 9, "period": 1}])
    await cache(client, "tier/one/rate_limits", "tier/two/rate_limits")

    values = form(two.id, path=PATH, limit=3, additional_windows="7 per 2\n8 per 3")
    assert (await post(operator, f"rate-limit/edit?pk={rule.id}", values)).status_code == 303

    for name, count in (("one", 0), ("two", 1)):
        assert not await is_cached(client, f"tier/{name}/rate_limits")
        assert (await client.get(f"tier/{name}/rate_limits")).json()["total_count"] == count
    (changed,) = await stored(db)
    assert (changed["tier_id"], changed["path"], changed["limit"]) == (two.id, PATH, 3)
    assert changed["additional_windows"] == [{"limit": 7, "period": 2}, {"limit": 8, "period": 3}]
    assert [entry[3:] for entry in await entries(db)] == [
        (
            {"tier_id": one.id, "path": "*", "limit": 10, "additional_windows": "9 per 1"},
            {"tier_id": two.id, "path": PATH, "limit": 3, "additional_windows": "7 per 2\n8 per 3"},
        )
    ]


async def test_a_rule_is_deleted(operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    rule = await create_rate_limit(db, tier)
    await cache(client, "tier/pro/rate_limits")

    assert (await act(operator, "rate-limit", "delete", rule.id)).status_code == 200

    assert (await client.get("tier/pro/rate_limits")).json()["total_count"] == 0
    assert await stored(db) == []
    (entry,) = await entries(db)
    assert entry[1:3] == ("rate_limit.delete", f"rate_limit {rule.id}")
    assert (entry[3]["path"], entry[3]["limit"], entry[4]) == ("*", 10, {})


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"tier_id": "999"}, "tier_id", "There is no such tier."),
        ({"tier_id": ""}, "tier_id", "required"),
        ({"name": " "}, "name", "visible character"),
        ({"path": "/api/v1/nowhere"}, "path", "Use `*`"),
        ({"path": "/api/v1/health"}, "path", "Use `*`"),
        ({"path": PATH}, "path", "already has a rate limit"),
        ({"limit": "0"}, "limit", "at least 1"),
        ({"limit": "x"}, "limit", "required"),
        ({"limit": str(2**31)}, "limit", "less than or equal"),
        ({"period": "31536001"}, "period", "less than or equal"),
        ({"additional_windows": "1000 / 86400"}, "additional_windows", "Line 1: write it as 1000 per 86400"),
        ({"additional_windows": "5 per 5\n0 per 5"}, "additional_windows", "Line 2, limit"),
        ({"additional_windows": "5 per 0"}, "additional_windows", "Line 1, period"),
        ({"additional_windows": "1 per 1\n" * 4}, "additional_windows", "3 further windows"),
        ({"additional_windows": "٣ per 5"}, "additional_windows", "Line 1"),
    ],
)
async def test_a_wrong_value_is_said_at_its_field(
    operator: httpx2.AsyncClient, db: AsyncSession, values: dict[str, str], field: str, said: str
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, path=PATH)
    other = await create_rate_limit(db, tier, path="*")
    before = await stored(db)

    for path in ("rate-limit/create", f"rate-limit/edit?pk={other.id}"):
        answer = await post(operator, path, form(tier.id) | {"path": "/api/v1/users"} | values)
        assert answer.status_code == 422, path
        error = re.search(rf'id="{field}-error">([^<]*)<', answer.text)
        assert error is not None
        assert said in error[1]
    assert await stored(db) == before
    assert await entries(db) == []


async def test_the_form_offers_tiers_and_the_apps_routes(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_tier(db, "pro")

    page = await operator.get("rate-limit/create")

    paths = re.search(r'<select id="path".*?</select>', page.text, re.DOTALL)
    tiers = re.search(r'<select id="tier_id".*?</select>', page.text, re.DOTALL)
    assert paths is not None
    assert tiers is not None
    assert 'value="*"' in paths[0]
    assert f'value="{PATH}"' in paths[0]
    assert f'value="GET {PATH}"' in paths[0]
    assert "/api/v1/health" not in paths[0]  # It is not limited.
    assert ">pro" in tiers[0]


async def test_a_rule_can_name_a_method(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    assert (await post(operator, "rate-limit/create", form(tier.id, path=f"GET {PATH}"))).status_code == 303
    assert [row["path"] for row in await stored(db)] == [f"GET {PATH}"]
    listed = text_of(await operator.get("rate-limit/list"))
    assert f"GET {PATH}" in listed
    assert "no such route" not in listed
    refused = await post(operator, "rate-limit/create", form(tier.id, path=f"PUT {PATH}"))
    assert refused.status_code == 422


async def test_a_path_that_no_route_has_is_marked_and_can_be_edited(
    operator: httpx2.AsyncClient, db: AsyncSession
) -> None:
    tier = await create_tier(db)
    rule = await create_rate_limit(db, tier, path=GONE, name="old")

    for path in ("rate-limit/list", f"rate-limit/detail?pk={rule.id}"):
        assert f"{GONE} no such route any more" in text_of(await operator.get(path))
    assert f'<option value="{GONE}"' in (await operator.get(f"rate-limit/edit?pk={rule.id}")).text
    kept = await post(operator, f"rate-limit/edit?pk={rule.id}", form(tier.id, path=GONE, limit=4))
    assert kept.status_code == 303
    assert [(row["path"], row["limit"]) for row in await stored(db)] == [(GONE, 4)]
    assert (await post(operator, f"rate-limit/edit?pk={rule.id}", form(tier.id, path=PATH))).status_code == 303
    assert (await post(operator, f"rate-limit/edit?pk={rule.id}", form(tier.id, path=GONE))).status_code == 422


async def test_the_list_says_limits_in_words(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    await create_rate_limit(
        db, tier, limit=1500, period=120, additional_windows=[{"limit": 5, "period": 1}, {"limit": 7, "period": 90}]
    )
    other = await create_tier(db, "other")
    await create_rate_limit(db, other, name="elsewhere")

    text = text_of(await operator.get("rate-limit/list", params={"q": "pro"}))

    assert "1,500 per 2 minutes" in text
    assert "5 per second, 7 per 90 seconds" in text
    assert "elsewhere" not in text


def test_windows_are_written_as_they_are_read() -> None:
    windows = [{"limit": 1000, "period": 86_400}, {"limit": 1, "period": 1}]

    assert windows_in(windows_text(windows)) == windows
    assert windows_in("") == []
    assert (per(1, 86_400), per(2, 172_800), per(3, 3_600)) == ("1 per day", "2 per 2 days", "3 per hour")


async def test_script_in_rate_limits_is_text(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_world(db)
    rules = (await db.exec(select(RateLimit))).all()
    tier_id, pks = rules[0].tier_id, [rule.id for rule in rules]
    pages = [
        await operator.get("rate-limit/list"),
        await operator.get("rate-limit/list", params={"q": HOSTILE, "filter": "name__contains=<script>fail"}),
        await operator.get("rate-limit/create"),
        await post(operator, "rate-limit/create", form(tier_id, name=HOSTILE, path=HOSTILE)),
        await post(
            operator, "rate-limit/create", form(tier_id, additional_windows=f"{HOSTILE}</textarea><script>fail")
        ),
    ]
    for pk in pks:
        pages += [await operator.get(f"rate-limit/{page}?pk={pk}") for page in ("detail", "edit")]
    for page in pages:
        shows_as_text(page, "<script>fail")
