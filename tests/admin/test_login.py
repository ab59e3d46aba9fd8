"""Signing in to the console and out of it: superusers only, by the form, counted and logged as at the API."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.sign_in import FREE_FAILURES_OF_ACCOUNT
from app.core import passwords
from app.core.db.models import utc_now
from app.core.utils.rate_limit import EVERY_PATH, Limiter, Rule
from app.core.utils.rate_limit.rules import Rules, Window
from app.crud.crud_login_throttle import crud_login_throttle
from app.models.login_session import LoginKind, LoginSession
from app.models.login_throttle import LoginThrottle
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.admin.operator import console_of, post, sign_in, text_of, token_of
from tests.canaries import secrets_in
from tests.helper import PASSWORD, create_superuser, create_user

pytestmark = pytest.mark.anyio

WRONG = "Wrong user name, e-mail address or password."


async def events_of(db: AsyncSession, kind: EventKind) -> list[SecurityEvent]:
    events = select(SecurityEvent).where(col(SecurityEvent.kind) == kind).order_by(col(SecurityEvent.id))
    return list(await db.exec(events.execution_options(populate_existing=True)))


async def forget_failures(db: AsyncSession) -> None:
    await db.exec(delete(LoginThrottle))
    await db.commit()


# ---- Coming in ----


async def test_who_is_not_signed_in_gets_the_form_and_then_what_they_wanted(
    console: httpx2.AsyncClient, superuser: User
) -> None:
    refused = await console.get("user/list?q=somebody")
    assert refused.status_code == 303
    form = urlsplit(refused.headers["Location"])
    assert (form.scheme, form.netloc, form.path) == ("", "", "/admin/login")
    assert parse_qs(form.query) == {"next": ["/admin/user/list?q=somebody"]}

    answer = await post(console, refused.headers["Location"], {"username": superuser.username, "password": PASSWORD})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/admin/user/list?q=somebody")
    assert (await console.get("user/list")).status_code == 200


@pytest.mark.parametrize("name", ["operator", "Operator", "operator@example.com", "OPERATOR@EXAMPLE.COM"])
async def test_a_superuser_signs_in_by_name_or_address(
    console: httpx2.AsyncClient, superuser: User, db: AsyncSession, name: str
) -> None:
    answer = await sign_in(console, name)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/admin/")
    [session] = await db.exec(select(LoginSession).where(col(LoginSession.kind) == LoginKind.CONSOLE))
    assert (session.user_id, session.address) == (superuser.id, "127.0.0.1")
    [event] = await events_of(db, EventKind.LOGIN)
    assert (event.user_id, event.session_id, event.details) == (superuser.id, session.id, {"console": True})


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "http://evil.example/admin/",
        "https://test@evil.example/",
        "http://test/admin/",  # ours, but an address all the same
        "javascript:alert(1)",
        "data:text/html,x",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        " //evil.example",
        "\x00//evil.example",
        "///evil.example",
        "evil.example",
        "http:evil.example",
        "http:///evil.example",
        "",
    ],
)
async def test_signing_in_leads_nowhere_else(console: httpx2.AsyncClient, superuser: User, wanted: str) -> None:
    values = {"username": superuser.username, "password": PASSWORD}
    for answer in [
        await console.get("login", params={"next": wanted}),  # Nobody is redirected before signing in.
        await post(console, f"login?{httpx2.QueryParams(next=wanted)}", values),
        await console.get("login", params={"next": wanted}),  # Signed in already.
    ]:
        target = answer.headers.get("Location", "/admin/")
        seen_by_browsers = target.replace("\t", "").replace("\n", "").replace("\\", "/")
        assert seen_by_browsers.startswith("/"), target
        assert not seen_by_browsers.startswith("//"), target


# ---- Being refused ----


async def test_all_refusals_are_the_same_and_cost_one_hash(
    console: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes: list[Any] = []
    compute = passwords._hash_in_thread

    async def counted(work: Any) -> Any:
        hashes.append(work)
        return await compute(work)

    monkeypatch.setattr(passwords, "_hash_in_thread", counted)
    await create_superuser(db, username="root")
    await create_user(db, username="person")
    await create_superuser(db, username="gone", is_deleted=True, deleted_at=utc_now())
    await create_superuser(db, username="expired", password_expires_at=utc_now() - timedelta(seconds=1))
    locked = await create_superuser(db, username="locked")
    for _ in range(2):
        await crud_login_throttle.fail(db, {f"account:{locked.uuid}": 1})
    await db.commit()
    answers = []
    for name, password in [
        ("root", "a wrong password"),
        ("nobody", PASSWORD),
        ("person", PASSWORD),
        ("gone", PASSWORD),
        ("expired", PASSWORD),
        ("locked", PASSWORD),
    ]:
        hashes.clear()
        answer = await sign_in(console, name, password)
        assert len(hashes) == 1, name
        assert answer.status_code == 401, name
        assert "Set-Cookie" not in answer.headers, name
        answers.append(text_of(answer))
        assert WRONG in answers[-1], name
    assert len(set(answers)) == 1
    assert not list(await db.exec(select(LoginSession).where(col(LoginSession.kind) == LoginKind.CONSOLE)))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"username": "operator"},
        {"password": PASSWORD},
        {"username": "", "password": ""},
        {"username": "operator\x00", "password": PASSWORD},
        {"username": "o" * 10_000, "password": "p" * 10_000},
        {"username": ["operator", "operator"], "password": "wrong, and twice"},
        {"username": "' OR 1=1 --", "password": "' OR 1=1 --"},
        {"username": "<script>alert(1)</script>", "password": "x"},
    ],
)
async def test_whatever_is_sent_it_is_only_wrong(
    console: httpx2.AsyncClient, superuser: User, values: dict[str, Any]
) -> None:
    answer = await post(console, "login", values)
    assert answer.status_code == 401
    assert WRONG in text_of(answer)
    assert "<script>alert" not in answer.text, "what was sent is not repeated"
    assert PASSWORD not in answer.text


async def test_files_are_no_credentials(console: httpx2.AsyncClient, superuser: User) -> None:
    files = {"username": ("a.txt", b"operator"), "password": ("b.txt", PASSWORD.encode())}
    answer = await post(console, "login", files=files)
    assert answer.status_code == 401


async def test_failures_are_logged_as_the_console_s(
    console: httpx2.AsyncClient, superuser: User, db: AsyncSession
) -> None:
    person = await create_user(db)
    await sign_in(console, superuser, "a wrong password")
    await sign_in(console, person)
    events = await events_of(db, EventKind.LOGIN_FAILED)
    assert [(event.user_id, event.details) for event in events] == [
        (superuser.id, {"console": True}),
        (person.id, {"console": True, "rank": False}),
    ]


@pytest.mark.parametrize("first", ["console", "api"])
async def test_the_sixth_failure_locks_both_doors(
    app: FastAPI, client: httpx2.AsyncClient, superuser: User, db: AsyncSession, first: str
) -> None:
    async def through_api(password: str) -> int:
        return (await client.post("login", data={"username": superuser.username, "password": password})).status_code

    async def through_console(password: str) -> int:
        async with console_of(app) as console:  # A new browser each time: who is signed in is not asked again.
            return (await sign_in(console, superuser, password)).status_code

    doors = (through_console, through_api)
    here, there = doors if first == "console" else doors[::-1]
    for _ in range(FREE_FAILURES_OF_ACCOUNT + 1):
        assert await here("a wrong password") == 401
    assert await there(PASSWORD) == 401
    assert await here(PASSWORD) == 401
    [locked] = await events_of(db, EventKind.LOGIN_LOCKED)
    assert locked.details == ({"console": True} if first == "console" else {})
    await forget_failures(db)
    assert await there(PASSWORD) in {200, 303}
    assert await here(PASSWORD) in {200, 303}


async def test_who_tries_passwords_has_no_more_tries_here_than_at_the_api(
    app: FastAPI, console: httpx2.AsyncClient, client: httpx2.AsyncClient, superuser: User
) -> None:
    """One count for both doors: the rule of the API's own sign-in, by address."""
    limiter: Limiter = app.state.rate_limiter
    usual = limiter.rules
    limiter.rules = Rules({}, Rule("default", EVERY_PATH, (Window(3, 60),)))
    try:
        assert (await client.post("login", data={"username": "nobody", "password": "x"})).status_code == 401
        statuses = [(await sign_in(console, superuser, "a wrong password")).status_code for _ in range(2)]
        assert statuses == [401, 401]
        refused = await sign_in(console, superuser)
        assert refused.status_code == 429
        assert "Too many requests. Try again in" in text_of(refused)
        assert int(refused.headers["retry-after"]) <= 60
        assert (await client.post("login", data={"username": "nobody", "password": "x"})).status_code == 429
        assert (await console.get("login")).status_code == 200
    finally:
        limiter.rules = usual


async def test_too_many_hashes_at_once_are_said_to_be_so(
    console: httpx2.AsyncClient, superuser: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "HASHES_WAITING", -passwords.HASHES_AT_ONCE)
    answer = await sign_in(console, superuser)
    assert answer.status_code == 503
    assert "Sign in" in text_of(answer), "the form stays"


# ---- Not being somebody else's login ----


async def test_a_cookie_from_before_is_no_login_after(
    app: FastAPI, console: httpx2.AsyncClient, superuser: User
) -> None:
    """Session fixation: whoever knows, or has set, the cookie of a browser before it signs in has nothing."""
    await console.get("login")
    before = console.cookies["slipway_console"]
    await sign_in(console, superuser)
    after = console.cookies["slipway_console"]
    assert before != after
    async with console_of(app, slipway_console=before) as attacker:
        assert (await attacker.get("")).status_code == 303
        token = await token_of(attacker)
    assert (await console.post("logout", data={"csrftoken": token})).status_code == 403


@pytest.mark.parametrize(
    "cookie", ["visitor." + "A" * 42, "visitor." + "A" * 44, "chosen", "", "0" * 32 + "." + "A" * 43]
)
async def test_a_cookie_that_is_not_ours_is_replaced(app: FastAPI, cookie: str, superuser: User) -> None:
    async with console_of(app) as console:
        console.cookies.set("slipway_console", cookie, domain="test.local", path="/")
        assert (await sign_in(console, superuser)).status_code == 303
        assert cookie not in [value.value for value in console.cookies.jar]


async def test_each_sign_in_is_a_login_of_its_own(app: FastAPI, operator: httpx2.AsyncClient, superuser: User) -> None:
    async with console_of(app) as other:
        await sign_in(other, superuser)
        assert other.cookies["slipway_console"] != operator.cookies["slipway_console"]
        assert (await post(other, "logout")).status_code == 303
    assert (await operator.get("")).status_code == 200


# ---- Going ----


async def test_signing_out_ends_the_login_and_not_only_the_cookie(
    app: FastAPI, operator: httpx2.AsyncClient, superuser: User, db: AsyncSession
) -> None:
    copied = operator.cookies["slipway_console"]
    answer = await post(operator, "logout")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/admin/login")
    assert "slipway_console" not in operator.cookies
    async with console_of(app, slipway_console=copied) as thief:
        assert (await thief.get("")).status_code == 303
    [event] = await events_of(db, EventKind.LOGOUT)
    assert (event.user_id, event.details) == (superuser.id, {"console": True})


async def test_nobody_is_signed_out_by_a_link(operator: httpx2.AsyncClient) -> None:
    assert (await operator.get("logout")).status_code == 405
    assert (await operator.get("")).status_code == 200


# ---- What is left of it in the log ----


async def test_no_password_and_no_cookie_is_logged(
    console: httpx2.AsyncClient, superuser: User, capsys: pytest.CaptureFixture[str]
) -> None:
    await sign_in(console, PASSWORD, "a password in the wrong field")
    await sign_in(console, superuser, "a wrong password")
    await sign_in(console, superuser)
    await console.get(f"user/list?next={PASSWORD}")
    logged = "".join(capsys.readouterr())
    assert "a wrong password" not in logged
    assert "wrong field" not in logged
    assert console.cookies["slipway_console"].split(".")[1] not in logged
    assert not secrets_in(logged)
