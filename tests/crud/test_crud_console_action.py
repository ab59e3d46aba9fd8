"""What was done in the console, as rows and as lines of the log."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.crud.crud_console_action import LONGEST_TARGET, LONGEST_TEXT, crud_console_actions
from app.crud.crud_security_event import Client
from app.crud.crud_users import crud_users
from app.models.console_action import ConsoleAction
from app.models.login_session import LoginKind
from app.models.tier import TierUpdate
from app.models.user import User
from tests.helper import create_superuser

pytestmark = pytest.mark.anyio

CLIENT = Client("192.0.2.7", "A browser", "request-1")
A_UUID = UUID("12345678-1234-5678-1234-567812345678")
NAN = float("nan")


async def recorded(admin: User, before: dict[Any, Any], after: dict[Any, Any], target: str = "user 5") -> None:
    """Writes it down in a transaction of its own."""
    async with transaction() as db:
        await crud_console_actions.record(db, admin, CLIENT, "user.edit", target, before, after)


async def only_row(db: AsyncSession) -> ConsoleAction:
    return (await db.exec(select(ConsoleAction))).one()


async def test_a_row_says_who_did_what_to_what_from_where(db: AsyncSession) -> None:
    admin = await create_superuser(db, username="ada")
    with capture_logs() as lines:
        await recorded(admin, {"name": "Old"}, {"name": "New"})
    row = await only_row(db)
    assert (row.actor_id, row.actor, row.action, row.target) == (admin.id, "ada", "user.edit", "user 5")
    assert (row.before, row.after) == ({"name": "Old"}, {"name": "New"})
    assert (row.address, row.user_agent, row.request_id) == ("192.0.2.7", "A browser", "request-1")
    assert abs(utc_now() - row.created_at) < timedelta(minutes=1)
    assert lines == [
        {
            "event": "console action",
            "log_level": "info",
            "id": row.id,
            "actor_id": admin.id,
            "actor": "ada",
            "action": "user.edit",
            "target": "user 5",
            "before": {"name": "Old"},
            "after": {"name": "New"},
            "address": "192.0.2.7",
            "user_agent": "A browser",
        }
    ]


async def test_what_is_rolled_back_was_not_done(db: AsyncSession) -> None:
    admin = await create_superuser(db)
    with capture_logs() as lines:
        async with transaction() as other:
            await crud_console_actions.record(other, admin, CLIENT, "user.edit", "user 5", {}, {})
            await other.flush()
            assert lines == []
            await other.rollback()
    assert lines == []
    assert not list(await db.exec(select(ConsoleAction)))


async def test_it_outlives_the_user(db: AsyncSession) -> None:
    admin = await create_superuser(db, username="ada")
    await recorded(admin, {}, {})
    await crud_users.delete(db, admin)
    await db.commit()
    assert (await only_row(db)).actor == "ada"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (True, True),
        (2**70, 2**70),
        (0.5, 0.5),
        (NAN, "nan"),
        (float("-inf"), "-inf"),
        (Decimal("1.50"), "1.50"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (A_UUID, str(A_UUID)),
        (LoginKind.CONSOLE, "console"),
        (timedelta(hours=1), "1:00:00"),
        (SecretStr("hunter2hunter2"), "**********"),
        ((1, {"a"}, [A_UUID]), [1, ["a"], [str(A_UUID)]]),
        ({"at": date(2026, 1, 2), 1: None}, {"at": "2026-01-02", "1": None}),
        (TierUpdate(name="pro"), {"name": "pro"}),
        ("x" * 501, "x" * 500),
        (["x" * 501], ["x" * 500]),
        ("NUL \x00, half \ud83d, whole \U0001f40e", "NUL \ufffd, half ?, whole \U0001f40e"),
        ("<script>", "<script>"),
    ],
)
async def test_what_json_cannot_hold_becomes_a_text(db: AsyncSession, given: Any, kept: Any) -> None:
    assert LONGEST_TEXT == 500
    admin = await create_superuser(db)
    await recorded(admin, {"value": given}, {"value": [given]})
    row = await only_row(db)
    assert (row.before, row.after) == ({"value": kept}, {"value": [kept]})


async def test_a_target_is_as_long_as_its_column(db: AsyncSession) -> None:
    await recorded(await create_superuser(db), {}, {}, target="\x00" + "x" * 300)
    assert (await only_row(db)).target == "\ufffd" + "x" * (LONGEST_TARGET - 1)


@pytest.mark.parametrize(
    "values",
    [
        {"password": "hunter2"},
        {"hashed_password": "x"},
        {"HASH": "x"},
        {"client_secret": "x"},
        {"refreshToken": "x"},
        {"password": None},
        {"user": {"password": "hunter2"}},
        {"users": [{"name": "a"}, {"token": "x"}]},
        {"user": User(name="A", username="a", email="a@example.com", hashed_password="x")},
    ],
)
@pytest.mark.parametrize("is_after", [False, True])
async def test_what_is_named_like_a_secret_is_refused(db: AsyncSession, values: dict[str, Any], is_after: bool) -> None:
    admin = await create_superuser(db)
    with capture_logs() as lines, pytest.raises(ValueError, match="name of a secret") as refused:
        await recorded(admin, {} if is_after else values, values if is_after else {})
    assert "hunter2" not in str(refused.value)
    assert lines == []
    assert not list(await db.exec(select(ConsoleAction)))


async def test_that_there_is_a_secret_can_be_said(db: AsyncSession) -> None:
    await recorded(await create_superuser(db), {"temporary_password": False}, {"temporary_password": True})
    assert (await only_row(db)).after == {"temporary_password": True}


async def test_what_is_old_is_removed(db: AsyncSession) -> None:
    admin = await create_superuser(db)
    await recorded(admin, {}, {})
    moment = (await only_row(db)).created_at
    assert await crud_console_actions.purge(db, moment) == 0
    assert await crud_console_actions.purge(db, moment + timedelta(seconds=1)) == 1
    assert not list(await db.exec(select(ConsoleAction)))
