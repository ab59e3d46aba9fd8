"""Changing one's password over HTTP."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
import pytest
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.sign_in import FREE_FAILURES_OF_ACCOUNT
from app.core.config import Settings
from app.crud.crud_mail_token import crud_mail_tokens
from app.models.mail_token import MailPurpose
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.helper import PASSWORD, create_session, create_user, signed_in

pytestmark = pytest.mark.anyio

NEW = "analytical engine"


def change(current: Any = PASSWORD, new: Any = NEW) -> dict[str, Any]:
    return {"current_password": current, "new_password": new}


async def log_in(client: httpx2.AsyncClient, user: User, password: str) -> int:
    answer = await client.post("login", data={"username": user.username, "password": password})
    client.cookies.clear()
    return answer.status_code


async def hash_of(db: AsyncSession, user: User) -> str:
    return (await db.exec(select(User.hashed_password).where(col(User.id) == user.id))).one()


async def test_the_new_password_is_good_and_the_old_one_is_not(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    assert (await client.post("user/me/password", json=change())).status_code == 401

    answer = await client.post("user/me/password", json=change(), headers=signed_in(user, settings))

    assert (answer.status_code, answer.json()) == (200, {"ended": 0})
    assert await log_in(client, user, PASSWORD) == 401
    assert await log_in(client, user, NEW) == 200
    (event,) = await db.exec(select(SecurityEvent).where(SecurityEvent.kind == EventKind.PASSWORD_CHANGED))
    assert event.user_id == user.id


async def test_all_other_logins_end_with_the_next_request(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, stranger = await create_user(db), await create_user(db)
    others = [signed_in(user, settings, (await create_session(db, user)).id) for _ in range(2)]
    login = await client.post("login", data={"username": user.username, "password": PASSWORD})
    cookie = login.cookies["refresh_token"]
    client.cookies.clear()

    answer = await client.post("user/me/password", json=change(), headers=signed_in(user, settings))

    assert answer.json() == {"ended": 3}
    for headers in others:
        assert (await client.get("user/me/", headers=headers)).status_code == 401
    assert (await client.post("refresh", headers={"Cookie": f"refresh_token={cookie}"})).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 200
    assert (await client.get("user/me/", headers=signed_in(stranger, settings))).status_code == 200


async def test_it_needs_the_current_password_and_guesses_are_counted(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """A stolen access token is not to be turned into the account."""
    user = await create_user(db)
    headers, before = signed_in(user, settings), await hash_of(db, user)

    for _ in range(FREE_FAILURES_OF_ACCOUNT + 1):
        refused = await client.post("user/me/password", json=change("a wrong one"), headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:problem-type:wrong-password")
    locked = await client.post("user/me/password", json=change(), headers=headers)
    assert (locked.status_code, locked.json()["type"]) == (403, "urn:problem-type:wrong-password")
    assert await hash_of(db, user) == before


async def test_a_refused_new_password_does_not_tell_whether_the_current_one_was_right(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="lovelace")
    headers = signed_in(user, settings)
    answers = [
        (await client.post("user/me/password", json=change(current, "lovelace1815"), headers=headers)).json()
        for current in (PASSWORD, "a wrong one")
    ]
    assert answers[0] | {"request_id": ""} == answers[1] | {"request_id": ""}
    assert answers[0]["type"] == "urn:problem-type:password-too-obvious"


async def test_a_password_that_would_be_tried_first_is_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, username="lovelace", email="ada.byron@example.com")
    headers, before = signed_in(user, settings), await hash_of(db, user)

    for new in ("password1", "lovelace", "ada.byron1815", "seven77", "x" * 129, "", None, 12345678):
        refused = await client.post("user/me/password", json=change(new=new), headers=headers)
        assert refused.status_code == 422, new
        assert not isinstance(new, str) or len(new) < 8 or new not in refused.text
    assert await hash_of(db, user) == before


async def test_of_two_changes_at_once_from_one_password_one_succeeds(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    headers = signed_in(user, settings)
    answers = await asyncio.gather(
        *(client.post("user/me/password", json=change(new=f"{NEW} {number}"), headers=headers) for number in range(4))
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 403: 3}


async def test_a_reset_that_is_under_way_ends_with_it(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    token = await crud_mail_tokens.issue(db, MailPurpose.PASSWORD_RESET, user)
    await db.commit()
    await client.post("user/me/password", json=change(), headers=signed_in(user, settings))

    refused = await client.post("password_reset/confirm", json={"token": token, "new_password": "difference engine"})
    assert refused.status_code == 404
    assert await log_in(client, user, NEW) == 200


@pytest.mark.parametrize("password", ["password", "PASSWORD1", "qwertyuiop", "lovelace1815", "ada.byron@example.com"])
async def test_nobody_signs_up_with_such_a_password_either(client: httpx2.AsyncClient, password: str) -> None:
    form = {"name": "Ada", "username": "lovelace", "email": "ada.byron@example.com", "password": password}
    refused = await client.post("user", json=form)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == ["body", "password"]
