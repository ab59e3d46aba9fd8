"""Signing in and staying so, over HTTP."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from http.cookies import Morsel, SimpleCookie
from typing import Any

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.core import security
from app.core.config import EnvironmentOption, Settings
from app.core.db.database import async_get_db
from app.core.security import TokenKind, create_token, new_token_id
from app.core.setup import create_application
from app.crud.crud_users import crud_users
from app.models.user import User
from tests.conftest import client_of
from tests.helper import PASSWORD, all_rows, create_user, signed_in

pytestmark = pytest.mark.anyio


async def log_in(client: httpx2.AsyncClient, username: str, password: str = PASSWORD) -> httpx2.Response:
    return await client.post("login", data={"username": username, "password": password})


async def refresh(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    """Asks for new tokens with this refresh token and no other cookie."""
    client.cookies.clear()
    return await client.post("refresh", headers={"Cookie": f"refresh_token={token}"})


async def status_of_me(client: httpx2.AsyncClient, answer: httpx2.Response) -> int:
    """What the access token in an answer is good for."""
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    return (await client.get("user/me/", headers=headers)).status_code


def cookie_in(answer: httpx2.Response) -> "Morsel[str]":
    return SimpleCookie(answer.headers["Set-Cookie"])["refresh_token"]


# ---- Signing in ----


async def test_a_login_gives_an_access_token_and_a_refresh_cookie(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)

    answer = await log_in(client, user.username)

    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type"}
    assert answer.json()["token_type"] == "bearer"
    assert await status_of_me(client, answer) == 200
    cookie = cookie_in(answer)
    assert cookie.value not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"  # RFC 6749, section 5.1


@pytest.mark.parametrize(("environment", "secure"), [("local", False), ("staging", True), ("production", True)])
async def test_what_the_browser_is_told_about_the_cookie(settings: Settings, environment: str, secure: bool) -> None:
    settings = settings.model_copy(update={"ENVIRONMENT": EnvironmentOption(environment)})
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with asynccontextmanager(async_get_db)() as db:
            user = await create_user(db)
        login = await log_in(client, user.username)
        for answer in (login, await refresh(client, cookie_in(login).value)):
            cookie = cookie_in(answer)
            assert cookie["httponly"] is True
            assert cookie["samesite"] == "lax"
            assert cookie["path"] == "/api/v1"
            assert cookie["domain"] == ""
            assert int(cookie["max-age"]) == pytest.approx(7 * 86_400, abs=5)
            assert bool(cookie["secure"]) is secure


async def test_people_sign_in_by_name_or_address_in_any_case(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_user(db, username="ada", email="Ada@example.com")

    for name in ("ada", "Ada@example.com", "ada@example.com", "ADA@EXAMPLE.COM"):
        assert (await log_in(client, name)).status_code == 200, name
    for name in ("ADA", "ada@example.co", "ada@", "@example.com", "%@example.com", "ad_"):
        assert (await log_in(client, name)).status_code == 401, name


@pytest.mark.parametrize(
    "email", ["zoe\u0308@example.com", " zoe@example.com ", "zoe@EXAMPLE.com", "zoe@xn--mnchen-3ya.example.com"]
)
async def test_an_address_signs_in_as_it_was_typed_when_signing_up(client: httpx2.AsyncClient, email: str) -> None:
    form = {"name": "Zoe", "username": "zoe", "email": email, "password": PASSWORD}
    assert (await client.post("user", json=form)).status_code == 201

    assert (await log_in(client, email)).status_code == 200


async def test_every_failed_login_looks_alike_and_costs_one_verification(
    client: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_user(db, username="ada")
    await crud_users.soft_delete(db, await create_user(db, username="gone"))
    await db.commit()
    verified: list[str] = []
    verify = security._PASSWORD_HASH.verify

    def counting(password: str, hashed: str) -> bool:
        verified.append(password)
        return verify(password, hashed)

    monkeypatch.setattr(security._PASSWORD_HASH, "verify", counting)

    answers: list[dict[str, Any]] = []
    for username, password in (
        ("ada", "wrong password"),
        ("ada@example.com", "wrong password"),
        ("nobody", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("gone", PASSWORD),
        ("gone@example.com", PASSWORD),
    ):
        verified.clear()
        refused = await log_in(client, username, password)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert "Set-Cookie" not in refused.headers
        assert verified == [password], username
        answers.append(refused.json() | {"request_id": ""})
    assert all(answer == answers[0] for answer in answers)

    verified.clear()
    assert (await log_in(client, "ada")).status_code == 200
    assert verified == [PASSWORD]


async def test_too_many_sign_ins_at_once_are_turned_away(
    client: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await create_user(db)
    monkeypatch.setattr(security, "HASHES_WAITING", -security.HASHES_AT_ONCE)

    busy = await log_in(client, user.username)

    assert busy.status_code == 503
    assert int(busy.headers["Retry-After"]) > 0


async def test_a_password_in_the_query_is_not_read(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    assert (await client.post("login", params={"username": user.username, "password": PASSWORD})).status_code == 422


# ---- Staying signed in ----


async def test_a_refresh_gives_new_tokens(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, (await create_user(db)).username)

    answer = await client.post("refresh")  # with the cookie the client has kept

    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type"}
    assert await status_of_me(client, answer) == 200
    assert await status_of_me(client, login) == 200
    assert cookie_in(answer).value != cookie_in(login).value
    assert (await client.post("refresh")).status_code == 200


async def test_a_refresh_token_is_good_once(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    first = cookie_in(await log_in(client, (await create_user(db)).username)).value
    second = cookie_in(await refresh(client, first)).value

    again = await refresh(client, first)

    assert again.status_code == 401
    assert again.headers["WWW-Authenticate"] == "Bearer"
    assert "Set-Cookie" not in again.headers
    assert second != first


async def test_of_ten_simultaneous_refreshes_one_succeeds(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    token = cookie_in(await log_in(client, (await create_user(db)).username)).value

    answers = await asyncio.gather(*(refresh(client, token) for _ in range(10)))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 9}


async def test_no_refresh_without_a_good_refresh_token(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    access = (await log_in(client, user.username)).json()["access_token"]
    client.cookies.clear()
    expired = settings.model_copy(update={"REFRESH_TOKEN_EXPIRE_DAYS": -1})
    before = await all_rows(db)

    for headers in (
        {},
        {"Authorization": f"Bearer {access}"},
        {"Cookie": f"refresh_token={access}"},
        {"Cookie": f"refresh_token={create_token(TokenKind.REFRESH, expired, user.uuid, new_token_id())}"},
        {"Cookie": "refresh_token=garbage"},
        {"Cookie": "refresh_token="},
    ):
        refused = await client.post("refresh", headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert await all_rows(db) == before


async def test_a_refresh_token_is_no_access_token(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    token = cookie_in(await log_in(client, (await create_user(db)).username)).value
    assert (await client.get("user/me/", headers={"Authorization": f"Bearer {token}"})).status_code == 401


async def test_a_deleted_user_stays_signed_in_nowhere(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    login = await log_in(client, user.username)

    await client.delete(f"user/{user.username}", headers=signed_in(user, settings))

    assert await status_of_me(client, login) == 401
    assert (await client.post("refresh")).status_code == 401
    assert (await log_in(client, user.username)).status_code == 401


# ---- Whose token it is ----


async def rename(client: httpx2.AsyncClient, user: User, to: str, headers: dict[str, str]) -> None:
    assert (await client.patch(f"user/{user.username}", json={"username": to}, headers=headers)).status_code == 200


async def test_tokens_follow_the_user_and_not_the_name(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="ada")
    login = await log_in(client, "ada")
    old = {"Authorization": f"Bearer {login.json()['access_token']}"}
    await rename(client, user, "lovelace", old)
    stranger = await create_user(db, username="ada", email="stranger@example.com")

    me = await client.get("user/me/", headers=old)
    assert (me.json()["id"], me.json()["username"]) == (user.id, "lovelace")
    assert (await client.patch("user/ada", json={"name": "Taken over"}, headers=old)).status_code == 403
    assert (await client.get("user/me/", headers=signed_in(stranger, settings))).json()["id"] == stranger.id
    refreshed = (await client.post("refresh")).json()["access_token"]
    assert (await client.get("user/me/", headers={"Authorization": f"Bearer {refreshed}"})).json()["id"] == user.id
