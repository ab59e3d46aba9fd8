"""A password that an operator sets: for a while, and until the user has one of their own."""

import asyncio
import re
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.api import sign_in
from app.api.credentials import TEMPORARY_PASSWORD_BITS, set_temporary_password
from app.api.sign_in import FREE_FAILURES_OF_ACCOUNT
from app.core import passwords
from app.core.config import Settings
from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_security_event import Client
from app.crud.crud_users import UserNotFound, crud_users
from app.models.login_throttle import LoginThrottle
from app.models.mail_token import MailPurpose
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.conftest import second_session
from tests.helper import (
    PASSWORD,
    all_rows,
    create_session,
    create_superuser,
    create_user,
    session_of,
    signed_in,
    until_waited_for,
)

pytestmark = pytest.mark.anyio

OWN = "analytical engine"
A_SECOND = timedelta(seconds=1)


async def given(user: User, settings: Settings, admin: User) -> str:
    """A temporary password, committed."""
    async with transaction() as db:
        theirs = await db.get_one(User, user.id)
        return await set_temporary_password(db, theirs, settings, Client(), admin)


async def expire(db: AsyncSession, user: User) -> None:
    """The time of the password has come."""
    await db.exec(update(User).where(col(User.id) == user.id).values(password_expires_at=utc_now() - A_SECOND))
    await db.commit()


async def log_in(client: httpx2.AsyncClient, user: User, password: str) -> httpx2.Response:
    client.cookies.clear()
    return await client.post("login", data={"username": user.username, "password": password})


async def expires_at(db: AsyncSession, user: User) -> Any:
    return (await db.exec(select(User.password_expires_at).where(col(User.id) == user.id))).one()


# ---- What it is ----


async def test_it_can_be_read_out_and_not_be_guessed(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    drawn = {await given(user, settings, admin) for _ in range(5)}
    assert len(drawn) == 5
    assert TEMPORARY_PASSWORD_BITS >= 60
    for password in drawn:
        assert re.fullmatch(r"([2-9a-hjkmnp-z]{4}-){3}[2-9a-hjkmnp-z]{4}", password)


async def test_it_opens_the_account_for_as_long_as_the_settings_say(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    briefly = settings.model_copy(update={"TEMPORARY_PASSWORD_HOURS": 3})
    before = utc_now()
    password = await given(user, briefly, admin)
    assert before <= await expires_at(db, user) - timedelta(hours=3) <= utc_now()
    assert (await log_in(client, user, PASSWORD)).status_code == 401
    answer = await log_in(client, user, password)
    assert answer.status_code == 200
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await client.get("user/me/", headers=headers)).status_code == 200
    assert (await client.post("refresh")).status_code == 200


async def test_it_stands_nowhere_but_in_the_answer(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    with capture_logs() as lines:
        password = await given(user, settings, admin)
    assert any(line["event"] == "security event" for line in lines)
    assert password not in str(lines)
    assert password not in str(await all_rows(db))
    (event,) = await db.exec(select(SecurityEvent))
    assert (event.kind, event.user_id, event.actor_id) == (EventKind.PASSWORD_CHANGED, user.id, admin.id)
    assert event.details == {"temporary": True, "sessions_ended": 1}


async def test_what_was_good_before_is_not(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, other, admin = await create_user(db), await create_user(db), await create_superuser(db)
    login = await log_in(client, user, PASSWORD)
    cookie = {"Cookie": f"refresh_token={login.cookies['refresh_token']}"}
    token = await crud_mail_tokens.issue(db, MailPurpose.PASSWORD_RESET, user)
    await db.commit()
    client.cookies.clear()

    await given(user, settings, admin)

    assert (await client.post("refresh", headers=cookie)).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(other, settings))).status_code == 200
    values = {"token": token, "new_password": OWN}
    assert (await client.post("password_reset/confirm", json=values)).status_code == 404


async def test_failed_logins_are_forgiven(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    for _ in range(FREE_FAILURES_OF_ACCOUNT + 1):
        await log_in(client, user, "a wrong password")
    password = await given(user, settings, admin)
    assert (await log_in(client, user, password)).status_code == 200


async def test_who_is_deleted_gets_none(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await crud_users.soft_delete(db, user)
    await db.commit()
    before = await all_rows(db)
    with pytest.raises(UserNotFound):
        await given(user, settings, admin)
    assert await all_rows(db) == before


# ---- Its end ----


async def test_once_expired_it_opens_nothing_and_nobody_can_tell_it_from_a_wrong_one(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    password = await given(user, settings, admin)
    login = await log_in(client, user, password)
    cookie = {"Cookie": f"refresh_token={login.cookies['refresh_token']}"}
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}

    await expire(db, user)

    assert (await client.get("user/me/", headers=headers)).status_code == 401
    client.cookies.clear()
    assert (await client.post("refresh", headers=cookie)).status_code == 401
    hashes = 0
    hash_in_thread = passwords._hash_in_thread

    async def counted(work: Any) -> Any:
        nonlocal hashes
        hashes += 1
        return await hash_in_thread(work)

    monkeypatch.setattr(passwords, "_hash_in_thread", counted)
    expired, wrong = await log_in(client, user, password), await log_in(client, user, "a wrong password")
    assert (expired.status_code, hashes) == (401, 2)
    assert expired.json() | {"request_id": ""} == wrong.json() | {"request_id": ""}
    assert expired.headers["WWW-Authenticate"] == wrong.headers["WWW-Authenticate"]
    change = {"current_password": password, "new_password": OWN}
    assert (await client.post("user/me/password", json=change, headers=headers)).status_code == 401


@pytest.mark.parametrize("by_mail", [False, True])
async def test_a_login_outlives_it_when_the_user_has_chosen_a_password(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, by_mail: bool
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    password = await given(user, settings, admin)
    login = await log_in(client, user, password)
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
    if by_mail:
        await expire(db, user)  # A link is as good as ever.
        token = await crud_mail_tokens.issue(db, MailPurpose.PASSWORD_RESET, user)
        await db.commit()
        confirmation = {"token": token, "new_password": OWN}
        assert (await client.post("password_reset/confirm", json=confirmation)).status_code == 200
    else:
        change = {"current_password": password, "new_password": OWN}
        assert (await client.post("user/me/password", json=change, headers=headers)).status_code == 200
        assert (await client.get("user/me/", headers=headers)).status_code == 200
    assert await expires_at(db, user) is None
    assert (await log_in(client, user, OWN)).status_code == 200
    assert (await log_in(client, user, password)).status_code == 401


async def test_a_password_of_ones_own_does_not_expire_even_if_nobody_knew_of_the_other(
    db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    async with second_session() as other:
        await other.get_one(User, user.id)  # As it was read before.
        await given(user, settings, admin)
        await crud_users.set_password(other, user.id, "another hash")
    assert await expires_at(db, user) is None


async def test_a_renewed_hash_is_as_temporary_as_the_old_one(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)  # whose hash is a cheap one
    until = utc_now() + timedelta(hours=1)
    await db.exec(update(User).where(col(User.id) == user.id).values(password_expires_at=until))
    await db.commit()
    assert (await log_in(client, user, PASSWORD)).status_code == 200
    assert await expires_at(db, user) == until


# ---- At the same moment ----


@pytest.mark.parametrize("replaced", [False, True])
async def test_one_that_ends_while_it_is_verified_opens_nothing(
    client: httpx2.AsyncClient,
    db: AsyncSession,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    replaced: bool,
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    password = await given(user, settings, admin)
    verify = passwords.verify_password

    async def slow(*args: Any) -> Any:
        answer = await verify(*args)
        await (given(user, settings, admin) if replaced else expire(db, user))
        return answer

    monkeypatch.setattr(sign_in, "verify_password", slow)
    assert (await log_in(client, user, password)).status_code == 401


async def test_it_counts_what_time_it_is_and_not_when_the_transaction_began(db: AsyncSession) -> None:
    user = await create_user(db)
    session = await create_session(db, user)
    async with transaction() as caller:
        await caller.get_one(User, user.id)
        await db.exec(update(User).where(col(User.id) == user.id).values(password_expires_at=utc_now()))
        await db.commit()
        await asyncio.sleep(0.05)
        assert await crud_users.lock_unchanged(caller, user) is None
        assert await crud_login_sessions.lock_with_user(caller, session.id) is None


async def test_a_login_at_the_same_moment_is_no_deadlock_and_ends(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await log_in(client, user, "a wrong password")
    async with second_session() as login:  # It locks what a login does, in its order.
        await login.exec(select(LoginThrottle).with_for_update())
        setting = asyncio.create_task(given(user, settings, admin))
        await until_waited_for(login)
        assert await crud_users.lock_unchanged(login, user) is not None
        late = await create_session(login, user)
    await setting
    assert (await client.get("user/me/", headers=signed_in(user, settings, late.id))).status_code == 401


async def test_of_two_that_are_set_at_once_one_is_good(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    drawn = await asyncio.gather(*(given(user, settings, admin) for _ in range(3)))
    statuses = [(await log_in(client, user, password)).status_code for password in drawn]
    assert sorted(statuses) == [200, 401, 401]
    assert (await client.get("user/me/", headers=signed_in(user, settings, session_of(user)))).status_code == 401


async def test_an_expired_one_counts_as_a_wrong_one(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    password = await given(user, settings, admin)
    await expire(db, user)
    for _ in range(FREE_FAILURES_OF_ACCOUNT + 1):
        await log_in(client, user, password)
    failed = select(SecurityEvent).where(SecurityEvent.kind == EventKind.LOGIN_FAILED)
    assert len(list(await db.exec(failed))) == FREE_FAILURES_OF_ACCOUNT + 1
    (throttle,) = await db.exec(select(LoginThrottle).where(col(LoginThrottle.key).startswith("account:")))
    assert throttle.failures == FREE_FAILURES_OF_ACCOUNT + 1
