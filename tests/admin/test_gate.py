"""For how long a login opens the console, and what ends it; what the gate does with a request's transaction."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.gate import NOTED_EVERY
from app.core.config import Settings
from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.crud.crud_tier import crud_tiers
from app.models.console_action import ConsoleAction
from app.models.login_session import LoginKind, LoginSession
from app.models.tier import Tier
from app.models.user import User
from tests.admin.conftest import app_with_console
from tests.admin.operator import SAME_ORIGIN, console_of, post, sign_in, text_of, token_of
from tests.helper import PASSWORD, all_rows, create_superuser, signed_in

pytestmark = pytest.mark.anyio

NAME = "slipway_console"
LIVE = {"X-Console-Live": "1"}


async def login_of(db: AsyncSession) -> LoginSession:
    logins = select(LoginSession).where(col(LoginSession.kind) == LoginKind.CONSOLE)
    return (await db.exec(logins.execution_options(populate_existing=True))).one()


async def is_open(console: httpx2.AsyncClient) -> bool:
    answer = await console.get("tier/list", headers=LIVE)
    assert answer.status_code in {200, 303}
    return answer.status_code == 200


async def let_pass(db: AsyncSession, passed: timedelta) -> None:
    """Makes it look as if the login had begun, and been used, that much earlier."""
    login = await login_of(db)
    login.created_at -= passed
    login.last_used_at -= passed
    login.expires_at -= passed
    await db.commit()


# ---- For how long ----


async def test_a_login_that_lies_unused_ends(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await let_pass(db, timedelta(minutes=59))
    assert await is_open(operator)
    await let_pass(db, timedelta(minutes=1, seconds=1))
    assert not await is_open(operator)


async def test_using_it_puts_off_its_end(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    for _ in range(3):
        await let_pass(db, timedelta(minutes=50))
        assert (await operator.get("tier/list")).status_code == 200
    login = await login_of(db)
    assert login.expires_at - login.last_used_at == timedelta(minutes=60)
    assert utc_now() - login.last_used_at < timedelta(minutes=1)


async def test_no_use_puts_it_off_past_its_longest(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await let_pass(db, timedelta(minutes=59))
    for _ in range(13):
        assert (await operator.get("tier/list")).status_code == 200
        await let_pass(db, timedelta(minutes=51))
    login = await login_of(db)
    assert login.expires_at == login.created_at + timedelta(hours=12)
    await let_pass(db, timedelta(minutes=10))
    assert not await is_open(operator)


async def test_a_page_that_refreshes_itself_is_no_use(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await let_pass(db, timedelta(minutes=55))
    before = (await login_of(db)).model_dump()
    for _ in range(3):
        assert (await operator.get("tier/list", headers=LIVE)).status_code == 200
    assert (await login_of(db)).model_dump() == before
    await let_pass(db, timedelta(minutes=6))
    assert not await is_open(operator)


async def test_uses_are_noted_now_and_then(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    before = (await login_of(db)).model_dump()
    await operator.get("tier/list")
    assert (await login_of(db)).model_dump() == before, "not each of them: that would be a write for every page"
    await let_pass(db, NOTED_EVERY)
    await operator.get("tier/list")
    assert (await login_of(db)).last_used_at > before["last_used_at"]


# ---- What ends it at once, with the page still open ----


async def delete_account(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    assert (await client.delete(f"user/{user.username}", headers=headers)).status_code < 300


async def change_password(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    values = {"current_password": PASSWORD, "new_password": "an entirely new one 1"}
    assert (await client.post("user/me/password", json=values, headers=headers)).status_code < 300


async def end_sessions(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    assert (await client.delete("user/me/sessions", headers=headers)).status_code < 300


async def end_this_session(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    login = await login_of(db)
    listed = (await client.get("user/me/sessions", headers=headers)).json()["data"]
    assert [entry["kind"] for entry in listed if entry["id"] == str(login.id)] == ["console"]
    assert (await client.delete(f"user/me/sessions/{login.id}", headers=headers)).status_code < 300


async def demote(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    user.is_superuser = False
    await db.commit()


async def expire_password(client: httpx2.AsyncClient, user: User, headers: dict[str, str], db: AsyncSession) -> None:
    user.password_expires_at = utc_now() - timedelta(seconds=1)
    await db.commit()


End = Callable[[httpx2.AsyncClient, User, dict[str, str], AsyncSession], Awaitable[None]]


@pytest.mark.parametrize(
    "end", [delete_account, change_password, end_sessions, end_this_session, demote, expire_password]
)
async def test_it_is_dead_at_the_next_request(
    operator: httpx2.AsyncClient,
    client: httpx2.AsyncClient,
    superuser: User,
    db: AsyncSession,
    settings: Settings,
    end: End,
) -> None:
    token = await token_of(operator)
    assert await is_open(operator)
    await end(client, superuser, signed_in(superuser, settings), db)
    before = await all_rows(db)
    assert not await is_open(operator)
    answer = await operator.post("tier/create", data={"name": "late", "csrftoken": token}, headers=SAME_ORIGIN)
    assert answer.status_code == 403
    await db.rollback()
    assert await all_rows(db) == before


async def test_a_key_that_is_taken_away_ends_all(
    operator: httpx2.AsyncClient, app: FastAPI, settings: Settings
) -> None:
    held = operator.cookies[NAME]
    old = settings.SECRET_KEY.get_secret_value()
    for others, good in ((old, True), ("", False)):
        update = {"SECRET_KEY": "an0ther-key-of-the-test-" * 2, "OTHER_SECRET_KEYS": others}
        rotated = app_with_console(Settings.model_validate(settings.model_dump() | update))
        async with console_of(rotated, **{NAME: held}) as console:  # The database is open: `app` has started.
            assert await is_open(console) is good


async def test_two_servers_know_the_same(operator: httpx2.AsyncClient, settings: Settings) -> None:
    async with console_of(app_with_console(settings), **{NAME: operator.cookies[NAME]}) as elsewhere:
        token = await token_of(operator)
        values = {"name": "elsewhere", "csrftoken": token}
        assert (await elsewhere.post("tier/create", data=values, headers=SAME_ORIGIN)).status_code == 303
        await post(operator, "logout")
        assert not await is_open(elsewhere)


async def test_logins_of_others_live_on(app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    other = await create_superuser(db)
    async with console_of(app) as console:
        assert (await sign_in(console, other)).status_code == 303
        await post(operator, "logout")
        assert await is_open(console)


# ---- A request is a transaction ----


async def test_a_change_and_its_trail_are_one(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    assert (await post(operator, "tier/create", {"name": "gold"})).status_code == 303
    [tier] = await db.exec(select(Tier))
    [action] = await db.exec(select(ConsoleAction))
    assert (tier.name, action.action, action.target, action.actor) == ("gold", "tier.create", "tier 1", "operator")


async def test_what_fails_leaves_nothing(
    operator: httpx2.AsyncClient, db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = crud_tiers.create

    async def fail_late(*args: Any) -> None:
        await create(*args)
        raise RuntimeError("SELECT 1 FROM a_table -- with a secret")

    monkeypatch.setattr(crud_tiers, "create", fail_late)
    before = await all_rows(db)
    answer = await post(operator, "tier/create", {"name": "gold"})
    assert answer.status_code == 500
    assert "SELECT" not in answer.text
    assert answer.headers["X-Request-ID"] in text_of(answer)
    await db.rollback()
    assert await all_rows(db) == before
    monkeypatch.undo()
    assert (await post(operator, "tier/create", {"name": "gold"})).status_code == 303


async def test_a_form_with_errors_leaves_nothing(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await post(operator, "tier/create", {"name": "gold"})
    before = await all_rows(db)
    for name in ("gold", "", "x" * 51):
        answer = await post(operator, "tier/create", {"name": name})
        assert answer.status_code == 422, name
    await db.rollback()
    assert await all_rows(db) == before


async def test_a_browser_that_leaves_does_not_undo_half(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    """Changes that are cancelled somewhere on their way: each is there with its trail, or neither is."""
    token = await token_of(operator)

    async def create(number: int) -> None:
        values = {"name": f"tier {number}", "csrftoken": token}
        await operator.post("tier/create", data=values, headers=SAME_ORIGIN)

    tasks = [asyncio.create_task(create(number)) for number in range(20)]
    for task in tasks:
        await asyncio.sleep(0.003)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with transaction() as other:
        tiers = {f"tier {tier.id}" for tier in await other.exec(select(Tier))}
        trail = {action.target for action in await other.exec(select(ConsoleAction))}
    assert tiers == trail
