"""Changes that come late, twice, or together: what holds when two operators, or one in two tabs, are at it at once."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.views.base import CHANGED_MEANWHILE, LONGEST_FILTER
from app.api.accounts import set_superuser
from app.core.config import Settings
from app.core.db.database import transaction
from app.crud.crud_security_event import Client
from app.models.console_action import ConsoleAction
from app.models.user import User
from tests.admin.operator import SAME_ORIGIN, console_of, post, sign_in, text_of, token_of
from tests.admin.people import act, entries
from tests.helper import create_superuser, create_tier, create_user

pytestmark = pytest.mark.anyio

FORM = {"Content-Type": "application/x-www-form-urlencoded", **SAME_ORIGIN}


@pytest.fixture
async def other(app: FastAPI, db: AsyncSession) -> AsyncIterator[tuple[httpx2.AsyncClient, User]]:
    """Another superuser, and their console."""
    user = await create_superuser(db, username="other")
    async with console_of(app) as console:
        assert (await sign_in(console, user)).status_code == 303
        yield console, user


def version_in(page: httpx2.Response) -> str:
    found = re.search(r'name="version" value="([0-9a-f]{64})"', page.text)
    assert found is not None
    return found[1]


async def is_superuser(user: User) -> bool:
    async with transaction() as db:
        return (
            await db.exec(select(User.is_superuser).where(col(User.id) == user.id, ~col(User.is_deleted)))
        ).one_or_none() is True


# ---- Who is let in ----


async def test_who_was_demoted_while_they_sent_a_form_changes_nothing(
    operator: httpx2.AsyncClient, superuser: User, db: AsyncSession, settings: Settings
) -> None:
    """Headers first, and the rest when the rank is gone: the rank is asked for when the whole request is there."""
    user, admin = await create_user(db, username="victim"), await create_superuser(db)
    token = await token_of(operator)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"csrftoken="
        async with transaction() as writing:
            await set_superuser(writing, superuser, False, settings, Client(), admin)
        yield token.encode()

    answer = await operator.post(f"_api/user/row-action?name=delete&pk={user.id}", content=slowly(), headers=FORM)
    assert answer.status_code == 403
    await db.refresh(user)
    assert not user.is_deleted
    assert await entries(db) == []


@pytest.mark.parametrize("name", ["delete", "no_superuser"])
async def test_of_two_who_remove_each_other_one_stays(
    operator: httpx2.AsyncClient, superuser: User, other: tuple[httpx2.AsyncClient, User], name: str
) -> None:
    console, user = other
    await asyncio.gather(act(operator, "user", name, user.id), act(console, "user", name, superuser.id))
    assert sorted([await is_superuser(superuser), await is_superuser(user)]) == [False, True]


async def test_whoever_signs_in_a_second_time_is_told_that_they_have(operator: httpx2.AsyncClient) -> None:
    """The form of a tab that was opened before another one signed in: its token belongs to no login."""
    answer = await operator.post("login", data={"csrftoken": "x" * 43}, headers=SAME_ORIGIN)
    assert answer.status_code == 403
    assert "You are signed in already." in text_of(answer)


async def test_a_form_of_a_login_that_has_ended_says_so(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    token = await token_of(operator)
    assert (await post(operator, "logout")).status_code == 303
    values = {"csrftoken": token, "name": "other"}
    answer = await operator.post(f"tier/edit?pk={tier.id}", data=values, headers=SAME_ORIGIN)
    assert answer.status_code == 403
    assert "You are signed out: nothing was changed." in text_of(answer)


# ---- Two at once ----


async def test_a_form_that_is_older_than_the_row_takes_nothing_back(
    operator: httpx2.AsyncClient, other: tuple[httpx2.AsyncClient, User], db: AsyncSession
) -> None:
    tier = await create_tier(db)
    address = f"tier/edit?pk={tier.id}"
    loaded = version_in(await operator.get(address))
    assert version_in(await other[0].get(address)) == loaded
    assert (await post(other[0], address, {"name": "theirs", "version": loaded})).status_code == 303

    answer = await post(operator, address, {"name": "mine", "version": loaded})
    assert answer.status_code == 422
    assert CHANGED_MEANWHILE in text_of(answer)
    assert 'value="mine"' in answer.text
    assert version_in(answer) == loaded  # Sent once more, it is still too old.
    await db.refresh(tier)
    assert tier.name == "theirs"

    again = version_in(await operator.get(address))
    assert (await post(operator, address, {"name": "mine", "version": again})).status_code == 303
    assert [entry[3:] for entry in await entries(db)] == [
        ({"name": "pro"}, {"name": "theirs"}),
        ({"name": "theirs"}, {"name": "mine"}),
    ]


async def test_a_form_with_a_fault_can_be_sent_again(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    address = f"tier/edit?pk={tier.id}"
    loaded = version_in(await operator.get(address))
    refused = await post(operator, address, {"name": "..", "version": loaded})
    assert refused.status_code == 422
    assert (await post(operator, address, {"name": "good", "version": version_in(refused)})).status_code == 303


async def test_the_trail_of_changes_that_overlap_is_a_chain(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    tier = await create_tier(db)
    names = [f"name {n}" for n in range(5)]
    answers = await asyncio.gather(*(post(operator, f"tier/edit?pk={tier.id}", {"name": name}) for name in names))
    assert {answer.status_code for answer in answers} == {303}
    rows = list(await db.exec(select(ConsoleAction).order_by(col(ConsoleAction.id))))
    after_of = {row.before["name"]: row.after["name"] for row in rows}
    assert len(after_of) == 5  # No two of them have seen the same.
    chain = ["pro"]
    while chain[-1] in after_of:
        chain.append(after_of[chain[-1]])
    assert sorted(chain) == sorted(["pro", *names])


# ---- Twice ----


def _seen_in(page: httpx2.Response) -> str:
    found = re.search(r"name=&#34;seen&#34; value=&#34;([^&]+)&#34;", page.text)
    assert found is not None
    return found[1]


async def _set_password(console: httpx2.AsyncClient, user: User, seen: str) -> httpx2.Response:
    return await act(console, "user", "temporary_password", user.id, {"seen": seen})


async def test_a_page_that_is_loaded_again_sets_no_other_password(
    operator: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    seen = _seen_in(await operator.get(f"user/detail?pk={user.id}"))
    answers: list[Any] = await asyncio.gather(*(_set_password(operator, user, seen) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    await db.refresh(user)
    hashed = user.hashed_password
    assert (await _set_password(operator, user, seen)).status_code == 409
    await db.refresh(user)
    assert user.hashed_password == hashed

    seen = _seen_in(await operator.get(f"user/detail?pk={user.id}"))
    assert (await _set_password(operator, user, seen)).status_code == 200


# ---- What costs ----


async def test_a_filter_has_a_length(operator: httpx2.AsyncClient) -> None:
    """A page repeats the whole filter for each of its conditions: thousands would be megabytes."""
    condition = "name__eq=a or "
    longest = condition * (LONGEST_FILTER // len(condition) - 1) + "name__eq=a"
    assert (await operator.get("tier/list", params={"filter": longest})).status_code == 200
    too_long = condition * (LONGEST_FILTER // len(condition) + 1) + "name__eq=a"
    for key in ("tier", "user", "job"):
        assert (await operator.get(f"{key}/list", params={"filter": too_long})).status_code == 400
    query = f"name=delete&all=1&_list_query={quote('?filter=' + quote(too_long))}"
    assert (await post(operator, f"_api/tier/action?{query}")).status_code == 400


# ---- Where it leads ----


@pytest.mark.parametrize(
    ("origin", "leads_to"),
    [
        ("http://test/admin/tier/list?q=a", "/admin/tier/list?q=a"),
        ("http://127.0.0.1:8000/admin/tier/list?q=a", "/admin/tier/list?q=a"),
        ("https://evil.example/admin/tier/list", "/admin/tier/list"),
        ("/\t/evil.example/", None),
        ("/\n/evil.example/", None),
        ("\x01//evil.example/", None),
        ("/%09/evil.example/", None),
        ("//evil.example/", None),
        ("javascript:alert(1)", None),
    ],
)
async def test_an_action_leads_back_to_the_console_only(
    operator: httpx2.AsyncClient, db: AsyncSession, origin: str, leads_to: str | None
) -> None:
    tier = await create_tier(db)
    query = f"name=delete&pk={tier.id}&_origin={quote(origin, safe='')}"
    answer = await post(operator, f"_api/tier/row-action?{query}")
    assert answer.status_code == 200
    assert answer.json()["redirect"] == (leads_to or "/admin/tier/list")


async def test_what_is_no_file_is_kept_by_nobody(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    assert (await act(operator, "user", "end_logins", user.id)).status_code == 200
    missing = await operator.get("static/nope")
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")
    assert "set-cookie" not in missing.headers
    there = await operator.get("static/console/console.js")
    assert (there.status_code, there.headers["cache-control"]) == (200, "public, max-age=3600")
    assert "Logins ended: 1." in text_of(await operator.get(f"user/detail?pk={user.id}"))  # Still to be said.
