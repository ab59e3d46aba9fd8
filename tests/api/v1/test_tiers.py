"""Tiers over HTTP: the golden resource's tests, the ones to copy for a new resource."""

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio


async def test_only_superusers_create_tiers(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)

    assert (await client.post("tier", json={"name": "pro"})).status_code == 401
    assert (await client.post("tier", json={"name": "pro"}, headers=signed_in(user, settings))).status_code == 403

    created = await client.post("tier", json={"name": "pro"}, headers=signed_in(admin, settings))
    assert created.status_code == 201
    assert created.json() == {"id": 1, "name": "pro"}


async def test_anybody_reads_tiers(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    for name in ("free", "pro", "team"):
        await create_tier(db, name)

    page = (await client.get("tiers", params={"page": 2, "items_per_page": 2})).json()
    assert page == {
        "data": [{"id": 3, "name": "team"}],
        "total_count": 3,
        "has_more": False,
        "page": 2,
        "items_per_page": 2,
    }
    assert (await client.get("tiers", params={"items_per_page": 2})).json()["has_more"] is True
    assert (await client.get("tier/pro")).json() == {"id": 2, "name": "pro"}


async def test_a_missing_tier_is_404(client: httpx2.AsyncClient) -> None:
    answer = await client.get("tier/nosuch")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:problem-type:tier-not-found"


async def test_a_tier_is_renamed(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = await create_superuser(db)
    await create_tier(db, "pro")

    renamed = await client.patch("tier/pro", json={"name": "  professional "}, headers=signed_in(admin, settings))

    assert renamed.json() == {"id": 1, "name": "professional"}
    assert (await client.get("tier/pro")).status_code == 404
    assert (await client.get("tier/professional")).status_code == 200


async def test_a_name_is_taken_once(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db, "free")
    await create_tier(db, "pro")

    for answer in (
        await client.post("tier", json={"name": "pro"}, headers=admin),
        await client.patch("tier/free", json={"name": "pro"}, headers=admin),
    ):
        assert answer.status_code == 409
        assert answer.json()["detail"] == "Tier name is already taken."


async def test_a_tier_goes_with_its_rate_limits(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    await create_rate_limit(db, await create_tier(db, "pro"))

    assert (await client.delete("tier/pro", headers=admin)).status_code == 200
    assert (await client.get("tier/pro/rate_limits")).status_code == 404


async def test_a_tier_that_users_have_stays(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)
    tier = await create_tier(db, "pro")
    await create_user(db, tier_id=tier.id)

    refused = await client.delete("tier/pro", headers=admin)

    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:problem-type:tier-in-use"
    assert (await client.get("tier/pro")).status_code == 200


async def test_a_tier_that_only_deleted_users_had_can_go(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    user = await create_user(db, username="ada", tier_id=(await create_tier(db, "pro")).id)
    assert (await client.delete("user/ada", headers=signed_in(user, settings))).status_code == 200

    assert (await client.delete("tier/pro", headers=admin)).status_code == 200


@pytest.mark.parametrize("name", ["a/b", ".", "..", " .. "])
async def test_a_name_that_no_address_could_hold_is_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, name: str
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    assert (await client.post("tier", json={"name": name}, headers=admin)).status_code == 422
    assert (await client.get("tiers")).json()["total_count"] == 0
