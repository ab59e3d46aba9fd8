"""What operators do to users in the console publishes the same events as the API."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from tests.admin.conftest import _built_once
from tests.admin.operator import post
from tests.admin.people import act, act_on
from tests.helper import create_tier, create_user
from tests.user_events import Heard

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def app(settings: Settings, heard: Heard) -> AsyncIterator[FastAPI]:
    app = _built_once()
    app.state.settings = settings
    usual, app.state.subscriptions = app.state.subscriptions, heard.subscriptions
    async with app.router.lifespan_context(app):
        yield app
    app.state.subscriptions = usual


async def test_every_action_on_a_user(operator: httpx2.AsyncClient, db: AsyncSession, heard: Heard) -> None:
    tier = await create_tier(db)
    user = await create_user(db, username="ada")
    heard.take()

    form = {"username": "grace", "name": "Grace", "email": user.email, "profile_image_url": "", "tier_id": tier.id}
    assert (await post(operator, f"user/edit?pk={user.id}", form)).status_code == 303
    assert heard.take() == [("UserChanged", "grace", {"username", "name", "tier_id"})], "one event for one form"

    for action, values, expected in (
        ("move_to_tier", {"tier": "none"}, ("UserChanged", "grace", {"tier_id"})),
        ("make_superuser", None, ("UserChanged", "grace", {"is_superuser"})),
        ("no_superuser", None, ("UserChanged", "grace", {"is_superuser"})),
        ("temporary_password", None, ("UserChanged", "grace", {"password_changed_at", "password_expires_at"})),
        ("end_logins", None, None),
        ("delete", None, ("UserDeleted", "grace", set())),
        ("restore", None, ("UserRestored", "grace", set())),
    ):
        assert (await act(operator, "user", action, user.id, values)).status_code == 200, action
        assert heard.take() == ([expected] if expected else []), action

    other = await create_user(db, username="alan")
    heard.take()
    assert (await act_on(operator, "user", "delete", [user.id, other.id])).status_code == 200
    assert heard.take() == [("UserDeleted", "grace", set()), ("UserDeleted", "alan", set())]
