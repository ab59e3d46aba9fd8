"""Whatever changes a user through the API publishes an event, once and with what has changed."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.models.user_events import UserChanged, UserCreated, UserErased
from tests.conftest import whole_app
from tests.helper import PASSWORD, create_superuser, create_tier, create_user, signed_in
from tests.mail_jobs import do_mail_jobs, settings_for, text_of, token_in
from tests.smtp_server import SMTPServer
from tests.user_events import Heard

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def app(settings: Settings, heard: Heard) -> AsyncIterator[FastAPI]:
    app = whole_app()
    app.state.settings = settings
    usual, app.state.subscriptions = app.state.subscriptions, heard.subscriptions
    async with app.router.lifespan_context(app):
        yield app
    app.state.subscriptions = usual


async def test_every_route_that_changes_a_user(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, heard: Heard
) -> None:
    admin = signed_in(await create_superuser(db, username="admin"), settings)
    tier = await create_tier(db)
    assert heard.take() == [("UserCreated", "admin", set())]

    form = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": PASSWORD}
    assert (await client.post("user", json=form)).status_code == 201
    (created,) = heard.within
    assert isinstance(created, UserCreated)
    assert (created.values["name"], created.values["email"]) == ("Ada", "ada@example.com")
    assert "hashed_password" not in created.values
    assert heard.take() == [("UserCreated", "ada", set())]

    login = await client.post("login", data={"username": "ada", "password": PASSWORD})
    ada = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert heard.take() == [], "a login changes nobody"

    assert (await client.patch("user/ada", json={"username": "grace", "name": "Grace"}, headers=ada)).status_code == 200
    (renamed,) = heard.within
    assert isinstance(renamed, UserChanged)
    assert (renamed.before, renamed.after) == (
        {"username": "ada", "name": "Ada"},
        {"username": "grace", "name": "Grace"},
    )
    assert heard.take() == [("UserChanged", "grace", {"username", "name"})]

    assert (await client.patch("user/grace", json={"name": "Grace"}, headers=ada)).status_code == 200
    assert heard.take() == [], "the same name is no change"

    await client.patch("user/grace", json={"email": "grace@example.com"}, headers=ada)
    assert heard.take() == [("UserChanged", "grace", {"email"})]

    await client.patch("user/grace/tier", json={"tier_id": tier.id}, headers=admin)
    assert heard.take() == [("UserChanged", "grace", {"tier_id"})]

    passwords = {"current_password": PASSWORD, "new_password": "analytical engine"}
    assert (await client.post("user/me/password", json=passwords, headers=ada)).status_code == 200
    assert heard.take() == [("UserChanged", "grace", {"password_changed_at"})]

    assert (await client.delete("user/grace", headers=ada)).status_code == 200
    assert heard.take() == [("UserDeleted", "grace", set())]

    assert (await client.delete("db_user/grace", headers=admin)).status_code == 200
    (erased,) = heard.within
    assert isinstance(erased, UserErased)
    assert erased.values["email"] == "grace@example.com"
    assert heard.take() == [("UserErased", "grace", set())]

    await create_user(db, username="alan")
    heard.take()
    assert (await client.delete("db_user/alan", headers=admin)).status_code == 200
    assert heard.take() == [("UserErased", "alan", set())]


async def test_what_is_refused_publishes_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, heard: Heard
) -> None:
    ada = await create_user(db, username="ada")
    await create_user(db, username="grace")
    heard.take()
    taken = await client.patch("user/ada", json={"username": "grace"}, headers=signed_in(ada, settings))
    assert taken.status_code == 409
    assert (await client.patch("user/ada", json={"name": "x"})).status_code == 401
    assert heard.take() == []


class TestMail:
    @pytest.fixture
    def settings(self, mail_server: SMTPServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
        return settings_for(mail_server, monkeypatch)

    async def test_what_is_confirmed_by_mail(
        self,
        client: httpx2.AsyncClient,
        db: AsyncSession,
        settings: Settings,
        heard: Heard,
        mail_server: SMTPServer,
    ) -> None:
        ada = await create_user(db, username="ada")
        heard.take()
        await client.post("email_verification", headers=signed_in(ada, settings))
        await do_mail_jobs()
        token = token_in(text_of(mail_server.mails[-1]))
        assert (await client.post("email_verification/confirm", json={"token": token})).status_code == 200
        assert heard.take() == [("UserChanged", "ada", {"email_verified_at"})]

        await client.post("password_reset", json={"email": ada.email})
        await do_mail_jobs()
        body = {"token": token_in(text_of(mail_server.mails[-1])), "new_password": "analytical engine"}
        assert (await client.post("password_reset/confirm", json=body)).status_code == 200
        assert heard.take() == [("UserChanged", "ada", {"password_changed_at"})]
