"""Users over HTTP."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
import pytest
from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.models import utc_now
from app.crud.crud_users import UserNotFound, crud_users
from app.models.user import User, UserTierUpdate, UserUpdate
from tests.conftest import second_session
from tests.helper import (
    PASSWORD,
    all_rows,
    create_rate_limit,
    create_superuser,
    create_tier,
    create_user,
    signed_in,
)

pytestmark = pytest.mark.anyio

PUBLIC = {"id", "name", "username", "profile_image_url", "tier_id"}
FULL = PUBLIC | {"uuid", "email", "email_verified_at", "is_superuser", "created_at", "updated_at"}


def sign_up_form(**values: Any) -> dict[str, Any]:
    form = {"name": "Ada Lovelace", "username": "ada", "email": "ada@example.com", "password": PASSWORD}
    return form | values


async def count_users(db: AsyncSession) -> int:
    return (await db.exec(select(func.count()).select_from(User))).one()


# ---- Signing up ----


async def test_anybody_signs_up_and_then_signs_in(client: httpx2.AsyncClient) -> None:
    created = await client.post("user", json=sign_up_form())

    assert created.status_code == 201
    profile = created.json()
    assert profile.keys() == FULL
    assert profile["name"] == "Ada Lovelace"
    assert profile["email"] == "ada@example.com"
    assert profile["is_superuser"] is False
    assert profile["tier_id"] is None
    assert PASSWORD not in created.text
    assert "argon2" not in created.text
    assert (await client.post("login", data={"username": "ada", "password": PASSWORD})).status_code == 200


async def test_the_password_is_kept_as_an_argon2id_hash(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    await client.post("user", json=sign_up_form())

    user = await crud_users.get_by_username(db, "ada")
    assert user is not None
    assert user.hashed_password.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_nobody_signs_up_as_superuser(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    for field in ({"is_superuser": True}, {"tier_id": 1}, {"id": 1}, {"hashed_password": "x"}, {"is_deleted": False}):
        assert (await client.post("user", json=sign_up_form(**field))).status_code == 422
    assert await count_users(db) == 0


async def test_of_fifty_simultaneous_sign_ups_with_one_name_one_succeeds(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    forms = [sign_up_form(email=f"ada{number}@example.com") for number in range(50)]
    answers = await asyncio.gather(*(client.post("user", json=form) for form in forms))

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} == {
        "urn:problem-type:username-taken"
    }
    assert await count_users(db) == 1


async def test_of_fifty_simultaneous_sign_ups_with_one_address_one_succeeds(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    spellings = ("ada@example.com", "Ada@example.com", "ADA@EXAMPLE.COM")
    forms = [sign_up_form(username=f"ada{number}", email=spellings[number % 3]) for number in range(50)]
    answers = await asyncio.gather(*(client.post("user", json=form) for form in forms))

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} == {
        "urn:problem-type:email-taken"
    }
    assert await count_users(db) == 1


async def test_names_and_addresses_are_trimmed_and_in_nfc(client: httpx2.AsyncClient) -> None:
    decomposed = sign_up_form(name="  Zoe\u0308 ", email=" zoe\u0308@example.com ")

    profile = (await client.post("user", json=decomposed)).json()
    assert profile["name"] == "Zo\u00eb"
    assert profile["email"] == "zo\u00eb@example.com"
    composed = sign_up_form(username="zoe2", email="ZO\u00cb@example.com")
    assert (await client.post("user", json=composed)).status_code == 409


async def test_a_name_has_to_be_seen_and_not_to_turn_the_text_around_it(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    for name in ("\u200b", "\ufeff\u3164", " \u2060 ", "\U000e0001", "a\u202eb", "a\u2028b", "a\u2066b"):
        assert (await client.post("user", json=sign_up_form(name=name))).status_code == 422, ascii(name)
    assert await count_users(db) == 0
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # Joined by characters that alone would show nothing.
    assert (await client.post("user", json=sign_up_form(name=family))).json()["name"] == family


async def test_bad_user_names_are_refused(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    longest = "a" * 20
    for username in ("me", "Ada", "a", longest + "a", "ada l", " ada", "ada\n", "ad\u00e4", "a-b", "\u0661\u0662", ""):
        refused = await client.post("user", json=sign_up_form(username=username))
        assert refused.status_code == 422, username
        assert refused.json()["errors"][0]["loc"] == ["body", "username"]
    assert await count_users(db) == 0
    assert (await client.post("user", json=sign_up_form(username=longest))).status_code == 201


async def test_bad_passwords_are_refused_and_not_echoed(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    for password in ("seven77", "x" * 129, "", 12345678, None):
        refused = await client.post("user", json=sign_up_form(password=password))
        assert refused.status_code == 422, password
        assert refused.json()["errors"][0]["loc"] == ["body", "password"]
        assert not password or str(password) not in refused.text
    assert await count_users(db) == 0


async def test_a_password_may_hold_any_character(client: httpx2.AsyncClient) -> None:
    """Spaces at its ends, control characters and both forms of one letter included: each counts."""
    password = " \0\n\u00eb e\u0308 \U0001f40e" + "x" * 100

    assert (await client.post("user", json=sign_up_form(password=password))).status_code == 201
    for given, status in ((password, 200), (password.strip(), 401), (password.replace("\u00eb", "e\u0308"), 401)):
        assert (await client.post("login", data={"username": "ada", "password": given})).status_code == status


# ---- Reading ----


async def test_who_sees_how_much_of_a_profile(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, other, admin = await create_user(db, username="ada"), await create_user(db), await create_superuser(db)

    for headers in ({}, signed_in(other, settings)):
        answer = await client.get("user/ada", headers=headers)
        assert answer.json().keys() == PUBLIC
        assert "ada@example.com" not in answer.text
    for headers in (signed_in(user, settings), signed_in(admin, settings)):
        assert (await client.get("user/ada", headers=headers)).json().keys() == FULL


async def test_a_list_shows_everything_to_superusers_only(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)

    for headers in ({}, signed_in(user, settings)):
        answer = await client.get("users", headers=headers)
        assert [entry.keys() for entry in answer.json()["data"]] == [PUBLIC, PUBLIC]
        assert "@" not in answer.text
    full = (await client.get("users", headers=signed_in(admin, settings))).json()
    assert [entry["email"] for entry in full["data"]] == [user.email, admin.email]


async def test_me_is_the_caller(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)

    for path in ("user/me", "user/me/"):
        assert (await client.get(path)).status_code == 401
        answer = await client.get(path, headers=signed_in(user, settings))
        assert answer.status_code == 200
        assert answer.json().keys() == FULL
        assert answer.json()["username"] == user.username


async def test_a_missing_user_is_404(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    admin = signed_in(await create_superuser(db), settings)

    for method, path, body in (
        ("GET", "user/nobody", None),
        ("PATCH", "user/nobody", {}),
        ("DELETE", "user/nobody", None),
        ("DELETE", "db_user/nobody", None),
        ("GET", "user/nobody/tier", None),
        ("PATCH", "user/nobody/tier", {"tier_id": None}),
        ("GET", "user/nobody/rate_limits", None),
    ):
        answer = await client.request(method, path, json=body, headers=admin)
        assert answer.status_code == 404, path
        assert answer.json()["type"] == "urn:problem-type:user-not-found"


async def test_a_list_comes_in_pages(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    for _ in range(11):
        await create_user(db)

    async def ids(**params: int) -> tuple[list[int], bool]:
        page = (await client.get("users", params=params)).json()
        assert page["total_count"] == 11
        return [entry["id"] for entry in page["data"]], page["has_more"]

    assert await ids() == ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], True)
    assert await ids(page=2) == ([11], False)
    assert await ids(page=3) == ([], False)
    assert await ids(items_per_page=11) == ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], False)
    assert await ids(page=6, items_per_page=2) == ([11], False)
    assert await ids(page=1_000_000, items_per_page=100) == ([], False)


# ---- Changing ----


async def test_one_changed_field_leaves_the_others_alone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="ada", profile_image_url="http://example.com/old.png")
    headers = signed_in(user, settings)

    for field, value, stored in (
        ("name", "  Grace ", "Grace"),
        ("email", "Grace@Example.com", "Grace@example.com"),
        ("profile_image_url", "https://example.com/grace.png", "https://example.com/grace.png"),
        ("profile_image_url", None, None),
        ("username", "grace", "grace"),
    ):
        before = (await client.get("user/me/", headers=headers)).json()
        changed = await client.patch("user/ada", json={field: value}, headers=headers)
        assert changed.status_code == 200, field
        after = changed.json()
        assert after == before | {field: stored, "updated_at": after["updated_at"]}
        assert after["updated_at"] != before["updated_at"]
        assert (await client.get("user/me/", headers=headers)).json() == after


async def test_an_empty_change_changes_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    before = await all_rows(db)

    answer = await client.patch(f"user/{user.username}", json={}, headers=signed_in(user, settings))

    assert answer.status_code == 200
    assert await all_rows(db) == before


async def test_bad_changes_are_refused_as_a_whole(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="ada")
    before = await all_rows(db)

    for values in (
        {"name": None},
        {"username": None},
        {"email": None},
        {"username": "me"},
        {"email": "nobody"},
        {"profile_image_url": "javascript:alert(1)"},
        {"profile_image_url": 'https://example.com/"onerror=alert(1)'},
        {"profile_image_url": "https://example.com/" + "a" * 500},
        {"password": "another password"},
        {"hashed_password": "x"},
        {"is_superuser": True},
        {"tier_id": 1},
        {"is_deleted": True},
        {"uuid": "00000000-0000-0000-0000-000000000000"},
        {"name": "Good", "email": "bad"},
    ):
        refused = await client.patch("user/ada", json=values, headers=signed_in(user, settings))
        assert refused.status_code == 422, values
    assert await all_rows(db) == before


async def test_a_superuser_changes_anybody(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)

    changed = await client.patch(f"user/{user.username}", json={"name": "By admin"}, headers=signed_in(admin, settings))

    assert changed.json()["name"] == "By admin"
    assert changed.json()["email"] == user.email


async def test_a_renamed_user_is_found_under_the_new_name_only(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="old")

    await client.patch("user/old", json={"username": "new"}, headers=signed_in(user, settings))

    assert (await client.get("user/old")).status_code == 404
    assert (await client.get("user/new")).json()["id"] == user.id
    assert (await client.post("user", json=sign_up_form(username="old"))).status_code == 201


async def test_taken_names_and_addresses_are_409(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, _ = await create_user(db), await create_user(db, username="taken", email="Taken@example.com")
    headers = signed_in(user, settings)
    before = await all_rows(db)

    for values, kind in (({"username": "taken"}, "username-taken"), ({"email": "tAKEN@example.com"}, "email-taken")):
        refused = await client.patch(f"user/{user.username}", json={"name": "X"} | values, headers=headers)
        assert refused.status_code == 409
        assert refused.json()["type"] == f"urn:problem-type:{kind}"
    assert await all_rows(db) == before


async def test_ones_own_address_may_be_spelled_differently(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="ada")

    changed = await client.patch("user/ada", json={"email": "ADA@example.com"}, headers=signed_in(user, settings))
    assert changed.json()["email"] == "ADA@example.com"


# ---- Deleting ----


async def test_a_deleted_user_is_gone_but_the_row_is_kept(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db, username="ada"), signed_in(await create_superuser(db), settings)
    headers = signed_in(user, settings)

    assert (await client.delete("user/ada", headers=headers)).status_code == 200

    for path in ("user/me/", "users", "user/ada"):
        assert (await client.get(path, headers=headers)).status_code == 401
    assert (await client.delete("user/ada", headers=headers)).status_code == 401
    assert (await client.get("user/ada")).status_code == 404
    for path in ("user/ada", "user/ada/tier", "user/ada/rate_limits"):
        assert (await client.get(path, headers=admin)).status_code == 404
    assert (await client.patch("user/ada", json={"name": "X"}, headers=admin)).status_code == 404
    listed = (await client.get("users", headers=admin)).json()
    assert (listed["total_count"], len(listed["data"])) == (1, 1)

    await db.refresh(user)
    assert user.is_deleted
    assert user.deleted_at is not None


async def test_a_deleted_users_name_and_address_stay_taken(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="ada")
    await client.delete("user/ada", headers=signed_in(user, settings))

    by_name = await client.post("user", json=sign_up_form(email="other@example.com"))
    assert (by_name.status_code, by_name.json()["type"]) == (409, "urn:problem-type:username-taken")
    by_address = await client.post("user", json=sign_up_form(username="other", email="ADA@example.com"))
    assert (by_address.status_code, by_address.json()["type"]) == (409, "urn:problem-type:email-taken")


@pytest.mark.parametrize("deleted_before", [False, True])
async def test_a_superuser_removes_a_row_for_good(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, deleted_before: bool
) -> None:
    user, admin = await create_user(db, username="ada"), signed_in(await create_superuser(db), settings)
    old = signed_in(user, settings)
    if deleted_before:
        await client.delete("user/ada", headers=old)

    assert (await client.delete("db_user/ada", headers=admin)).status_code == 200

    assert await count_users(db) == 1
    assert (await client.delete("db_user/ada", headers=admin)).status_code == 404
    assert (await client.get("user/me/", headers=old)).status_code == 401
    assert (await client.post("user", json=sign_up_form())).status_code == 201
    assert (await client.get("user/me/", headers=old)).status_code == 401, "the name's next owner inherits no token"


# ---- Tiers and rate limits ----


async def test_a_superuser_moves_a_user_between_tiers(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db, username="ada"), signed_in(await create_superuser(db), settings)
    tier = await create_tier(db, "pro")

    async def tier_of_ada() -> Any:
        return (await client.get("user/ada/tier", headers=signed_in(user, settings))).json()

    assert await tier_of_ada() is None
    moved = await client.patch("user/ada/tier", json={"tier_id": tier.id}, headers=admin)
    assert (moved.status_code, moved.json()["tier_id"]) == (200, tier.id)
    assert await tier_of_ada() == {"id": tier.id, "name": "pro"}

    missing = await client.patch("user/ada/tier", json={"tier_id": 999}, headers=admin)
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:problem-type:tier-not-found")
    assert await tier_of_ada() == {"id": tier.id, "name": "pro"}

    await client.patch("user/ada/tier", json={"tier_id": None}, headers=admin)
    assert await tier_of_ada() is None


async def test_a_tier_id_is_a_positive_whole_number(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    await create_user(db, username="ada")
    admin = signed_in(await create_superuser(db), settings)
    await create_tier(db)
    before = await all_rows(db)

    for values in ({}, {"tier_id": 0}, {"tier_id": 2**31}, {"tier_id": 1.5}, {"tier_id": "1"}, {"tier_id": True}):
        assert (await client.patch("user/ada/tier", json=values, headers=admin)).status_code == 422, values
    assert await all_rows(db) == before


async def test_the_default_applies_where_no_rule_does(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    default = {"name": "default", "path": "*", "limit": settings.DEFAULT_RATE_LIMIT_LIMIT, "period": 60}
    tier = await create_tier(db)
    loner, member = await create_user(db, username="loner"), await create_user(db, username="member", tier_id=tier.id)

    async def limits_of(user: User) -> Any:
        answer = await client.get(f"user/{user.username}/rate_limits", headers=signed_in(user, settings))
        assert answer.status_code == 200
        return answer.json()

    assert await limits_of(loner) == [default]
    assert await limits_of(member) == [default]

    await create_rate_limit(db, tier, name="list", path="/api/v1/users", limit=5, period=1)
    listing = {"name": "list", "path": "/api/v1/users", "limit": 5, "period": 1}
    assert await limits_of(member) == [listing, default]
    assert await limits_of(loner) == [default]

    await create_rate_limit(db, tier, name="rest", path="*", limit=7, period=2)
    assert await limits_of(member) == [{"name": "rest", "path": "*", "limit": 7, "period": 2}, listing]


async def test_a_tier_that_is_given_during_the_deletion_is_let_go(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """Nobody could take it from a deleted user, and the tier could never be deleted."""
    for deleted_first in (True, False):
        user, tier = await create_user(db), await create_tier(db, f"tier {deleted_first}")
        async with second_session() as other:
            theirs = await other.get_one(User, user.id)

            async def delete(theirs: User = theirs, other: AsyncSession = other) -> None:
                await crud_users.soft_delete(other, theirs)
                await other.commit()

            if deleted_first:
                await delete()
                with pytest.raises(UserNotFound):
                    await crud_users.update(db, user, UserTierUpdate(tier_id=tier.id))
                await db.rollback()
            else:
                await crud_users.update(db, user, UserTierUpdate(tier_id=tier.id))
                await db.commit()
                await delete()
        admin = await create_superuser(db)
        deleted = await client.delete(f"tier/tier {deleted_first}", headers=signed_in(admin, settings))
        assert deleted.status_code == 200


async def test_an_address_that_is_verified_while_it_is_changed_does_not_verify_the_new_one(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    async with second_session() as other:
        theirs = await other.get_one(User, user.id)
        theirs.email_verified_at = utc_now()
    await crud_users.update(db, user, UserUpdate(email="new@example.com"))
    await db.commit()
    await db.refresh(user)
    assert (user.email, user.email_verified_at) == ("new@example.com", None)


async def test_two_simultaneous_renames_to_one_name_give_it_to_one(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    users = [await create_user(db) for _ in range(2)]
    answers = await asyncio.gather(
        *(
            client.patch(f"user/{user.username}", json={"username": "wanted"}, headers=signed_in(user, settings))
            for user in users
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert len((await db.exec(select(User).where(col(User.username) == "wanted"))).all()) == 1
