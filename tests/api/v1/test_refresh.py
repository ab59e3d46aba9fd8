"""Staying signed in over HTTP: rotation, its grace, reuse, and how long a login lasts."""

import asyncio
from collections import Counter
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from typing import Any

import httpx2
import pytest
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.security import create_refresh_token, parse_refresh_token
from app.models.login_session import LoginSession
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.helper import PASSWORD, all_rows, create_session, create_user, session_of, signed_in

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)


async def log_in(client: httpx2.AsyncClient, user: User) -> httpx2.Response:
    return await client.post("login", data={"username": user.username, "password": PASSWORD})


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


def token_in(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return cookie_in(answer).value


async def session_in(db: AsyncSession, answer: httpx2.Response) -> LoginSession:
    """The row of the login that an answer belongs to, as it is now."""
    session = await db.get(LoginSession, parse_refresh_token(token_in(answer)).session_id, populate_existing=True)
    assert session is not None
    return session


async def put_back(db: AsyncSession, session: LoginSession, **columns: timedelta) -> None:
    """Makes it look as if that long had passed since."""
    for column, ago in columns.items():
        setattr(session, column, getattr(session, column) - ago)
    await db.commit()


# ---- Rotation ----


async def test_no_refresh_without_a_good_refresh_token(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    access = (await log_in(client, user)).json()["access_token"]
    client.cookies.clear()
    before = await all_rows(db)

    for headers in (
        {},
        {"Authorization": f"Bearer {access}"},
        {"Cookie": f"refresh_token={access}"},
        {"Cookie": f"refresh_token={create_refresh_token(settings, session_of(user), b'not its salt', 0)}"},
        {"Cookie": "refresh_token=garbage"},
        {"Cookie": "refresh_token="},
        {"Cookie": "refresh_token"},
    ):
        refused = await client.post("refresh", headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert await all_rows(db) == before


async def test_a_refresh_gives_new_tokens(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))

    answer = await client.post("refresh")  # with the cookie the client has kept

    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert await status_of_me(client, answer) == 200
    assert await status_of_me(client, login) == 200
    assert token_in(answer) != token_in(login)
    assert (await client.post("refresh")).status_code == 200


async def test_a_refresh_token_is_no_access_token(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    token = token_in(await log_in(client, await create_user(db)))
    assert (await client.get("user/me/", headers={"Authorization": f"Bearer {token}"})).status_code == 401


async def test_a_refresh_says_when_and_from_where(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))
    session = await session_in(db, login)
    await put_back(db, session, last_used_at=MINUTE)

    client.headers["User-Agent"] = "Another browser"
    await refresh(client, token_in(login))

    session = await session_in(db, login)
    assert utc_now() - session.last_used_at < MINUTE
    assert (session.user_agent, session.address, session.generation) == ("Another browser", "127.0.0.1", 1)


# ---- The grace: two tabs, a lost answer ----


async def test_the_parent_repeated_within_the_grace_gets_the_same_successor(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    parent = token_in(await log_in(client, await create_user(db)))
    answers = [await refresh(client, parent) for _ in range(3)]

    assert len({token_in(answer) for answer in answers}) == 1
    assert (await session_in(db, answers[0])).generation == 1
    assert (await refresh(client, token_in(answers[0]))).status_code == 200


async def test_of_ten_simultaneous_refreshes_all_get_one_successor(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    token = token_in(await log_in(client, await create_user(db)))

    answers = await asyncio.gather(*(refresh(client, token) for _ in range(10)))

    assert len({token_in(answer) for answer in answers}) == 1
    assert (await session_in(db, answers[0])).generation == 1


async def test_without_a_grace_the_second_of_two_ends_the_login(
    client: httpx2.AsyncClient, db: AsyncSession, app: Any, settings: Settings
) -> None:
    app.state.settings = settings.model_copy(update={"REFRESH_GRACE_SECONDS": 0})
    token = token_in(await log_in(client, await create_user(db)))

    answers = await asyncio.gather(*(refresh(client, token) for _ in range(5)))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 4}
    (won,) = (answer for answer in answers if answer.status_code == 200)
    assert await status_of_me(client, won) == 401
    assert (await refresh(client, token_in(won))).status_code == 401


# ---- Reuse ----


@pytest.mark.parametrize("grace", [0, 10])
@pytest.mark.parametrize("behind", ["the parent, too late", "the grandparent, at once", "the first of five"])
async def test_an_old_token_ends_the_login_and_its_access_tokens(
    client: httpx2.AsyncClient, db: AsyncSession, app: Any, settings: Settings, grace: int, behind: str
) -> None:
    app.state.settings = settings.model_copy(update={"REFRESH_GRACE_SECONDS": grace})
    user = await create_user(db)
    answers = [await log_in(client, user)]
    for _ in range({"the parent, too late": 1, "the grandparent, at once": 2, "the first of five": 5}[behind]):
        answers.append(await refresh(client, token_in(answers[-1])))
    if behind == "the parent, too late":
        await put_back(db, await session_in(db, answers[0]), rotated_at=timedelta(seconds=grace))

    refused = await refresh(client, token_in(answers[0]))

    assert refused.status_code == 401
    assert refused.json()["type"] == "urn:problem-type:invalid-token"
    assert "Set-Cookie" not in refused.headers
    for answer in answers:
        assert await status_of_me(client, answer) == 401
        assert (await refresh(client, token_in(answer))).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 200, "another login"
    reuses = (await db.exec(select(SecurityEvent).where(SecurityEvent.kind == EventKind.REFRESH_REUSED))).all()
    assert [event.user_id for event in reuses] == [user.id]


async def test_a_generation_that_never_was_is_only_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """Nobody but us can make one, and we never did: unless the database was put back to an earlier day."""
    login = await log_in(client, await create_user(db))
    session = await session_in(db, login)

    refused = await refresh(client, create_refresh_token(settings, session.id, session.salt, 7))

    assert refused.status_code == 401
    assert await status_of_me(client, login) == 401


async def test_who_guesses_cannot_end_a_login(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))
    newer = await refresh(client, token_in(login))
    sid, _, secret = token_in(login).split(".")
    for forged in (f"{sid}.0.{'A' * 43}", f"{sid}.0.{secret[::-1]}", f"{sid}.9.{secret}"):
        assert (await refresh(client, forged)).status_code == 401
    assert await status_of_me(client, newer) == 200


async def test_revoked_wins_within_the_grace_too(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    parent = token_in(await log_in(client, await create_user(db)))
    newer = await refresh(client, parent)
    client.cookies.clear()
    await client.post("logout", headers={"Cookie": f"refresh_token={token_in(newer)}"})

    assert (await refresh(client, parent)).status_code == 401
    assert (await refresh(client, token_in(newer))).status_code == 401


# ---- How long ----


async def test_an_unused_login_ends(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    login = await log_in(client, await create_user(db))
    await put_back(db, await session_in(db, login), expires_at=timedelta(days=7))

    assert await status_of_me(client, login) == 401
    assert (await refresh(client, token_in(login))).status_code == 401


async def test_each_refresh_puts_the_end_off_but_never_past_the_longest_a_login_lasts(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    answer = await log_in(client, await create_user(db))
    day = 86_400
    for age, left in ((0, 7), (20, 7), (25, 5), (29, 1)):
        session = await session_in(db, answer)
        session.created_at = utc_now() - timedelta(days=age)
        await db.commit()
        answer = await refresh(client, token_in(answer))
        assert int(cookie_in(answer)["max-age"]) == pytest.approx(left * day, abs=5), age
        assert (await session_in(db, answer)).expires_at - utc_now() == pytest.approx(
            timedelta(days=left), abs=timedelta(seconds=5)
        )


async def test_a_deleted_user_stays_signed_in_nowhere(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    login = await log_in(client, user)

    await client.delete(f"user/{user.username}", headers=signed_in(user, settings))

    assert await status_of_me(client, login) == 401
    assert (await client.post("refresh")).status_code == 401
    assert (await log_in(client, user)).status_code == 401


async def test_rights_are_the_databases_and_not_the_tokens(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db, is_superuser=True)
    headers = signed_in(user, settings)
    assert (await client.post("tier", json={"name": "pro"}, headers=headers)).status_code == 201

    user.is_superuser = False
    await db.commit()

    assert (await client.post("tier", json={"name": "max"}, headers=headers)).status_code == 403


async def test_a_token_of_somebody_elses_login_is_refused(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """It could only come from us, and never does: the query holds user and login together all the same."""
    user, other = await create_user(db), await create_user(db)
    theirs = await create_session(db, other)
    assert (await client.get("user/me/", headers=signed_in(user, settings, theirs.id))).status_code == 401
