"""A new password for who has forgotten theirs: by a mail that works once, and tells strangers nothing."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.api import build_router
from app.core import passwords
from app.core.config import EnvironmentOption, Settings, get_settings
from app.core.db.models import utc_now
from app.core.security import hash_of_mail_token
from app.core.setup import create_application
from app.core.utils import queue
from app.core.utils.queue import Job, JobState
from app.crud.crud_login_throttle import LONGEST_LOCK
from app.crud.crud_mail_token import SHORTEST_INTERVAL, crud_mail_tokens
from app.crud.crud_users import crud_users
from app.models.login_throttle import LoginThrottle
from app.models.mail_token import MailPurpose, MailToken
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from scripts.embedded import free_port
from tests.conftest import client_of, second_session
from tests.helper import (
    HASHED_PASSWORD,
    PASSWORD,
    all_rows,
    counted_statements,
    create_user,
    signed_in,
    until_waited_for,
)
from tests.mail_jobs import do_mail_jobs, dump, jobs_waiting, settings_for, text_of, token_in
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.anyio

NEW_PASSWORD = "another horse, another battery"


@pytest.fixture
def settings(mail_server: SMTPServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_for(mail_server, monkeypatch)


async def ask(client: httpx2.AsyncClient, email: str) -> httpx2.Response:
    return await client.post("password_reset", json={"email": email})


async def token_for(user: User, client: httpx2.AsyncClient, server: SMTPServer) -> str:
    """The token in the mail that the user gets."""
    assert (await ask(client, user.email)).status_code == 202
    await do_mail_jobs()
    return token_in(text_of(server.mails[-1]))


async def confirm(client: httpx2.AsyncClient, token: str, new_password: str = NEW_PASSWORD) -> httpx2.Response:
    return await client.post("password_reset/confirm", json={"token": token, "new_password": new_password})


async def log_in(client: httpx2.AsyncClient, user: User, password: str) -> httpx2.Response:
    return await client.post("login", data={"username": user.username, "password": password})


async def pass_time(db: AsyncSession, passed: timedelta) -> None:
    """Makes it look as if that long had passed since the tokens were issued."""
    moved = {name: col(getattr(MailToken, name)) - passed for name in ("created_at", "expires_at")}
    await db.exec(update(MailToken).values(moved))
    await db.commit()


def assert_invalid(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:problem-type:invalid-mail-token")


# ---- The whole story ----


async def test_a_forgotten_password_is_replaced_by_mail(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db, username="ada")
    session = await log_in(client, user, PASSWORD)
    bearer = {"Authorization": f"Bearer {session.json()['access_token']}"}

    asked = await ask(client, "ADA@example.com")
    assert asked.status_code == 202
    assert asked.headers["Cache-Control"] == "no-store"
    await do_mail_jobs()
    (mail,) = mail_server.mails
    assert mail.recipients == ["ada@example.com"]
    assert mail.message["Subject"] == "Slipway: A new password"
    assert "Hello ada," in text_of(mail)
    assert "within 30 minutes" in text_of(mail)

    changed = await confirm(client, token_in(text_of(mail)))
    assert changed.status_code == 200
    assert changed.headers["Cache-Control"] == "no-store"
    assert (await client.get("user/me/", headers=bearer)).status_code == 401
    assert (await client.post("refresh")).status_code == 401
    assert (await log_in(client, user, PASSWORD)).status_code == 401
    again = await log_in(client, user, NEW_PASSWORD)
    me = await client.get("user/me/", headers={"Authorization": f"Bearer {again.json()['access_token']}"})
    assert me.json()["email_verified_at"] is not None, "they have read what was sent there"


async def test_every_login_ends_and_the_events_say_so(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user, other = await create_user(db), await create_user(db)  # Each has a login.
    cookies = [dict((await log_in(client, user, PASSWORD)).cookies) for _ in range(2)]
    client.cookies.clear()

    assert (await confirm(client, await token_for(user, client, mail_server))).status_code == 200

    for cookie in cookies:
        refused = await client.post("refresh", headers={"Cookie": f"refresh_token={cookie['refresh_token']}"})
        assert refused.status_code == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(other, settings))).status_code == 200
    events = (await db.exec(select(SecurityEvent).order_by(col(SecurityEvent.id)))).all()
    requested, reset = events[-2:]
    assert (requested.kind, requested.user_id) == (EventKind.PASSWORD_RESET_REQUESTED, user.id)
    assert (reset.kind, reset.user_id, reset.details) == (EventKind.PASSWORD_RESET, user.id, {"sessions_ended": 3})
    assert reset.address == "127.0.0.1"


async def test_failed_logins_are_forgiven_wherever_they_came_from(
    app: FastAPI, client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    elsewhere = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app, client=("203.0.113.9", 1)), base_url=client.base_url
    )
    await log_in(client, user, PASSWORD)  # From now on failures from here are counted apart.
    for key in (f"account:{user.uuid}", f"account:{user.uuid}@127.0.0.1"):
        db.add(LoginThrottle(key=key, failures=99, last_failure_at=utc_now(), locked_until=utc_now() + LONGEST_LOCK))
    await db.commit()
    async with elsewhere:
        for place in (client, elsewhere):
            assert (await log_in(place, user, PASSWORD)).status_code == 401

        await confirm(client, await token_for(user, client, mail_server))

        for place in (client, elsewhere):
            assert (await log_in(place, user, NEW_PASSWORD)).status_code == 200


async def test_the_link_leads_to_the_front_end_where_there_is_one(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(mail_server, monkeypatch, PASSWORD_RESET_URL="https://front.example/reset")
    token = await token_for(await create_user(db), client, mail_server)
    assert f"\nhttps://front.example/reset?token={token}\n" in text_of(mail_server.mails[0])
    assert (await confirm(client, token)).status_code == 200


async def test_the_mail_holds_nothing_that_a_stranger_could_have_written(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    await token_for(await create_user(db, name="Win at evil.example/now!"), client, mail_server)
    assert "evil" not in mail_server.mails[0].message.as_string()


# ---- Tokens that are good no more ----


async def test_of_ten_confirmations_at_once_one_counts(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    token = await token_for(user, client, mail_server)

    answers = await asyncio.gather(*(confirm(client, token, f"{NEW_PASSWORD} {number}") for number in range(10)))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 404: 9}
    winner = [answer.status_code for answer in answers].index(200)
    assert (await log_in(client, user, f"{NEW_PASSWORD} {winner}")).status_code == 200


async def expired(db: AsyncSession, user: User, token: str) -> str:
    await pass_time(db, timedelta(minutes=30))
    return token


async def of_another_purpose(db: AsyncSession, user: User, token: str) -> str:
    return await crud_mail_tokens.issue(db, MailPurpose.EMAIL_VERIFICATION, user) or ""


async def sent_to_an_earlier_address(db: AsyncSession, user: User, token: str) -> str:
    user.email = f"new-{user.email}"
    return token


async def of_a_deleted_user(db: AsyncSession, user: User, token: str) -> str:
    await crud_users.soft_delete(db, user)
    return token


async def cut_short(db: AsyncSession, user: User, token: str) -> str:
    return token[:-1]


async def made_up(db: AsyncSession, user: User, token: str) -> str:
    return "a" * 43


@pytest.mark.parametrize(
    "spoil", [expired, of_another_purpose, sent_to_an_earlier_address, of_a_deleted_user, cut_short, made_up]
)
async def test_a_token_that_is_not_good_changes_nothing_and_costs_no_hash(
    spoil: Callable[[AsyncSession, User, str], Awaitable[str]],
    client: httpx2.AsyncClient,
    db: AsyncSession,
    mail_server: SMTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = await create_user(db)
    token = await spoil(db, user, await token_for(user, client, mail_server))
    await db.commit()
    before = await all_rows(db)

    def no_hasher(_: Any) -> None:
        pytest.fail("something was hashed")

    monkeypatch.setattr(passwords, "_hasher", no_hasher)
    assert_invalid(await confirm(client, token))
    assert await all_rows(db) == before


@pytest.mark.parametrize("token", ["", "short", "x" * 101, "a b" * 15, "ä" * 43, "a" * 42 + "\0", None, 7])
async def test_what_cannot_be_a_token_is_a_broken_request(client: httpx2.AsyncClient, token: Any) -> None:
    with counted_statements() as statements:
        answer = await confirm(client, token)
    assert answer.status_code == 422
    assert [fault["loc"] for fault in answer.json()["errors"]] == [["body", "token"]]
    assert statements == []


async def test_an_address_that_changes_while_the_password_is_hashed_voids_the_token(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    token = await token_for(user, client, mail_server)
    async with second_session() as other:
        await other.exec(update(User).where(col(User.id) == user.id).values(email="new@example.com"))
        confirming = asyncio.create_task(confirm(client, token))
        await until_waited_for(other)
    assert_invalid(await confirming)
    await db.refresh(user)
    assert (user.hashed_password, user.email_verified_at) == (HASHED_PASSWORD, None)


async def test_a_login_at_the_same_moment_is_no_deadlock(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    await log_in(client, user, "a wrong password")
    token = await token_for(user, client, mail_server)
    async with second_session() as login:  # It locks what a login does, in its order.
        await login.exec(select(LoginThrottle).with_for_update())
        confirming = asyncio.create_task(confirm(client, token))
        await until_waited_for(login)
        assert await crud_users.lock_unchanged(login, user) is not None
    assert (await confirming).status_code == 200


@pytest.mark.parametrize(
    ("new_password", "kind"),
    [
        ("Password123", "invalid-request"),
        ("countess", "password-too-obvious"),
        ("Countess123!", "password-too-obvious"),
        ("ada@example.com", "password-too-obvious"),
        ("2 short", "invalid-request"),
    ],
)
async def test_an_obvious_password_is_refused_and_the_token_stays_good(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, new_password: str, kind: str
) -> None:
    token = await token_for(await create_user(db, username="countess", email="ada@example.com"), client, mail_server)
    before = await all_rows(db)
    refused = await confirm(client, token, new_password)
    assert (refused.status_code, refused.json()["type"]) == (422, f"urn:problem-type:{kind}")
    assert new_password not in refused.text
    assert await all_rows(db) == before
    assert (await confirm(client, token)).status_code == 200


# ---- How many mails ----


async def test_a_second_request_within_a_minute_sends_nothing_and_a_later_one_a_new_token(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    first = await token_for(user, client, mail_server)
    await token_for(user, client, mail_server)
    assert len(mail_server.mails) == 1

    await pass_time(db, SHORTEST_INTERVAL)
    second = await token_for(user, client, mail_server)
    assert len(mail_server.mails) == 2
    assert second != first
    # A stranger who asks once a minute does not void what the user is about to use; the first use voids the rest.
    assert (await confirm(client, first)).status_code == 200
    assert_invalid(await confirm(client, second))


async def test_many_requests_at_once_send_one_mail(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    mail_server.delay = 0.05  # so that the jobs overlap
    answers = await asyncio.gather(*(ask(client, user.email) for _ in range(20)))
    await do_mail_jobs()
    assert {answer.status_code for answer in answers} == {202}
    assert len(mail_server.mails) == 1
    assert await jobs_waiting() == 0


async def test_another_address_has_a_minute_of_its_own(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db, email="old@example.com")
    old = await token_for(user, client, mail_server)
    user.email = "new@example.com"
    await db.commit()
    new = await token_for(user, client, mail_server)
    assert [mail.recipients for mail in mail_server.mails] == [["old@example.com"], ["new@example.com"]]
    assert_invalid(await confirm(client, old))
    assert (await confirm(client, new)).status_code == 200


async def test_an_unknown_address_looks_like_a_known_one(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    known, deleted = await create_user(db), await create_user(db)
    await crud_users.soft_delete(db, deleted)
    await db.commit()

    answers = []
    for email in (known.email, deleted.email, "nobody@example.com"):
        with counted_statements() as statements:
            answer = await ask(client, email)
        answers.append((answer.status_code, answer.json(), answer.headers.keys(), statements))
    assert answers[0] == answers[1] == answers[2]
    status, _, _, (only,) = answers[0]
    assert status == 202
    assert only.startswith("INSERT INTO job "), "nobody is looked up, so nothing takes longer"
    await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [[known.email]]


# ---- When something is away ----


async def test_without_valkey_one_can_ask_all_the_same(settings: Settings, mail_server: SMTPServer) -> None:
    away = settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()})
    app = create_application(build_router(away), away)
    async with app.router.lifespan_context(app), client_of(app) as client:
        async with second_session() as db:
            user = await create_user(db)
        token = await token_for(user, client, mail_server)
        assert (await confirm(client, token)).status_code == 200


async def make_due(db: AsyncSession) -> Job:
    """Lets the waiting job begin now. Returns it as it was."""
    job = (await db.exec(select(Job))).one()
    db.expunge(job)
    await db.exec(update(Job).values(run_after=utc_now()))
    await db.commit()
    return job


async def all_but_jobs(db: AsyncSession) -> dict[str, set[str]]:
    return {table: rows for table, rows in (await all_rows(db)).items() if table != "job"}


async def test_without_a_mail_server_the_job_is_done_again_later(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    await ask(client, user.email)
    before = await all_but_jobs(db)
    mail_server.answers["CONNECT"] = "421 come back later"
    for attempt, seconds in ((1, 10), (2, 20)):
        with capture_logs() as lines:
            await do_mail_jobs(skip_delays=False)
        assert "attempt failed" in [line["event"] for line in lines]
        assert user.email not in str(lines)
        assert mail_server.mails == []
        assert await all_but_jobs(db) == before, "a token that nobody has got"
        job = await make_due(db)
        assert (job.state, job.attempt) == (JobState.QUEUED, attempt)
        assert job.error is not None
        assert job.error.startswith("MailNotSent")
        assert user.email not in job.error
        assert job.started_at is not None
        assert seconds / 2 <= (job.run_after - job.started_at).total_seconds() < seconds + 10

    mail_server.answers.clear()
    await do_mail_jobs()
    assert (await confirm(client, token_in(text_of(mail_server.mails[0])))).status_code == 200
    assert (await db.exec(select(Job))).all() == [], "there is an address in it"


async def test_without_a_mail_server_for_long_the_job_is_a_dead_letter(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    user = await create_user(db)
    before = await all_but_jobs(db)
    mail_server.answers["CONNECT"] = "421 come back later"
    await ask(client, user.email)
    await do_mail_jobs()
    dead = (await db.exec(select(Job))).one()
    assert dead.state == JobState.DEAD
    assert dead.attempt > 1
    assert await all_but_jobs(db) == before


# ---- Secrets ----


async def test_the_token_is_kept_nowhere(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    user = await create_user(db)
    caplog.set_level(logging.DEBUG)
    with capture_logs() as lines:
        token = await token_for(user, client, mail_server)
        written = await dump(db) + await dump_of_valkey()
        await confirm(client, token)
        written += await dump(db) + await dump_of_valkey()
    logged = f"{lines}{caplog.text}"
    assert user.email in written
    assert hash_of_mail_token(token) in written
    assert EventKind.PASSWORD_RESET in logged
    assert "send_password_reset" in logged
    for place in (written, logged):
        assert token not in place
        assert NEW_PASSWORD not in place


async def dump_of_valkey() -> str:
    strings = [key async for key in queue.pool.scan_iter(_type="STRING")]
    return repr(await queue.pool.mget(strings))


# ---- Where mail is off ----


async def test_without_a_mail_server_local_has_the_mail_in_the_log(
    client: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMTP_HOST")
    get_settings.cache_clear()
    user = await create_user(db)
    await ask(client, user.email)
    with capture_logs() as lines:
        await do_mail_jobs()
    (mail,) = (line["event"] for line in lines if line["event"].startswith(f"mail to {user.email}\n"))
    assert (await confirm(client, token_in(mail))).status_code == 200


@pytest.mark.parametrize("environment", [EnvironmentOption.STAGING, EnvironmentOption.PRODUCTION])
async def test_without_a_mail_server_others_have_no_such_routes(
    settings: Settings, environment: EnvironmentOption
) -> None:
    settings = settings.model_copy(update={"SMTP_HOST": None, "ENVIRONMENT": environment})
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path in ("password_reset", "password_reset/confirm", "email_verification", "email_verification/confirm"):
            assert (await client.post(path, json={})).status_code == 404
        form = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": PASSWORD}
        assert (await client.post("user", json=form)).status_code == 201
        assert await jobs_waiting() == 0
    assert not [path for path in app.openapi()["paths"] if "reset" in path or "verification" in path]
