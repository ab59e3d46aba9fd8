"""Signing in and staying so, over HTTP."""

import asyncio
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from typing import Any

import httpx2
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router, sign_in
from app.core import passwords
from app.core.config import EnvironmentOption, Settings
from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.core.passwords import hash_password
from app.core.setup import create_application
from app.crud.crud_users import crud_users
from app.models.login_throttle import LoginThrottle
from app.models.user import User
from tests.conftest import client_of
from tests.helper import HASHED_PASSWORD, PASSWORD, create_user, signed_in

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
        async with transaction() as db:
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

    for name in ("ada", "Ada", "ADA", " aDa ", "Ada@example.com", "ada@example.com", "ADA@EXAMPLE.COM"):
        assert (await log_in(client, name)).status_code == 200, name
    for name in ("ada@example.co", "ada@", "@example.com", "%@example.com", "ad_", "a da", "ada\u200b"):
        assert (await log_in(client, name)).status_code == 401, name


@pytest.mark.parametrize(
    "name", ["mi\u212ae", "m\u0130ke", "\uff4dike", "mi\u212ae@example.com", "m\u0130ke@example.com", "m\u0456ke"]
)
async def test_a_name_that_only_looks_like_one_is_none(client: httpx2.AsyncClient, db: AsyncSession, name: str) -> None:
    await create_user(db, username="mike", email="mike@example.com")
    assert (await log_in(client, "MIKE")).status_code == 200
    assert (await log_in(client, name)).status_code == 401


async def test_names_that_differ_in_their_case_alone_are_two_accounts(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    """Of an application that allows such names: each signs in as itself."""
    small, large = await create_user(db, username="ada"), await create_user(db, username="Ada", email="a@example.com")
    for name, user in (("ada", small), ("Ada", large), ("ADA", small)):
        token = (await log_in(client, name)).json()["access_token"]
        me = await client.get("user/me/", headers={"Authorization": f"Bearer {token}"})
        assert me.json()["id"] == user.id, name


async def test_another_case_is_no_way_around_the_throttle(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_user(db, username="ada", email="ada@example.com")
    for name in ("ada", "Ada", "aDa", "ada@example.com", "ADA@example.com"):
        assert (await log_in(client, name, "wrong password")).status_code == 401
    found = [row for row in await db.exec(select(LoginThrottle)) if row.key.startswith("account:")]
    assert [row.failures for row in found] == [5]


@pytest.mark.parametrize(
    "email", ["zoe\u0308@example.com", " zoe@example.com ", "zoe@EXAMPLE.com", "zoe@xn--mnchen-3ya.example.com"]
)
async def test_an_address_signs_in_as_it_was_typed_when_signing_up(client: httpx2.AsyncClient, email: str) -> None:
    form = {"name": "Zoe", "username": "zoe", "email": email, "password": PASSWORD}
    assert (await client.post("user", json=form)).status_code == 201

    assert (await log_in(client, email)).status_code == 200


class CountingHasher(Argon2Hasher):
    """Counts what it computes."""

    computed = 0

    def hash(self, *args: Any, **kwargs: Any) -> str:
        CountingHasher.computed += 1
        return super().hash(*args, **kwargs)

    def verify(self, *args: Any, **kwargs: Any) -> bool:
        CountingHasher.computed += 1
        return super().verify(*args, **kwargs)


async def test_every_failed_login_looks_alike_and_costs_one_hash(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = await hash_password(PASSWORD, settings)
    await create_user(db, username="ada", hashed_password=today)
    await crud_users.soft_delete(db, await create_user(db, username="gone", hashed_password=today))
    locked = await create_user(db, username="locked", hashed_password=today)
    db.add(
        LoginThrottle(
            key=f"account:{locked.uuid}",
            failures=9,
            last_failure_at=utc_now(),
            locked_until=utc_now() + timedelta(minutes=1),
        )
    )
    await db.commit()
    hasher = CountingHasher(time_cost=2, memory_cost=19_456, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", lambda _: PasswordHash((hasher,)))

    answers: list[dict[str, Any]] = []
    for username, password in (
        ("ada", "wrong password"),
        ("ada@example.com", "wrong password"),
        ("nobody", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("gone", PASSWORD),
        ("gone@example.com", PASSWORD),
        ("locked", PASSWORD),
        ("locked", "wrong password"),
    ):
        CountingHasher.computed = 0
        refused = await log_in(client, username, password)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert "Set-Cookie" not in refused.headers
        assert CountingHasher.computed == 1, username
        answers.append(refused.json() | {"request_id": ""})
    assert all(answer == answers[0] for answer in answers)

    CountingHasher.computed = 0
    assert (await log_in(client, "ada")).status_code == 200
    assert CountingHasher.computed == 1


async def test_a_login_renews_a_hash_of_other_parameters(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)  # whose hash is a cheap one

    assert (await log_in(client, user.username, "wrong password")).status_code == 401
    await db.refresh(user)
    assert user.hashed_password == HASHED_PASSWORD
    assert (await log_in(client, user.username)).status_code == 200
    await db.refresh(user)
    assert user.hashed_password.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await log_in(client, user.username)).status_code == 200


async def test_a_password_that_changes_while_it_is_verified_opens_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await create_user(db)
    verify = passwords.verify_password

    async def slow(*args: Any) -> Any:
        answer = await verify(*args)
        await crud_users.set_password(db, user.id, "another hash")
        await db.commit()
        return answer

    monkeypatch.setattr(sign_in, "verify_password", slow)
    assert (await log_in(client, user.username)).status_code == 401


async def test_a_login_holds_no_connection_while_it_hashes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    small = settings.model_copy(update={"POSTGRES_POOL_SIZE": 1})
    app = create_application(build_router(small), small)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with transaction() as db:
            user = await create_user(db)
        answers = []

        async def busy(*_: Any) -> Any:
            answers.append((await asyncio.wait_for(client.get("tiers"), 2)).status_code)
            return False, None

        monkeypatch.setattr(sign_in, "verify_password", busy)
        assert (await log_in(client, user.username)).status_code == 401
        assert answers == [200]


async def test_two_logins_at_once_give_different_tokens(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    answers = await asyncio.gather(*(log_in(client, user.username) for _ in range(2)))
    assert len({answer.json()["access_token"] for answer in answers}) == 2
    assert len({cookie_in(answer).value for answer in answers}) == 2


async def test_too_many_sign_ins_at_once_are_turned_away(
    client: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await create_user(db)
    monkeypatch.setattr(passwords, "HASHES_WAITING", -passwords.HASHES_AT_ONCE)

    busy = await log_in(client, user.username)

    assert busy.status_code == 503
    assert int(busy.headers["Retry-After"]) > 0


async def test_a_password_in_the_query_is_not_read(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    assert (await client.post("login", params={"username": user.username, "password": PASSWORD})).status_code == 422


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
