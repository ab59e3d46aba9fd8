"""Signing out over HTTP."""

from dataclasses import dataclass
from uuid import uuid4

import httpx2
import pytest
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.security import create_access_token, create_refresh_token, decode_access_token
from app.crud.crud_token_blacklist import crud_token_blacklist
from app.models.token_blacklist import TokenBlacklist
from app.models.user import User
from tests.helper import PASSWORD, all_rows, create_user, session_of, signed_in

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Login:
    """The tokens of one login, as headers."""

    access: dict[str, str]
    cookie: dict[str, str]


async def log_in(client: httpx2.AsyncClient, user: User) -> Login:
    client.cookies.clear()
    answer = await client.post("login", data={"username": user.username, "password": PASSWORD})
    refresh_token = answer.cookies["refresh_token"]
    client.cookies.clear()
    bearer = f"Bearer {answer.json()['access_token']}"
    return Login({"Authorization": bearer}, {"Cookie": f"refresh_token={refresh_token}"})


async def is_signed_in(client: httpx2.AsyncClient, login: Login) -> tuple[bool, bool]:
    """Whether the access token and the refresh token of a login are good; uses the latter up."""
    by_access = await client.get("user/me/", headers=login.access)
    by_cookie = await client.post("refresh", headers=login.cookie)
    client.cookies.clear()
    assert {by_access.status_code, by_cookie.status_code} <= {200, 401}
    return by_access.status_code == 200, by_cookie.status_code == 200


@pytest.mark.parametrize("given", ["access", "cookie", "both"])
async def test_either_token_ends_the_login_they_belong_to(
    client: httpx2.AsyncClient, db: AsyncSession, given: str
) -> None:
    user = await create_user(db)
    ended, other = await log_in(client, user), await log_in(client, user)
    headers = {"access": ended.access, "cookie": ended.cookie, "both": ended.access | ended.cookie}[given]

    answer = await client.post("logout", headers=headers)

    assert answer.status_code == 200
    assert answer.json() == {"message": "Signed out."}
    assert await is_signed_in(client, ended) == (False, False)
    assert await is_signed_in(client, other) == (True, True)


async def test_the_browser_drops_the_cookie(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))

    dropped = (await client.post("logout", headers=login.access)).headers["Set-Cookie"]

    assert dropped.startswith('refresh_token="";')
    assert "Max-Age=0" in dropped
    assert "Path=/api/v1;" in dropped


async def test_tokens_of_two_logins_end_both(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    first, second = await log_in(client, user), await log_in(client, user)

    assert (await client.post("logout", headers=first.access | second.cookie)).status_code == 200

    assert await is_signed_in(client, first) == (False, False)
    assert await is_signed_in(client, second) == (False, False)


async def test_signing_out_twice_is_no_error(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))

    for _ in range(2):
        assert (await client.post("logout", headers=login.access | login.cookie)).status_code == 200
    assert await is_signed_in(client, login) == (False, False)


async def test_tokens_from_a_refresh_end_with_their_login(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))
    refreshed = await client.post("refresh", headers=login.cookie)
    newer = Login(
        {"Authorization": f"Bearer {refreshed.json()['access_token']}"},
        {"Cookie": f"refresh_token={refreshed.cookies['refresh_token']}"},
    )
    client.cookies.clear()

    assert (await client.post("logout", headers=login.access)).status_code == 200

    assert await is_signed_in(client, newer) == (False, False)


async def test_an_expired_access_token_will_do(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    login = await log_in(client, user)
    good = decode_access_token(login.access["Authorization"].removeprefix("Bearer "), settings)
    hasty = settings.model_copy(update={"ACCESS_TOKEN_EXPIRE_MINUTES": -1})
    expired = {"Authorization": f"Bearer {create_access_token(hasty, user.uuid, good.session_id)}"}

    assert (await client.get("user/me/", headers=expired)).status_code == 401
    assert (await client.post("logout", headers=expired)).status_code == 200
    assert await is_signed_in(client, login) == (False, False)


async def test_no_logout_without_a_good_token(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)
    login = await log_in(client, user)
    access = login.access["Authorization"].removeprefix("Bearer ")
    refresh = create_refresh_token(settings, session_of(user), b"another salt than its", 0)
    before = await all_rows(db)

    for headers in (
        {},
        {"Authorization": "Bearer garbage"},
        {"Authorization": f"Bearer {refresh}"},
        {"Cookie": "refresh_token=garbage"},
        {"Cookie": f"refresh_token={access}"},
        {"Cookie": f"refresh_token={refresh}"},
        {"Cookie": f"refresh_token={create_refresh_token(settings, uuid4(), b'salt', 0)}"},
        {"Cookie": "session=x"},
    ):
        refused = await client.post("logout", headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.headers["Content-Type"] == "application/problem+json"
    assert await all_rows(db) == before
    assert await is_signed_in(client, login) == (True, True)


async def test_the_cookie_of_another_user_ends_that_login_too_and_no_other(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    """Whoever holds both signs out of both: a refresh token that stayed good would be nobody's to end."""
    user, other = await create_user(db), await create_user(db)
    mine, theirs, elsewhere = await log_in(client, user), await log_in(client, other), await log_in(client, other)

    assert (await client.post("logout", headers=mine.access | theirs.cookie)).status_code == 200

    assert await is_signed_in(client, mine) == (False, False)
    assert await is_signed_in(client, theirs) == (False, False)
    assert await is_signed_in(client, elsewhere) == (True, True)


async def test_an_older_refresh_token_ends_its_login(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))
    await client.post("refresh", headers=login.cookie)
    client.cookies.clear()

    assert (await client.post("logout", headers=login.cookie)).status_code == 200
    assert await is_signed_in(client, login) == (False, False)


async def test_the_access_token_is_blacklisted_until_it_expires(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    login = await log_in(client, await create_user(db))
    token = decode_access_token(login.access["Authorization"].removeprefix("Bearer "), settings)

    await client.post("logout", headers=login.access)

    (row,) = await db.exec(select(TokenBlacklist))
    assert (row.token, row.expires_at) == (token.jti, token.expires_at)


async def test_a_blacklisted_token_is_refused_though_its_login_lives(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    headers = signed_in(user, settings)
    token = decode_access_token(headers["Authorization"].removeprefix("Bearer "), settings)
    await crud_token_blacklist.revoke(db, token.jti, token.expires_at)
    await db.commit()

    assert (await client.get("user/me/", headers=headers)).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 200


async def test_one_users_logout_leaves_others_alone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, other = await create_user(db), await create_user(db)
    login, others = await log_in(client, user), await log_in(client, other)

    await client.post("logout", headers=login.access)

    assert await is_signed_in(client, others) == (True, True)
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 200
