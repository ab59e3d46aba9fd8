"""Rate limits of a tier over HTTP. What they do to requests is tested with the limiter."""

import asyncio
from typing import Any

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from tests.api.test_rate_limiting import OUTSIDE
from tests.helper import all_rows, create_rate_limit, create_superuser, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio

RULE = {"name": "list", "path": "/api/v1/users", "limit": 5, "period": 60}


async def test_only_superusers_create_rate_limits(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    tier = await create_tier(db, "pro")

    assert (await client.post("tier/pro/rate_limit", json=RULE)).status_code == 401
    refused = await client.post("tier/pro/rate_limit", json=RULE, headers=signed_in(user, settings))
    assert refused.status_code == 403

    created = await client.post("tier/pro/rate_limit", json=RULE, headers=signed_in(admin, settings))
    assert created.status_code == 201
    assert created.json() == RULE | {"id": 1, "tier_id": tier.id}
    assert (await client.get("tier/pro/rate_limit/1")).json() == created.json()


async def test_a_rule_can_be_for_every_path(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "pro")

    created = await client.post("tier/pro/rate_limit", json=RULE | {"path": "*"}, headers=admin)
    assert created.status_code == 201
    assert created.json()["path"] == "*"


async def test_a_path_is_one_the_app_has(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))
    before = await all_rows(db)

    for path, nearest in (
        ("/api/v1/user/{name}", "/api/v1/user/{username}"),
        ("/api/v1/usres", "/api/v1/users"),
        ("/api/v1/USERS", "/api/v1/users"),
        ("/api/v1/users/", "/api/v1/users"),
        ("/users", "/api/v1/users"),
    ):
        for refused in (
            await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin),
            await client.patch("tier/pro/rate_limit/1", json={"path": path}, headers=admin),
        ):
            assert refused.status_code == 422
            assert refused.json()["type"] == "urn:problem-type:unknown-path"
            assert nearest in refused.json()["nearest"]
    for path in ("/docs", "/", "**", "users", "/api/v1/users\n", "/api/v1/users\0", "", "/" + "a" * 255):
        refused = await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin)
        assert refused.status_code == 422, path
    assert await all_rows(db) == before


async def test_a_path_has_one_rule_per_tier(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    for name in ("free", "pro"):
        await create_tier(db, name)

    async def create(tier: str, **values: Any) -> int:
        return (await client.post(f"tier/{tier}/rate_limit", json=RULE | values, headers=admin)).status_code

    assert await create("pro") == 201
    assert await create("pro") == 409
    assert await create("pro", name="another name") == 409
    assert await create("pro", path="*") == 201
    assert await create("free") == 201

    moved = await client.patch("tier/pro/rate_limit/1", json={"path": "*"}, headers=admin)
    assert moved.status_code == 409
    assert moved.json()["type"] == "urn:problem-type:rate-limit-path-taken"
    assert (await client.get("tier/pro/rate_limit/1")).json()["path"] == RULE["path"]


async def test_of_simultaneous_rules_for_one_path_one_succeeds(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "pro")

    asked = (client.post("tier/pro/rate_limit", json=RULE, headers=admin) for _ in range(10))
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9


async def test_one_changed_field_leaves_the_others_alone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"), **RULE)

    for values in ({"name": " new "}, {"path": "*"}, {"limit": 1}, {"period": 31_536_000}, {}):
        before = (await client.get("tier/pro/rate_limit/1")).json()
        changed = await client.patch("tier/pro/rate_limit/1", json=values, headers=admin)
        assert changed.status_code == 200
        expected = before | {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        assert changed.json() == expected
        assert (await client.get("tier/pro/rate_limit/1")).json() == expected


@pytest.mark.parametrize("field", ["limit", "period"])
async def test_limits_and_periods_are_positive_whole_numbers(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, field: str
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))
    before = await all_rows(db)

    numbers: list[Any] = [0, -1, 2**31, 1.5, None, [], "5", True]
    for number in numbers:
        for answer in (
            await client.post("tier/pro/rate_limit", json=RULE | {field: number}, headers=admin),
            await client.patch("tier/pro/rate_limit/1", json={field: number}, headers=admin),
        ):
            assert answer.status_code == 422, number
            assert answer.json()["errors"][0]["loc"] == ["body", field]
    assert await all_rows(db) == before


async def test_a_rate_limit_of_another_tier_is_404(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "free")
    rule = await create_rate_limit(db, await create_tier(db, "pro"))
    before = await all_rows(db)

    for tier, kind in (("free", "rate-limit-not-found"), ("nosuch", "tier-not-found")):
        for method, body in (("GET", None), ("PATCH", {"limit": 1}), ("DELETE", None)):
            path = f"tier/{tier}/rate_limit/{rule.id}"
            answer = await client.request(method, path, json=body, headers=admin)
            assert answer.status_code == 404
            assert answer.json()["type"] == f"urn:problem-type:{kind}"
    assert await all_rows(db) == before


async def test_a_missing_tier_has_no_rate_limits(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)

    assert (await client.get("tier/nosuch/rate_limits")).status_code == 404
    assert (await client.post("tier/nosuch/rate_limit", json=RULE, headers=admin)).status_code == 404


async def test_a_rate_limit_is_deleted_once(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))

    assert (await client.delete("tier/pro/rate_limit/1", headers=admin)).status_code == 200
    assert (await client.delete("tier/pro/rate_limit/1", headers=admin)).status_code == 404
    assert (await client.get("tier/pro/rate_limit/1")).status_code == 404


async def test_a_list_comes_in_pages_of_one_tier(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    other, tier = await create_tier(db, "free"), await create_tier(db, "pro")
    await create_rate_limit(db, other)
    for path in ("*", "/api/v1/users", "/api/v1/tiers"):
        await create_rate_limit(db, tier, path=path)

    async def paths(**params: int) -> tuple[list[str], int, bool]:
        page = (await client.get("tier/pro/rate_limits", params=params)).json()
        return [entry["path"] for entry in page["data"]], page["total_count"], page["has_more"]

    assert await paths() == (["*", "/api/v1/users", "/api/v1/tiers"], 3, False)
    assert await paths(items_per_page=2) == (["*", "/api/v1/users"], 3, True)
    assert await paths(page=2, items_per_page=2) == (["/api/v1/tiers"], 3, False)


DAY, HOUR, BURST = {"limit": 500, "period": 86_400}, {"limit": 100, "period": 3_600}, {"limit": 2, "period": 1}


async def test_a_rule_has_up_to_three_windows_more(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    tier = await create_tier(db, "pro")
    user = await create_user(db, tier_id=tier.id)

    for more in ([DAY], [DAY, HOUR, BURST]):
        created = await client.post("tier/pro/rate_limit", json=RULE | {"additional_windows": more}, headers=admin)
        assert created.status_code == 201
        assert created.json() == RULE | {"id": created.json()["id"], "tier_id": tier.id, "additional_windows": more}
        path = f"tier/pro/rate_limit/{created.json()['id']}"
        assert (await client.get(path)).json() == created.json()
        assert (await client.get("tier/pro/rate_limits")).json()["data"] == [created.json()]
        effective = await client.get(f"user/{user.username}/rate_limits", headers=signed_in(user, settings))
        assert effective.json()[0] == RULE | {"additional_windows": more}
        assert (await client.delete(path, headers=admin)).status_code == 200


async def test_of_a_rule_without_more_windows_nothing_is_said_about_them(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    tier = await create_tier(db, "pro")
    user = await create_user(db, tier_id=tier.id)

    created = await client.post("tier/pro/rate_limit", json=RULE | {"additional_windows": []}, headers=admin)
    assert created.status_code == 201
    effective = await client.get(f"user/{user.username}/rate_limits", headers=signed_in(user, settings))
    for rule in (
        created.json(),
        (await client.get("tier/pro/rate_limit/1")).json(),
        (await client.get("tier/pro/rate_limits")).json()["data"][0],
        *effective.json(),
    ):
        assert "additional_windows" not in rule


async def test_windows_are_changed_as_a_whole_and_left_alone_when_not_named(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"), **RULE, additional_windows=[DAY])

    for values, expected in (
        ({"limit": 4}, [DAY]),
        ({}, [DAY]),
        ({"additional_windows": [HOUR, BURST]}, [HOUR, BURST]),
        ({"name": "new", "additional_windows": [BURST]}, [BURST]),
        ({"period": 61}, [BURST]),
        ({"additional_windows": []}, None),
    ):
        changed = await client.patch("tier/pro/rate_limit/1", json=values, headers=admin)
        assert changed.status_code == 200
        assert changed.json().get("additional_windows") == expected
        assert (await client.get("tier/pro/rate_limit/1")).json() == changed.json()


@pytest.mark.parametrize(
    "windows",
    [
        [DAY, HOUR, BURST, {"limit": 3, "period": 2}],
        [{"limit": 0, "period": 60}],
        [{"limit": 1, "period": 0}],
        [{"limit": -1, "period": 60}],
        [{"limit": 2**31, "period": 60}],
        [{"limit": 1, "period": 31_536_001}],
        [{"limit": 1.5, "period": 60}],
        [{"limit": "1", "period": 60}],
        [{"limit": True, "period": 60}],
        [{"limit": None, "period": 60}],
        [{"limit": 1}],
        [{"period": 1}],
        [{"limit": 1, "period": 60, "name": "x"}],
        [{}],
        [None],
        [DAY, None],
        [[1, 60]],
        None,
        DAY,
        "",
        5,
    ],
)
async def test_windows_that_are_none_are_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, windows: Any
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"), additional_windows=[DAY])
    before = await all_rows(db)

    for answer in (
        await client.post("tier/pro/rate_limit", json=RULE | {"additional_windows": windows}, headers=admin),
        await client.patch("tier/pro/rate_limit/1", json={"additional_windows": windows}, headers=admin),
    ):
        assert answer.status_code == 422
        assert {tuple(fault["loc"][:2]) for fault in answer.json()["errors"]} == {("body", "additional_windows")}
    assert await all_rows(db) == before


async def test_a_rule_can_name_a_method(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "pro")

    for sent, stored in (
        ("POST /api/v1/user", "POST /api/v1/user"),
        ("patch  /api/v1/user/{username}", "PATCH /api/v1/user/{username}"),
        ("GET /api/v1/users", "GET /api/v1/users"),
    ):
        created = await client.post("tier/pro/rate_limit", json=RULE | {"path": sent}, headers=admin)
        assert (created.status_code, created.json()["path"]) == (201, stored)
    changed = await client.patch("tier/pro/rate_limit/1", json={"path": "DELETE /api/v1/tier/{name}"}, headers=admin)
    assert changed.json()["path"] == "DELETE /api/v1/tier/{name}"
    taken = await client.post("tier/pro/rate_limit", json=RULE | {"path": "get /api/v1/users"}, headers=admin)
    assert taken.json()["type"] == "urn:problem-type:rate-limit-path-taken"


async def test_a_method_that_the_route_lacks_is_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))
    before = await all_rows(db)

    for path, nearest in (
        ("POST /api/v1/users", "POST /api/v1/user"),
        ("PUT /api/v1/user/{username}", "PATCH /api/v1/user/{username}"),
        ("HEAD /api/v1/users", "GET /api/v1/users"),
        ("POST /api/v1/usre", "POST /api/v1/user"),
        ("POST *", "POST /api/v1/tier"),
        ("GET /api/v1/health", "GET /api/v1/users"),
    ):
        for refused in (
            await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin),
            await client.patch("tier/pro/rate_limit/1", json={"path": path}, headers=admin),
        ):
            assert refused.status_code == 422, path
            if not path.endswith("*"):
                assert refused.json()["type"] == "urn:problem-type:unknown-path"
                assert nearest in refused.json()["nearest"], (path, refused.json()["nearest"])
    for path in (
        "POST",
        "POST ",
        " /api/v1/users",
        "GET,POST /api/v1/users",
        "GET\t/api/v1/users",
        "GET /api/v1/users ",
    ):
        refused = await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin)
        assert refused.status_code == 422, path
    assert await all_rows(db) == before


async def test_a_route_that_is_not_limited_takes_no_rule(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))
    before = await all_rows(db)

    for path in ("/api/v1/health", "/api/v1/ready", "/metrics", "/openapi.json", "/api/v1/user/me"):
        for refused in (
            await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin),
            await client.patch("tier/pro/rate_limit/1", json={"path": path}, headers=admin),
        ):
            assert refused.status_code == 422, path
            assert refused.json()["type"] == "urn:problem-type:unknown-path"
            assert path not in refused.json()["nearest"]
    assert await all_rows(db) == before


async def test_every_documented_route_that_is_limited_takes_a_rule(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "pro")
    documented = (await client.get("http://test/openapi.json")).json()["paths"]
    limited = documented.keys() - OUTSIDE
    with_method = {f"{method.upper()} {path}" for path in limited for method in documented[path]}

    assert len(limited) >= 25
    for path in sorted(limited | with_method):
        created = await client.post("tier/pro/rate_limit", json=RULE | {"path": path}, headers=admin)
        assert created.status_code == 201, path
