"""Security events: a row and a line for each, readable by superusers."""

from typing import Any

import httpx2
import pytest
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import Settings
from app.crud.crud_security_event import Client, crud_security_events
from app.models.security_event import EventKind, SecurityEvent
from tests.conftest import second_session
from tests.helper import PASSWORD, create_superuser, create_tier, create_user, session_of, signed_in

pytestmark = pytest.mark.anyio


async def kinds_of(db: AsyncSession, user_id: int | None) -> list[str]:
    statement = select(SecurityEvent.kind).where(col(SecurityEvent.user_id) == user_id).order_by(col(SecurityEvent.id))
    return list(await db.exec(statement))


async def test_what_a_user_does_leaves_its_trail(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin, tier = await create_user(db), await create_superuser(db), await create_tier(db)
    mine, boss = signed_in(user, settings), signed_in(admin, settings)

    await client.post("login", data={"username": user.username, "password": "a wrong password"})
    await client.post("login", data={"username": user.username, "password": PASSWORD})
    await client.post("logout")
    client.cookies.clear()
    body = {"current_password": PASSWORD, "new_password": "analytical engine"}
    await client.post("user/me/password", json=body, headers=mine)
    await client.patch(f"user/{user.username}", json={"email": "new@example.com"}, headers=mine)
    await client.patch(f"user/{user.username}/tier", json={"tier_id": tier.id}, headers=boss)
    await client.delete(f"user/{user.username}/sessions", headers=boss)
    await client.delete(f"user/{user.username}", headers=mine)

    assert await kinds_of(db, user.id) == [
        EventKind.LOGIN_FAILED,
        EventKind.LOGIN,
        EventKind.LOGOUT,
        EventKind.PASSWORD_CHANGED,
        EventKind.EMAIL_CHANGED,
        EventKind.RIGHTS_CHANGED,
        EventKind.SESSIONS_ENDED,
    ]
    changed = (await db.exec(select(SecurityEvent).where(SecurityEvent.kind == EventKind.RIGHTS_CHANGED))).one()
    assert (changed.actor_id, changed.details) == (admin.id, {"tier_id": tier.id})


async def test_a_deletion_is_remembered_even_of_who_is_gone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    deleted, erased, admin = await create_user(db), await create_user(db), await create_superuser(db)
    await client.delete(f"user/{deleted.username}", headers=signed_in(deleted, settings))
    await client.delete(f"db_user/{erased.username}", headers=signed_in(admin, settings))

    first, second = await db.exec(select(SecurityEvent).order_by(col(SecurityEvent.id)))
    assert (first.kind, first.user_id, first.actor_id) == (EventKind.USER_DELETED, deleted.id, None)
    assert (second.kind, second.user_id, second.actor_id) == (EventKind.USER_DELETED, None, admin.id)
    assert second.details == {"uuid": str(erased.uuid), "erased": True}


async def test_an_event_is_one_line_with_the_requests_id_and_nothing_secret(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    with capture_logs() as lines:
        form = {"username": user.username, "password": PASSWORD}
        answer = await client.post("login", data=form, headers={"X-Request-ID": "0123456789"})
    (line,) = (line for line in lines if line["event"] == "security event")
    (row,) = await db.exec(select(SecurityEvent))
    assert (line["kind"], line["user_id"], line["session_id"]) == ("login", user.id, str(row.session_id))
    assert row.request_id == "0123456789"
    everything = f"{lines}{row.model_dump()}"
    for secret in (PASSWORD, answer.json()["access_token"], answer.cookies["refresh_token"]):
        assert secret not in everything


async def test_what_is_rolled_back_leaves_no_line(db: AsyncSession) -> None:
    with capture_logs() as lines:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  (the session ends there)
            async with second_session() as other:
                await crud_security_events.record(other, EventKind.LOGIN, Client())
                await other.flush()
                raise ZeroDivisionError
        async with second_session() as other:
            await crud_security_events.record(other, EventKind.LOGOUT, Client())
    assert [line["kind"] for line in lines] == ["logout"]
    assert [row.kind for row in await db.exec(select(SecurityEvent))] == ["logout"]


async def test_superusers_read_them_by_kind_and_user(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    session_id = session_of(user)
    for kind, about in ((EventKind.LOGIN, user.id), (EventKind.LOGOUT, user.id), (EventKind.LOGIN_FAILED, None)):
        await crud_security_events.record(db, kind, Client("192.0.2.7"), user_id=about, session_id=session_id)
        await db.commit()

    async def read(**params: Any) -> list[str]:
        page = await client.get("security_events", params=params, headers=signed_in(admin, settings))
        return [event["kind"] for event in page.json()["data"]]

    assert (await client.get("security_events")).status_code == 401
    assert (await client.get("security_events", headers=signed_in(user, settings))).status_code == 403
    assert await read() == ["login_failed", "logout", "login"]
    assert await read(user_id=user.id) == ["logout", "login"]
    assert await read(kind="login", user_id=user.id) == ["login"]
    assert await read(items_per_page=1, page=2) == ["logout"]
    unknown = await client.get("security_events", params={"kind": "nosuch"}, headers=signed_in(admin, settings))
    assert unknown.status_code == 422
