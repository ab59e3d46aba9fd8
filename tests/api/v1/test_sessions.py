"""A user's logins over HTTP: seen, and ended one by one or all at once."""

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.models.user import User
from tests.helper import PASSWORD, create_session, create_superuser, create_user, session_of, signed_in

pytestmark = pytest.mark.anyio

SHOWN = {"id", "kind", "created_at", "last_used_at", "expires_at", "address", "user_agent", "current"}


async def status_of_me(client: httpx2.AsyncClient, headers: dict[str, str]) -> int:
    return (await client.get("user/me/", headers=headers)).status_code


async def test_a_login_shows_where_it_came_from_and_nothing_secret(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    login = await client.post(
        "login", data={"username": user.username, "password": PASSWORD}, headers={"User-Agent": "A browser"}
    )
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}

    page = (await client.get("user/me/sessions", headers=headers)).json()

    assert page["total_count"] == 2
    newest = page["data"][0]
    assert newest.keys() == SHOWN
    assert (newest["user_agent"], newest["address"], newest["current"]) == ("A browser", "127.0.0.1", True)
    assert [session["current"] for session in page["data"]] == [True, False]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("x" * 300, "x" * 255), ("", None), ("a\tb", None), ("Z\u00fcrich", "Z?rich"), ("\x1b[31m", None)],
)
async def test_a_browser_may_call_itself_anything(
    client: httpx2.AsyncClient, db: AsyncSession, sent: str, kept: str | None
) -> None:
    user = await create_user(db)
    form = {"username": user.username, "password": PASSWORD}
    login = await client.post("login", data=form, headers={b"User-Agent": sent.encode("latin-1")})
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert (await client.get("user/me/sessions", headers=headers)).json()["data"][0]["user_agent"] == kept


async def test_a_list_holds_ones_own_live_logins(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, other = await create_user(db), await create_user(db)
    ended, lives = await create_session(db, user), await create_session(db, user)
    await create_session(db, other)
    headers = signed_in(user, settings)
    await client.delete(f"user/me/sessions/{ended.id}", headers=headers)

    page = (await client.get("user/me/sessions", params={"items_per_page": 1}, headers=headers)).json()
    assert (page["total_count"], page["has_more"]) == (2, True)
    listed = (await client.get("user/me/sessions", headers=headers)).json()["data"]
    assert {session["id"] for session in listed} == {str(lives.id), str(session_of(user))}


async def test_ending_one_login_leaves_the_others(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    ended, other = await create_session(db, user), await create_session(db, user)

    answer = await client.delete(f"user/me/sessions/{ended.id}", headers=signed_in(user, settings))

    assert (answer.status_code, answer.json()) == (200, {"ended": 1})
    assert await status_of_me(client, signed_in(user, settings, ended.id)) == 401
    assert await status_of_me(client, signed_in(user, settings, other.id)) == 200


async def test_nobody_ends_a_login_that_is_not_theirs_or_has_ended(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, other, admin = await create_user(db), await create_user(db), await create_superuser(db)
    theirs, ended = await create_session(db, other), await create_session(db, user)
    await client.delete(f"user/me/sessions/{ended.id}", headers=signed_in(user, settings))

    for caller in (user, admin):
        for session_id in (theirs.id, ended.id, "00000000-0000-0000-0000-000000000000"):
            answer = await client.delete(f"user/me/sessions/{session_id}", headers=signed_in(caller, settings))
            assert answer.status_code == 404
            assert answer.json()["type"] == "urn:problem-type:login-session-not-found"
    assert await status_of_me(client, signed_in(other, settings, theirs.id)) == 200
    assert (await client.delete("user/me/sessions/me", headers=signed_in(user, settings))).status_code == 422


async def test_signing_out_everywhere(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, other = await create_user(db), await create_user(db)
    elsewhere = await create_session(db, user)

    answer = await client.delete("user/me/sessions", headers=signed_in(user, settings))

    assert answer.json() == {"ended": 2}
    assert 'refresh_token="";' in answer.headers["Set-Cookie"]
    assert await status_of_me(client, signed_in(user, settings)) == 401
    assert await status_of_me(client, signed_in(user, settings, elsewhere.id)) == 401
    assert await status_of_me(client, signed_in(other, settings)) == 200


async def test_a_superuser_sees_and_ends_anybodys_logins(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    address = f"user/{user.username}/sessions"

    assert (await client.get(address, headers=signed_in(user, settings))).status_code == 403
    assert (await client.delete(address, headers=signed_in(user, settings))).status_code == 403
    seen = (await client.get(address, headers=signed_in(admin, settings))).json()
    assert [session["id"] for session in seen["data"]] == [str(session_of(user))]
    assert (await client.delete(address, headers=signed_in(admin, settings))).json() == {"ended": 1}
    assert await status_of_me(client, signed_in(user, settings)) == 401
    assert await status_of_me(client, signed_in(admin, settings)) == 200


async def test_logins_end_with_their_user(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    deleted, erased, admin = await create_user(db), await create_user(db), await create_superuser(db)
    await client.delete(f"user/{deleted.username}", headers=signed_in(deleted, settings))
    await client.delete(f"db_user/{erased.username}", headers=signed_in(admin, settings))
    for user in (deleted, erased):
        assert await status_of_me(client, signed_in(user, settings)) == 401
    assert (await db.get(User, erased.id, populate_existing=True)) is None
