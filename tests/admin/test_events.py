"""The console's pages of security events and of the audit trail, over HTTP: to read, and for nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.models.console_action import ConsoleAction
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.admin.operator import post, text_of
from tests.admin.people import act, act_on, shows_as_text
from tests.admin.world import HOSTILE, LONG
from tests.helper import all_rows, counted_statements, create_user

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def record_event(db: AsyncSession, **values: Any) -> SecurityEvent:
    defaults: dict[str, Any] = {"kind": EventKind.LOGIN_FAILED, "created_at": NOON}
    event = SecurityEvent(**defaults | values)
    db.add(event)
    await db.commit()
    return event


async def record_action(db: AsyncSession, **values: Any) -> ConsoleAction:
    defaults: dict[str, Any] = {"actor_id": 1, "actor": "operator", "action": "tier.edit", "target": "tier 5"}
    entry = ConsoleAction(**defaults | {"created_at": NOON} | values)
    db.add(entry)
    await db.commit()
    return entry


async def shown(console: httpx2.AsyncClient, key: str, **params: str) -> str:
    page = await console.get(f"{key}/list", params=params)
    assert page.status_code == 200, page.text
    return text_of(page)


# ---- Security events ----


async def test_events_are_listed_filtered_and_searched(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    ada, bob = await create_user(db, username="ada"), await create_user(db, username="bob")
    await record_event(db, user_id=ada.id, address="192.0.2.1", user_agent="curl")
    await record_event(db, user_id=bob.id, actor_id=ada.id, address="192.0.2.2", created_at=NOON + timedelta(hours=1))
    await record_event(db, kind=EventKind.LOGOUT, user_id=bob.id, address="192.0.2.3")
    await record_event(db, kind="of_the_future", address="192.0.2.4")

    async def addresses(**params: str) -> list[str]:
        text = await shown(operator, "security-event", **params)
        return sorted({word for word in text.split() if word.startswith("192.0.2.")})

    every = await shown(operator, "security-event")
    assert every.index("192.0.2.4") < every.index("192.0.2.3") < every.index("192.0.2.1")
    assert await addresses(filter="kind__eq=logout") == ["192.0.2.3"]
    assert await addresses(filter="kind__in=logout,of_the_future") == ["192.0.2.3", "192.0.2.4"]
    assert await addresses(filter=f"user_id__eq={ada.id}") == ["192.0.2.1"]
    assert await addresses(filter="user_id__named=bob") == ["192.0.2.2", "192.0.2.3"]
    assert await addresses(filter="actor_id__named=ada") == ["192.0.2.2"]
    assert await addresses(filter="address__eq=192.0.2.4") == ["192.0.2.4"]
    assert await addresses(filter="created_at__between=2026-01-01T12:30..2026-01-01T13:30") == ["192.0.2.2"]
    assert await addresses(q="CURL") == ["192.0.2.1"]
    assert await addresses(q="bob") == ["192.0.2.2", "192.0.2.3"]
    assert await addresses(q="%") == []


async def test_an_event_is_readable(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    ada = await create_user(db, username="ada")
    details = {"console": True, "none": None, "number": 3, "list": ["<i>", 1], "long": "word " * 60}
    event = await record_event(db, user_id=ada.id, actor_id=987, session_id=uuid4(), details=details)

    page = await operator.get("security-event/detail", params={"pk": event.id})

    text = text_of(page)
    assert f'<a href="/admin/user/detail?pk={ada.id}">ada</a>' in page.text
    assert "987 (erased)" in text
    assert "2026-01-01 12:00:00 UTC" in text
    assert "console yes" in text
    assert "none none" in text
    assert "list <i> 1" in text
    assert "<summary>" in page.text
    assert ("word " * 60).strip() in text


# ---- The audit trail ----


async def test_the_trail_is_listed_filtered_and_searched(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    await record_action(db, actor_id=superuser.id, target="tier 5", address="192.0.2.1")
    await record_action(db, actor_id=superuser.id, action="user.edit", target="user 5", address="192.0.2.2")
    await record_action(db, actor_id=999, actor="erased", target="user 55", address="192.0.2.3")
    await record_action(db, actor_id=999, actor="erased", created_at=NOON - timedelta(days=9), address="192.0.2.4")

    async def addresses(**params: str) -> list[str]:
        text = await shown(operator, "console-action", **params)
        return sorted({word for word in text.split() if word.startswith("192.0.2.")})

    every = await shown(operator, "console-action")
    assert every.index("192.0.2.4") < every.index("192.0.2.3") < every.index("192.0.2.1")
    assert await addresses(filter='target__eq="user 5"') == ["192.0.2.2"]
    assert await addresses(filter="action__startswith=user.") == ["192.0.2.2"]
    assert await addresses(filter=f"actor_id__eq={superuser.id}") == ["192.0.2.1", "192.0.2.2"]
    assert await addresses(filter="actor_id__named=operator") == ["192.0.2.1", "192.0.2.2"]
    assert await addresses(filter="created_at__until=2026-01-01") == ["192.0.2.4"]
    assert await addresses(q="erased") == ["192.0.2.3", "192.0.2.4"]
    assert await addresses(q="192.0.2.1") == ["192.0.2.1"]


async def test_an_entry_shows_what_was_before_and_is_after(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    entry = await record_action(
        db,
        actor_id=superuser.id,
        target=f"user {superuser.id}",
        before={"name": "Old", "tier_id": None},
        after={"name": "New", "is_superuser": False},
    )

    page = await operator.get("console-action/detail", params={"pk": entry.id})

    text = text_of(page)
    assert "Name Before After name Old New tier_id none none is_superuser none no" in text
    assert f'<a href="/admin/user/detail?pk={superuser.id}">user {superuser.id}</a>' in page.text
    assert f'<a href="/admin/user/detail?pk={superuser.id}">operator</a>' in page.text


@pytest.mark.parametrize(
    ("target", "path"), [("tier 5", "tier"), ("rate_limit 5", "rate-limit"), ("job a user 5", None)]
)
async def test_a_target_that_has_a_page_is_a_link(
    operator: httpx2.AsyncClient, db: AsyncSession, target: str, path: str | None
) -> None:
    entry = await record_action(db, target=target)

    page = await operator.get("console-action/detail", params={"pk": entry.id})

    link = f'<a href="/admin/{path}/detail?pk=5">{target}</a>'
    assert (link in page.text) == (path is not None)
    assert target in text_of(page)


# ---- Both ----


@pytest.mark.parametrize("key", ["security-event", "console-action"])
async def test_nothing_changes_them(operator: httpx2.AsyncClient, db: AsyncSession, superuser: User, key: str) -> None:
    await record_event(db)
    await record_action(db)
    before = await all_rows(db)
    forms = {"kind": "x", "action": "x", "actor": "x", "target": "x", "id": "7"}

    answers = [
        await post(operator, f"{key}/create", forms),
        await post(operator, f"{key}/edit?pk=1", forms),
        await act_on(operator, key, "delete", [1, 2]),
        await act_on(operator, key, "export", [1, 2]),
        await post(operator, f"_api/{key}/action?name=delete&all=1"),
        *[await act(operator, key, name, 1) for name in ("delete", "edit", "view", "x")],
    ]

    assert all(400 <= answer.status_code < 500 for answer in answers), answers
    await db.rollback()
    after = await all_rows(db)
    assert {table: rows for table, rows in after.items() if rows != before[table]} == {}


@pytest.mark.parametrize("key", ["security-event", "console-action"])
async def test_a_page_of_many_costs_few_statements(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User, key: str
) -> None:
    for _ in range(30):
        user = await create_user(db)
        await record_event(db, user_id=user.id)
        await record_action(db, actor_id=user.id)

    with counted_statements() as statements:
        assert (await operator.get(f"{key}/list")).status_code == 200

    assert len(statements) <= 4  # the login, rows, user names, count


async def test_script_in_them_is_text(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    markup = "<script>fail()"
    event = await record_event(
        db, kind=markup, address=markup, user_agent=HOSTILE, request_id=markup, details={markup: LONG, "x": [HOSTILE]}
    )
    entry = await record_action(
        db, actor=markup, action=markup, target=HOSTILE, address=markup, before={markup: LONG}, after={"x": {markup: 1}}
    )
    for key, row in (("security-event", event), ("console-action", entry)):
        pages = [
            await operator.get(f"{key}/list"),
            await operator.get(f"{key}/list", params={"q": markup}),
            await operator.get(f"{key}/list", params={"filter": f'address__contains="{markup}"'}),
            await operator.get(f"{key}/detail", params={"pk": row.id}),
        ]
        for page in pages:
            shows_as_text(page, "<script>fail", "<img src=x")
            assert "&lt;script&gt;" in page.text
