"""The console's cookie: what it is made of, how browsers keep it, and that it opens the console and nothing else."""

from datetime import timedelta
from http.cookies import SimpleCookie
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.cookie import (
    ConsoleCookie,
    cookie_name,
    create_cookie,
    create_visitor,
    csrf_token,
    is_csrf_token,
    is_visitor,
    parse_cookie,
)
from app.core.config import EnvironmentOption, Settings
from app.core.security import create_refresh_token
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User
from tests.admin.conftest import app_with_console
from tests.admin.operator import console_of, sign_in
from tests.conftest import client_of
from tests.helper import PASSWORD, signed_in

pytestmark = pytest.mark.anyio

SALT = b"s" * 16
OTHER_KEY = "an0ther-key-of-the-test-" * 2
NAME = "slipway_console"


def with_keys(settings: Settings, signing: str, others: str = "") -> Settings:
    update = {"SECRET_KEY": signing, "OTHER_SECRET_KEYS": others}
    return Settings.model_validate(settings.model_dump() | update)


def is_genuine(value: str, settings: Settings, salt: bytes = SALT) -> bool:
    said = parse_cookie(value)
    return said is not None and said.is_genuine(salt, settings)


# ---- What it is made of ----


def test_a_cookie_is_its_login_s_alone(settings: Settings) -> None:
    first, second = uuid4(), uuid4()
    value = create_cookie(settings, first, SALT)
    assert parse_cookie(value) == ConsoleCookie(first, value.split(".")[1])
    assert is_genuine(value, settings)
    assert not is_genuine(value, settings, b"t" * 16)
    assert not is_genuine(f"{second.hex}.{value.split('.')[1]}", settings)


@pytest.mark.parametrize("place", range(0, 43, 7))
def test_not_one_character_can_be_another(settings: Settings, place: int) -> None:
    session_id = uuid4()
    head, _, secret = create_cookie(settings, session_id, SALT).partition(".")
    other = "A" if secret[place] != "A" else "B"
    assert not is_genuine(f"{head}.{secret[:place]}{other}{secret[place + 1 :]}", settings)


ZEROS = "0" * 32
NO_COOKIES = (
    "",
    ".",
    "a.b",
    ZEROS,
    f"{ZEROS}.{'A' * 44}",
    f"{ZEROS}..{'A' * 42}",
    f"{'G' * 32}.{'A' * 43}",
    f"{ZEROS}.{'é' * 43}",
    f"{'٠' * 32}.{'A' * 43}",
    f"{ZEROS}.{'A' * 43}\n",
    pytest.param(create_visitor(), id="of a visitor"),
)


@pytest.mark.parametrize("value", NO_COOKIES)
def test_what_has_not_its_form_is_none(value: str) -> None:
    assert parse_cookie(value) is None


def test_refresh_tokens_are_no_cookies_and_cookies_no_refresh_tokens(settings: Settings) -> None:
    session_id = uuid4()
    token = create_refresh_token(settings, session_id, SALT, 0)
    secret = create_cookie(settings, session_id, SALT).split(".")[1]
    assert not is_genuine(token, settings)
    assert secret not in token
    assert all(not is_genuine(f"{session_id.hex}.{part}", settings) for part in token.split("."))


def test_a_key_that_is_listed_verifies_and_one_that_has_ended_does_not(settings: Settings) -> None:
    old = settings.SECRET_KEY.get_secret_value()
    session_id = uuid4()
    value = create_cookie(settings, session_id, SALT)
    token = csrf_token(settings, value)
    for others, good in [(old, True), (f"{old}@2999-01-01T00:00:00Z", True), (f"{old}@2000-01-01T00:00:00Z", False)]:
        rotated = with_keys(settings, OTHER_KEY, others)
        assert is_genuine(value, rotated) is good
        assert is_csrf_token(rotated, value, token) is good
    assert not is_genuine(value, with_keys(settings, OTHER_KEY))


def test_a_token_belongs_to_one_cookie(settings: Settings) -> None:
    first, second = create_visitor(), create_visitor()
    token = csrf_token(settings, first)
    assert is_csrf_token(settings, first, token)
    assert not is_csrf_token(settings, second, token)
    for wrong in ("", token[:-1], token + "A", token.swapcase(), "é" * 43, "\ud800"):
        assert not is_csrf_token(settings, first, wrong)


def test_visitors_are_random() -> None:
    visitors = {create_visitor() for _ in range(1_000)}
    assert len(visitors) == 1_000
    assert all(map(is_visitor, visitors))
    assert not is_visitor("visitor.")


# ---- How browsers keep it ----


@pytest.mark.parametrize("environment", ["staging", "production"])
async def test_over_tls_it_is_bound_to_this_host(environment: str, settings: Settings, superuser: User) -> None:
    """As behind a proxy, which speaks plain HTTP with the app."""
    production = settings.model_copy(update={"ENVIRONMENT": EnvironmentOption(environment)})
    name = cookie_name(production)
    assert name == "__Host-slipway_console"
    app = app_with_console(production)
    app.state.settings = settings  # What else production refuses is not what this is about.
    async with app.router.lifespan_context(app), console_of(app, "https://test") as console:
        form = await console.get("login")
        signed = await sign_in(console, superuser)
        assert signed.status_code == 303
        out = await console.post("logout", data={"csrftoken": csrf_token(production, console.cookies[name])})
        for answer in (form, signed, out):
            said = [SimpleCookie(value) for value in answer.headers.get_list("Set-Cookie")]
            [cookie] = [cookies[name] for cookies in said if name in cookies]
            assert (cookie["secure"], cookie["httponly"], cookie["samesite"], cookie["path"]) == (
                True,
                True,
                "lax",
                "/",
            )
            assert cookie["domain"] == ""
            assert cookie["max-age"] == ("0" if answer is out else ""), "it goes with the browser; the server ends it"
            assert all(morsel["secure"] for cookies in said for morsel in cookies.values())


async def test_locally_there_is_no_tls(console: httpx2.AsyncClient, superuser: User) -> None:
    for answer in (await console.get("login"), await sign_in(console, superuser)):
        cookie = SimpleCookie(answer.headers["Set-Cookie"])[NAME]
        assert (cookie["secure"], cookie["httponly"], cookie["samesite"], cookie["path"]) == ("", True, "lax", "/")


# ---- What it opens ----


async def test_a_bearer_token_does_not_open_the_console(
    client: httpx2.AsyncClient, console: httpx2.AsyncClient, superuser: User, settings: Settings
) -> None:
    bearer = signed_in(superuser, settings)
    assert (await client.get("user/me/", headers=bearer)).status_code == 200
    token = bearer["Authorization"].split()[1]
    for headers in (bearer, {"Cookie": f"{NAME}={token}"}, bearer | {"Cookie": f"{NAME}={token}"}):
        answer = await console.get("user/list", headers=headers)
        assert answer.status_code == 303, headers
        assert (await console.post("tier/create", data={"name": "x"}, headers=headers)).status_code == 403


async def test_the_api_s_cookie_does_not_open_the_console(
    app: FastAPI, client: httpx2.AsyncClient, superuser: User, db: AsyncSession, settings: Settings
) -> None:
    await client.post("login", data={"username": superuser.username, "password": PASSWORD})
    refresh = client.cookies["refresh_token"]
    sessions = select(LoginSession).where(col(LoginSession.user_id) == superuser.id)
    forged = [create_cookie(settings, login.id, login.salt) for login in await db.exec(sessions)]
    assert forged, "even one of the right form, signed by our key, for a login of the API"
    for cookies in ({NAME: refresh}, {"refresh_token": refresh}, *({NAME: value} for value in forged)):
        async with console_of(app, **cookies) as console:
            assert (await console.get("user/list")).status_code == 303, cookies


async def test_the_console_s_cookie_does_not_open_the_api(app: FastAPI, operator: httpx2.AsyncClient) -> None:
    cookie = operator.cookies[NAME]
    for headers in [
        {"Authorization": f"Bearer {cookie}"},
        {"Cookie": f"{NAME}={cookie}"},
        {"Cookie": f"{NAME}={cookie}", "Authorization": f"Bearer {cookie.split('.')[1]}"},
    ]:
        async with client_of(app) as client:
            assert (await client.get("user/me/", headers=headers)).status_code == 401
    for value in (cookie, cookie.replace(".", ".0."), cookie.replace(".", ".1.")):
        async with client_of(app) as client:
            assert (await client.post("refresh", headers={"Cookie": f"refresh_token={value}"})).status_code == 401
    assert (await operator.get("")).status_code == 200, "and that has ended nothing"


async def test_a_login_of_the_console_gets_no_tokens(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession, superuser: User, settings: Settings
) -> None:
    """Not even with our key: for a login of the console neither token is good."""
    [session] = await db.exec(select(LoginSession).where(col(LoginSession.kind) == LoginKind.CONSOLE))
    refresh = create_refresh_token(settings, session.id, session.salt, session.generation)
    async with client_of(app) as client:
        assert (await client.get("user/me/", headers=signed_in(superuser, settings, session.id))).status_code == 401
        assert (await client.post("refresh", headers={"Cookie": f"refresh_token={refresh}"})).status_code == 401
    assert (await operator.get("")).status_code == 200


async def test_a_dump_of_the_database_makes_no_cookie(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    session = (await db.exec(select(LoginSession).where(col(LoginSession.kind) == LoginKind.CONSOLE))).one()
    held = operator.cookies[NAME]
    dump = repr([list(row.model_dump().values()) for row in await db.exec(select(LoginSession))])
    assert held.split(".")[1] not in dump
    guesses = [
        create_cookie(with_keys(settings, OTHER_KEY), session.id, session.salt),
        f"{session.id.hex}.{session.salt.hex() + 'A' * 11}",
        f"{session.id.hex}.{'A' * 43}",
    ]
    for guess in guesses:
        async with console_of(app, **{NAME: guess}) as console:
            assert (await console.get("")).status_code == 303
    assert session.expires_at - session.created_at <= timedelta(hours=12)
