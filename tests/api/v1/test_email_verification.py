"""Showing that one reads the mail to one's address: asked at sign-up and with every new address."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.api import build_router
from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.setup import create_application
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_users import crud_users
from app.models.mail_token import MailPurpose, MailToken
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from scripts.embedded import free_port
from tests.conftest import client_of, second_session
from tests.helper import PASSWORD, all_rows, create_superuser, create_user, signed_in, until_waited_for
from tests.mail_jobs import do_mail_jobs, jobs_waiting, settings_for, text_of, token_in
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(mail_server: SMTPServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_for(mail_server, monkeypatch)


async def sign_up(client: httpx2.AsyncClient, **values: Any) -> httpx2.Response:
    form = {"name": "Ada Lovelace", "username": "ada", "email": "ada@example.com", "password": PASSWORD}
    return await client.post("user", json=form | values)


async def confirm(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    return await client.post("email_verification/confirm", json={"token": token})


async def token_for(user: User, client: httpx2.AsyncClient, server: SMTPServer, settings: Settings) -> str:
    """The token in the mail that the user asks for."""
    assert (await client.post("email_verification", headers=signed_in(user, settings))).status_code == 202
    await do_mail_jobs()
    return token_in(text_of(server.mails[-1]))


async def change_email(client: httpx2.AsyncClient, user: User, settings: Settings, email: str) -> Any:
    answer = await client.patch(f"user/{user.username}", json={"email": email}, headers=signed_in(user, settings))
    assert answer.status_code == 200
    return answer.json()


def assert_invalid(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:problem-type:invalid-mail-token")


# ---- At sign-up ----


async def test_who_signs_up_verifies_their_address_by_mail(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer
) -> None:
    created = await sign_up(client)
    assert created.json()["email_verified_at"] is None
    await do_mail_jobs()
    (mail,) = mail_server.mails
    assert mail.recipients == ["ada@example.com"]
    assert mail.message["Subject"] == "Slipway: Is this your address?"
    assert "within 24 hours" in text_of(mail)

    verified = await confirm(client, token_in(text_of(mail)))
    assert verified.status_code == 200
    assert verified.headers["Cache-Control"] == "no-store"
    token = (await client.post("login", data={"username": "ada", "password": PASSWORD})).json()["access_token"]
    me = await client.get("user/me/", headers={"Authorization": f"Bearer {token}"})
    assert me.json()["email_verified_at"] is not None
    event = (await db.exec(select(SecurityEvent).where(col(SecurityEvent.kind) == EventKind.EMAIL_VERIFIED))).one()
    assert (event.user_id, event.address) == (created.json()["id"], "127.0.0.1")


async def test_a_sign_up_that_is_refused_sends_nothing(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_user(db, username="ada")
    assert (await sign_up(client, email="other@example.com")).status_code == 409
    assert await jobs_waiting() == 0


async def test_without_valkey_one_can_sign_up_all_the_same_and_gets_the_mail(
    settings: Settings, mail_server: SMTPServer
) -> None:
    away = settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()})
    app = create_application(build_router(away), away)
    async with app.router.lifespan_context(app), client_of(app) as client:
        with capture_logs() as lines:
            assert (await sign_up(client)).status_code == 201
        assert [line["event"] for line in lines if line["log_level"] == "error"] == []
        assert (await client.get("user/ada")).status_code == 200
        await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [["ada@example.com"]]


async def test_the_link_leads_to_the_front_end_where_there_is_one(
    client: httpx2.AsyncClient, mail_server: SMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for(mail_server, monkeypatch, EMAIL_VERIFICATION_URL="https://front.example/#/verify")
    await sign_up(client)
    await do_mail_jobs()
    written = text_of(mail_server.mails[0])
    assert f"\nhttps://front.example/#/verify?token={token_in(written)}\n" in written


# ---- Asking again ----


async def test_asking_again_needs_a_sign_in(client: httpx2.AsyncClient) -> None:
    refused = await client.post("email_verification")
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert await jobs_waiting() == 0


async def test_the_mail_goes_to_who_asks_and_once_a_minute(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user, _ = await create_user(db), await create_user(db)
    for _ in range(2):
        await token_for(user, client, mail_server, settings)
    assert [mail.recipients for mail in mail_server.mails] == [[user.email]]


async def test_who_is_verified_gets_no_mail(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db, email_verified_at=utc_now())
    assert (await client.post("email_verification", headers=signed_in(user, settings))).status_code == 202
    await do_mail_jobs()
    assert mail_server.mails == []


async def test_who_is_deleted_before_the_job_gets_no_mail(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    deleted, erased = await create_user(db), await create_user(db)
    for user in (deleted, erased):
        await client.post("email_verification", headers=signed_in(user, settings))
    await crud_users.soft_delete(db, deleted)
    await crud_users.delete(db, erased)
    await db.commit()
    await do_mail_jobs()
    assert mail_server.mails == []


# ---- Tokens ----


async def test_a_token_works_once_and_for_who_is_signed_out(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    token = await token_for(await create_user(db), client, mail_server, settings)
    answers = await asyncio.gather(*(confirm(client, token) for _ in range(10)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 404: 9}
    assert_invalid(await confirm(client, token))


async def test_an_expired_token_and_one_of_another_purpose_change_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db)
    expired = await token_for(user, client, mail_server, settings)
    await db.exec(update(MailToken).values(expires_at=utc_now() - timedelta(seconds=1)))
    other = await crud_mail_tokens.issue(db, MailPurpose.PASSWORD_RESET, user)
    await db.commit()
    before = await all_rows(db)
    for token in (expired, other, "a" * 43):
        assert_invalid(await confirm(client, str(token)))
    assert await all_rows(db) == before


# ---- Another address ----


async def test_another_address_is_verified_anew_and_the_earlier_token_is_void(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db)
    old = await token_for(user, client, mail_server, settings)
    user.email_verified_at = utc_now()
    await db.commit()

    changed = await change_email(client, user, settings, "new@example.com")
    assert changed["email_verified_at"] is None
    assert_invalid(await confirm(client, old))
    await do_mail_jobs()
    assert mail_server.mails[-1].recipients == ["new@example.com"]
    assert (await confirm(client, token_in(text_of(mail_server.mails[-1])))).status_code == 200


async def test_an_address_changed_right_after_signing_up_gets_a_mail_too(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db, email="tpyo@example.com")
    await token_for(user, client, mail_server, settings)
    await change_email(client, user, settings, "typo@example.com")
    await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [["tpyo@example.com"], ["typo@example.com"]]


async def test_going_to_and_fro_between_addresses_floods_neither(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db)
    for email in ("a@example.com", "b@example.com", "A@example.com", "b@example.com"):
        await change_email(client, user, settings, email)
        await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [["a@example.com"], ["b@example.com"]]
    assert (await confirm(client, token_in(text_of(mail_server.mails[1])))).status_code == 200


async def test_the_same_address_in_other_letters_stays_verified(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db, email="ada@example.com", email_verified_at=utc_now())
    changed = await change_email(client, user, settings, "Ada@example.com")
    await do_mail_jobs()
    assert changed["email_verified_at"] is not None
    assert mail_server.mails == []


async def test_a_change_by_a_superuser_sends_a_mail_too(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    headers = signed_in(admin, settings)
    await client.patch(f"user/{user.username}", json={"email": "new@example.com"}, headers=headers)
    await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [["new@example.com"]]


async def test_an_address_that_changes_at_the_same_moment_is_not_verified(
    client: httpx2.AsyncClient, db: AsyncSession, mail_server: SMTPServer, settings: Settings
) -> None:
    user = await create_user(db)
    token = await token_for(user, client, mail_server, settings)
    async with second_session() as other:
        await other.exec(update(User).where(col(User.id) == user.id).values(email="new@example.com"))
        confirming = asyncio.create_task(confirm(client, token))
        await until_waited_for(other)
    assert_invalid(await confirming)
    await db.refresh(user)
    assert user.email_verified_at is None
