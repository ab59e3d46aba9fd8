"""The console's pages of users, over HTTP."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import Settings
from app.core.db.models import utc_now
from app.models.login_session import LoginSession
from app.models.user import User
from tests.admin.operator import console_of, post, sign_in, text_of
from tests.admin.people import act, act_on, cache, entries, events, is_cached, shows_as_text
from tests.admin.world import HOSTILE, create_world
from tests.helper import (
    PASSWORD,
    counted_statements,
    create_session,
    create_superuser,
    create_tier,
    create_user,
    session_of,
    signed_in,
)
from tests.mail_jobs import do_mail_jobs, settings_for
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mail_server() -> AsyncIterator[SMTPServer]:
    async with SMTPServer() as server:
        yield server


async def names_in_order(console: httpx2.AsyncClient, **params: str) -> list[str]:
    """The user names that a list shows."""
    page = await console.get("user/list", params=params)
    assert page.status_code == 200, page.text
    cells = re.findall(r'<td data-column="username"[^>]*>(.*?)</td>', page.text, re.DOTALL)
    return [re.sub(r"<[^>]*>", "", cell).strip() for cell in cells]


async def listed(console: httpx2.AsyncClient, **params: str) -> set[str]:
    """The same, whatever their order."""
    return set(await names_in_order(console, **params))


async def tier_of(db: AsyncSession, user: User) -> int | None:
    await db.refresh(user)
    return user.tier_id


async def is_deleted(db: AsyncSession, user: User) -> bool:
    await db.refresh(user)
    return user.is_deleted


def form_of(user: User, **values: Any) -> dict[str, Any]:
    """What the form for editing this user sends, but for some fields."""
    form = {"username": user.username, "name": user.name, "email": user.email, "profile_image_url": "", "tier_id": ""}
    return form | values


# ---- The list ----


async def test_users_are_searched_by_every_character_as_it_is(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    percent = await create_user(db, username="percent", name="100% sure_")
    await create_user(db, username="other", name="100 sure", email="BACK\\slash@example.com")

    assert await listed(operator, q="PERC") == {"percent"}
    assert await listed(operator, q="%") == {"percent"}
    assert await listed(operator, q="_") == {"percent"}
    assert await listed(operator, q="\\") == {"other"}
    assert await listed(operator, q="back\\SLASH@example.com") == {"other"}
    assert await listed(operator, q=str(percent.id)) >= {"percent"}
    assert await listed(operator, q="9" * 5000) == set()
    assert await listed(operator, q="\x00") == set()


async def test_users_are_filtered(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    await create_user(db, username="paying", tier_id=tier.id)
    await create_user(db, username="gone", is_deleted=True)
    await create_user(db, username="old", created_at=utc_now() - timedelta(days=400))
    await db.commit()

    assert await listed(operator) == {"operator", "paying", "gone", "old"}
    assert await listed(operator, filter=f"tier_id__eq={tier.id}") == {"paying"}
    assert await listed(operator, filter="is_superuser__is_true") == {"operator"}
    assert await listed(operator, filter="is_deleted__is_false") == {"operator", "paying", "old"}
    assert await listed(operator, filter="created_at__until=2026-01-01T00:00") == {"old"}
    assert await listed(operator, filter="created_at__between=2020-01-01T00:00..2026-01-01T00:00+02:00") == {"old"}
    assert await listed(operator, filter="username__contains=% OR name__eq=%") == set()


@pytest.mark.parametrize(
    "condition",
    [
        "hashed_password__contains=argon2",
        "uuid__contains=a",
        "password_changed_at__from=2020-01-01",
        "is_superuser__contains=t",
        "__class____eq=1",
        "created_at__from=yesterday",
        "created_at__from=0001-01-01T00:00+14:00",
        f"tier_id__eq={2**31}",
        "tier_id__eq=1.5",
        "tier_id__eq=1,2",
        "username__eq=\x00",
    ],
)
async def test_only_declared_fields_and_good_values_filter(operator: httpx2.AsyncClient, condition: str) -> None:
    assert (await operator.get("user/list", params={"filter": condition})).status_code == 400


async def test_nobody_sorts_or_searches_by_the_hash(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    for number, hashed in enumerate("bca"):
        await create_user(db, username=f"u{number}", hashed_password=hashed)

    assert await names_in_order(operator, sort="username__asc") == ["operator", "u0", "u1", "u2"]
    for name in ("hashed_password", "password_changed_at", "metadata", "tier_id"):
        assert await names_in_order(operator, sort=f"{name}__asc") == ["u2", "u1", "u0", "operator"]
    assert await listed(operator, q="argon2") == set()


async def test_no_page_shows_a_hash(operator: httpx2.AsyncClient, db: AsyncSession, superuser: User) -> None:
    for path in ("user/list", f"user/detail?pk={superuser.id}", f"user/edit?pk={superuser.id}"):
        page = await operator.get(path)
        assert page.status_code == 200
        assert "argon2" not in page.text
        assert "hashed_password" not in page.text


async def test_a_list_costs_few_statements(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_world(db)

    with counted_statements() as statements:
        assert (await operator.get("user/list", params={"page_size": "100"})).status_code == 200

    assert len(statements) <= 5  # the login, tiers, rows, count


@pytest.mark.parametrize("pk", ["0", "x", "99999999999999999999", "1.5", "\x00", ""])
async def test_a_user_who_is_not_there_is_404(operator: httpx2.AsyncClient, pk: str) -> None:
    assert (await operator.get("user/detail", params={"pk": pk})).status_code == 404
    assert (await operator.get("user/edit", params={"pk": pk})).status_code == 404


async def test_script_in_users_is_text(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await create_world(db)
    user = await create_user(db, username="hostile", name="<img src=x>'\"", email="<i>@example.com")
    await create_session(db, user, user_agent=HOSTILE, address="<script>1")
    pages = [
        await operator.get("user/list"),
        await operator.get("user/list", params={"q": HOSTILE}),
        await operator.get("user/list", params={"filter": f"name__contains={'<script>x</script>'}"}),
        await operator.get("user/list", params={"filter": f"{HOSTILE}__eq=1"}),
        await operator.get("user/detail", params={"pk": user.id}),
        await operator.get("user/edit", params={"pk": user.id}),
        await post(operator, f"user/edit?pk={user.id}", form_of(user, username=HOSTILE, name=HOSTILE)),
        await act(operator, "user", "temporary_password", user.id),
    ]
    for page in pages:
        shows_as_text(page, "<script>fail", "<script>x", "<script>1", "<img src=x", "<i>@")
    assert "&lt;script&gt;" in pages[4].text


# ---- One user ----


async def test_a_users_page_has_logins_and_links(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db, username="ada")
    await create_session(db, user, user_agent="Ada's phone", address="192.0.2.7")
    await create_session(db, user, user_agent="ended", revoked_at=utc_now())

    page = await operator.get("user/detail", params={"pk": user.id})

    text = text_of(page)
    assert str(user.uuid) in text
    assert "Live logins (2)" in text
    assert "Ada's phone" in text
    assert "192.0.2.7" in text
    assert "ended" not in text
    links = re.findall(r'list-group-item-action" href="([^"]*)"', page.text)
    assert len(links) == 4
    for link in links:
        assert (await operator.get(link.removeprefix("/admin/"))).status_code == 200, link


async def test_an_edit_goes_the_way_of_the_api(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    tier = await create_tier(db)
    user = await create_user(db, username="ada", email_verified_at=utc_now())
    await db.commit()
    await cache(client, "user/ada")

    answer = await post(
        operator, f"user/edit?pk={user.id}", form_of(user, name="Ada L.", email="new@example.com", tier_id=tier.id)
    )

    assert answer.status_code == 303, text_of(answer)
    await db.refresh(user)
    assert (user.name, user.email, user.tier_id, user.email_verified_at) == ("Ada L.", "new@example.com", tier.id, None)
    assert not await is_cached(client, "user/ada")
    assert await entries(db) == [
        (
            "operator",
            "user.edit",
            f"user {user.id}",
            {"name": "A Person", "email": "ada@example.com", "tier_id": None},
            {"name": "Ada L.", "email": "new@example.com", "tier_id": tier.id},
        )
    ]
    assert await events(db) == [
        ("email_changed", user.id, superuser.id),
        ("rights_changed", user.id, superuser.id),
    ]


async def test_a_changed_address_is_asked_to_be_verified(
    app: FastAPI,
    operator: httpx2.AsyncClient,
    db: AsyncSession,
    mail_server: SMTPServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app.state.settings = settings_for(mail_server, monkeypatch)
    user = await create_user(db, username="ada")

    for values in ({"name": "Ada"}, {"name": "Ada", "email": "new@example.com"}):
        assert (await post(operator, f"user/edit?pk={user.id}", form_of(user, **values))).status_code == 303

    await do_mail_jobs()
    assert [mail.recipients for mail in mail_server.mails] == [["new@example.com"]]


async def test_what_did_not_change_is_not_written_down(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await db.commit()

    assert (await post(operator, f"user/edit?pk={user.id}", form_of(user))).status_code == 303
    assert await entries(db) == []


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"username": "Not Good"}, "username"),
        ({"username": "operator"}, "username"),
        ({"name": ""}, "name"),
        ({"email": "nobody"}, "email"),
        ({"email": "OPERATOR@example.com"}, "email"),
        ({"profile_image_url": "javascript:alert(1)"}, "profile_image_url"),
        ({"tier_id": "999"}, "tier_id"),
        ({"tier_id": "x"}, "tier_id"),
    ],
)
async def test_a_wrong_value_is_said_at_its_field(
    operator: httpx2.AsyncClient, db: AsyncSession, values: dict[str, str], field: str
) -> None:
    user = await create_user(db, username="ada")
    await db.commit()

    answer = await post(operator, f"user/edit?pk={user.id}", form_of(user, **values))

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text
    await db.refresh(user)
    assert (user.username, user.name, user.email, user.tier_id) == ("ada", "A Person", "ada@example.com", None)
    assert await entries(db) == []


async def test_fields_that_are_not_in_the_form_are_not_taken(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await db.commit()
    more = {"hashed_password": "x", "is_superuser": "on", "id": "77", "is_deleted": "on", "uuid": str(uuid4())}
    before = user.model_dump()

    assert (await post(operator, f"user/edit?pk={user.id}", form_of(user, **more))).status_code == 303

    await db.refresh(user)
    assert user.model_dump() == before


async def test_a_user_moves_to_a_tier_and_out_of_it(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    tier = await create_tier(db, "<b>pro</b>")
    user = await create_user(db)
    await db.commit()
    form = await operator.get("user/detail", params={"pk": user.id})
    shows_as_text(form, "<b>pro", "&lt;b&gt;pro&lt;/b&gt;</option>")  # Twice: it becomes markup in the browser.
    assert "&amp;lt;b&amp;gt;pro" in form.text

    assert (await act(operator, "user", "move_to_tier", user.id, {"tier": tier.id})).status_code == 200
    assert await tier_of(db, user) == tier.id
    assert (await act(operator, "user", "move_to_tier", user.id, {"tier": "none"})).status_code == 200
    assert await tier_of(db, user) is None
    for wrong in ({"tier": "999"}, {"tier": ""}, {"tier": "-1"}, {}):
        answer = await act(operator, "user", "move_to_tier", user.id, wrong)
        assert (answer.status_code, answer.json()) == (400, {"msg": "There is no such tier."})
    assert [entry[1:] for entry in await entries(db)] == [
        ("user.move_to_tier", f"user {user.id}", {"tier_id": None}, {"tier_id": tier.id}),
        ("user.move_to_tier", f"user {user.id}", {"tier_id": tier.id}, {"tier_id": None}),
    ]
    assert await events(db) == [("rights_changed", user.id, superuser.id)] * 2


async def test_a_user_is_deleted_and_restored(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, superuser: User
) -> None:
    user = await create_user(db, username="ada")
    await db.commit()
    await cache(client, "user/ada")

    assert (await act(operator, "user", "delete", user.id)).status_code == 200
    assert await is_deleted(db, user)
    assert (await client.get("user/ada")).status_code == 404
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 401
    page = await operator.get("user/detail", params={"pk": user.id})
    assert "This user is deleted." in text_of(page)
    assert set(re.findall(r'data-sa-name="(\w+)"', page.text)) == {"restore"}
    assert (await act(operator, "user", "delete", user.id)).status_code == 400

    assert (await act(operator, "user", "restore", user.id)).status_code == 200
    assert not await is_deleted(db, user)
    assert (await act(operator, "user", "restore", user.id)).status_code == 400
    assert [entry[1:] for entry in await entries(db)] == [
        (
            "user.delete",
            f"user {user.id}",
            {"is_deleted": False, "tier_id": None},
            {"is_deleted": True, "tier_id": None},
        ),
        ("user.restore", f"user {user.id}", {"is_deleted": True}, {"is_deleted": False}),
    ]
    assert await events(db) == [("user_deleted", user.id, superuser.id), ("user_restored", user.id, superuser.id)]


async def test_logins_are_ended_one_by_one_and_all(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, superuser: User
) -> None:
    user, other = await create_user(db), await create_user(db)
    await create_session(db, user)
    mine, theirs = session_of(user), session_of(other)

    for named in (str(theirs), "x", ""):  # Of somebody else, and none.
        assert (await act(operator, "user", "end_login", user.id, {"session": named})).status_code == 303
    assert await entries(db) == []
    ended = await act(operator, "user", "end_login", user.id, {"session": str(mine)})
    assert ended.headers["Location"] == f"/admin/user/detail?pk={user.id}"
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 401
    assert (await client.get("user/me/", headers=signed_in(other, settings))).status_code == 200
    assert (await act(operator, "user", "end_logins", user.id)).status_code == 200
    assert "Signed in nowhere." in text_of(await operator.get("user/detail", params={"pk": user.id}))
    assert [entry[1:] for entry in await entries(db)] == [
        ("user.end_login", f"user {user.id}", {}, {"login": str(mine)}),
        ("user.end_logins", f"user {user.id}", {}, {"ended": 1}),
    ]
    assert await events(db) == [("sessions_ended", user.id, superuser.id)] * 2


async def test_a_temporary_password_is_shown_once_and_stands_nowhere(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    user = await create_user(db, username="ada")
    await db.commit()

    with capture_logs() as lines:
        answer = await act(operator, "user", "temporary_password", user.id)

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    found = re.search(r'<code id="temporary-password">([^<]+)</code>', answer.text)
    assert found is not None
    password = found[1]
    assert password not in str(answer.headers)
    assert password not in str(lines)
    assert password not in str(dict(operator.cookies))
    await db.refresh(user)
    assert user.password_expires_at is not None
    written = await entries(db)
    assert written[0][1:3] == ("user.temporary_password", f"user {user.id}")
    assert written[0][4] == {"until": user.password_expires_at.isoformat()}
    assert password not in str(written)
    assert await events(db) == [("password_changed", user.id, superuser.id)]
    for path in ("user/list", f"user/detail?pk={user.id}", "console-action/list", "security-event/list"):
        assert password not in (await operator.get(path)).text
    assert (await client.post("login", data={"username": "ada", "password": password})).status_code == 200
    assert (await client.post("login", data={"username": "ada", "password": PASSWORD})).status_code == 401


async def test_a_temporary_password_for_nobody_is_a_page_that_says_so(operator: httpx2.AsyncClient) -> None:
    answer = await act(operator, "user", "temporary_password", 999)

    assert answer.status_code == 404
    assert "There is no such user." in text_of(answer)


async def test_ranks_are_given_and_taken_but_never_ones_own(
    operator: httpx2.AsyncClient, app: FastAPI, db: AsyncSession, superuser: User
) -> None:
    user = await create_user(db, username="ada")
    await db.commit()

    assert (await act(operator, "user", "make_superuser", user.id)).status_code == 200
    async with console_of(app) as theirs:
        assert (await sign_in(theirs, user)).status_code == 303
        assert (await theirs.get("user/list")).status_code == 200
        assert (await act(operator, "user", "no_superuser", user.id)).status_code == 200
        assert (await theirs.get("user/list")).status_code == 303
    for name in ("no_superuser", "make_superuser", "delete", "temporary_password"):
        assert (await act(operator, "user", name, superuser.id)).status_code == 400
    await db.refresh(superuser)
    assert superuser.is_superuser
    assert not superuser.is_deleted
    assert [entry[1:] for entry in await entries(db)] == [
        ("user.set_superuser", f"user {user.id}", {"is_superuser": False}, {"is_superuser": True}),
        ("user.set_superuser", f"user {user.id}", {"is_superuser": True}, {"is_superuser": False}),
    ]
    assert await events(db) == [("rights_changed", user.id, superuser.id)] * 2


async def test_only_actions_that_apply_are_offered(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    user, other = await create_user(db), await create_superuser(db)
    await db.commit()

    async def offered(pk: int) -> set[str]:
        page = await operator.get("user/detail", params={"pk": pk})
        return set(re.findall(r'data-sa-name="(\w+)"', page.text))

    common = {"edit", "move_to_tier", "end_logins"}
    assert await offered(superuser.id) == common
    assert await offered(user.id) == common | {"temporary_password", "make_superuser", "delete"}
    assert await offered(other.id) == common | {"temporary_password", "no_superuser", "delete"}


# ---- Several users ----


async def test_several_are_moved_signed_out_and_deleted(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    users = [await create_user(db) for _ in range(3)]
    gone = await create_user(db, is_deleted=True)
    await db.commit()
    pks = [user.id for user in (*users, gone)]

    assert (await act_on(operator, "user", "move_to_tier", pks, {"tier": tier.id})).status_code == 200
    assert (await act_on(operator, "user", "end_logins", pks)).status_code == 200
    for user in users:
        await db.refresh(user)
        assert user.tier_id == tier.id
        session = await db.get(LoginSession, session_of(user), populate_existing=True)
        assert session is not None
        assert session.revoked_at is not None
    assert (await act_on(operator, "user", "delete", pks)).status_code == 200
    for user in users:
        await db.refresh(user)
        assert user.is_deleted
    actions = [entry[1] for entry in await entries(db)]
    assert actions == ["user.move_to_tier"] * 3 + ["user.end_logins"] * 3 + ["user.delete"] * 3


async def test_several_with_oneself_are_not_deleted(
    operator: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    user = await create_user(db)
    await db.commit()

    answer = await act_on(operator, "user", "delete", [user.id, superuser.id])

    assert (answer.status_code, answer.json()) == (400, {"msg": "Nobody deletes their own account here."})
    await db.refresh(user)
    assert not user.is_deleted
    assert await entries(db) == []


async def test_an_action_on_all_that_a_filter_finds(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    inside, outside = await create_user(db, name="In"), await create_user(db, name="Out")
    await db.commit()

    path = "_api/user/action?name=move_to_tier&all=1&_list_query=%3Ffilter%3Dname__eq%3DIn"
    assert (await post(operator, path, {"tier": tier.id})).status_code == 200

    await db.refresh(inside)
    await db.refresh(outside)
    assert (inside.tier_id, outside.tier_id) == (tier.id, None)
