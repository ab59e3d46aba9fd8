"""What users and operators do to accounts, by the functions that the API and the console share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import accounts
from app.api.accounts import OwnRank
from app.core.config import Settings
from app.core.db.database import transaction
from app.core.db.outbox import CacheInvalidation
from app.core.exceptions.http_exceptions import Forbidden
from app.core.settings.base import SettingsGroup
from app.crud.crud_security_event import Client
from app.crud.crud_tier import TierNotFound
from app.crud.crud_users import EmailTaken, UsernameTaken, UserNotFound, crud_users
from app.models.login_session import LoginKind, LoginSession
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User, UserUpdate
from tests.conftest import opened_session, second_session
from tests.helper import (
    PASSWORD,
    all_rows,
    create_session,
    create_superuser,
    create_tier,
    create_user,
    session_of,
    signed_in,
    until_waited_for,
)

pytestmark = pytest.mark.anyio

CLIENT = Client("192.0.2.7", "A browser", "request-1")

Deed = Callable[[AsyncSession, User, Settings, User], Awaitable[object]]


async def rename(db: AsyncSession, user: User, settings: Settings, actor: User) -> User:
    return await accounts.update_profile(db, user, UserUpdate(username="new"), settings, CLIENT, actor)


async def change_email(db: AsyncSession, user: User, settings: Settings, actor: User) -> User:
    return await accounts.update_profile(db, user, UserUpdate(email="new@example.com"), settings, CLIENT, actor)


async def delete(db: AsyncSession, user: User, settings: Settings, actor: User) -> User:
    return await accounts.delete_account(db, user, settings, CLIENT, actor)


async def restore(db: AsyncSession, user: User, settings: Settings, actor: User) -> User:
    return await accounts.restore_account(db, user, settings, CLIENT, actor)


async def leave_tier(db: AsyncSession, user: User, settings: Settings, actor: User) -> User:
    return await accounts.move_to_tier(db, user, None, settings, CLIENT, actor)


async def promote(db: AsyncSession, user: User, settings: Settings, actor: User | None) -> bool:
    return await accounts.set_superuser(db, user, True, settings, CLIENT, actor)


async def demote(db: AsyncSession, user: User, settings: Settings, actor: User | None) -> bool:
    return await accounts.set_superuser(db, user, False, settings, CLIENT, actor)


async def sign_out(db: AsyncSession, user: User, settings: Settings, actor: User) -> int:
    return await accounts.end_logins(db, user, CLIENT, actor)


async def by(deed: Callable[..., Awaitable[Any]], user: User, settings: Settings, actor: User | None) -> Any:
    """Does it in a transaction of its own, to the user as that transaction reads them."""
    async with transaction() as db:
        return await deed(db, await db.get_one(User, user.id), settings, actor)


async def events_about(db: AsyncSession, user: User) -> list[tuple[str, int | None, dict[str, Any]]]:
    """What stands in the security events about a user: kind, who did it, details."""
    events = await db.exec(
        select(SecurityEvent).where(SecurityEvent.user_id == user.id).order_by(col(SecurityEvent.id))
    )
    return [(event.kind, event.actor_id, event.details) for event in events]


async def status_of_me(client: httpx2.AsyncClient, user: User, settings: Settings) -> int:
    return (await client.get("user/me/", headers=signed_in(user, settings))).status_code


# ---- What each of them leaves behind ----


@pytest.mark.parametrize(
    ("deed", "event"),
    [
        (change_email, (EventKind.EMAIL_CHANGED, {})),
        (delete, (EventKind.USER_DELETED, {})),
        (leave_tier, (EventKind.RIGHTS_CHANGED, {"tier_id": None})),
        (promote, (EventKind.RIGHTS_CHANGED, {"is_superuser": True})),
        (sign_out, (EventKind.SESSIONS_ENDED, {"ended": 1})),
    ],
)
async def test_each_is_an_event_that_says_who_did_it_and_from_where(
    db: AsyncSession, settings: Settings, deed: Deed, event: tuple[EventKind, dict[str, Any]]
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await by(deed, user, settings, admin)
    assert await events_about(db, user) == [(event[0], admin.id, event[1])]
    (row,) = await db.exec(select(SecurityEvent))
    assert (row.address, row.user_agent, row.request_id) == ("192.0.2.7", "A browser", "request-1")


@pytest.mark.parametrize("deed", [rename, change_email, delete, leave_tier, promote])
async def test_nobody_does_anything_to_who_is_deleted(db: AsyncSession, settings: Settings, deed: Deed) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await by(delete, user, settings, admin)
    before = await all_rows(db)
    with pytest.raises(UserNotFound):
        await by(deed, user, settings, admin)
    assert await all_rows(db) == before


@pytest.mark.parametrize("deed", [rename, change_email, delete, leave_tier, promote])
async def test_what_others_are_shown_is_right_at_once(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, deed: Deed
) -> None:
    tier = await create_tier(db)
    user, admin = await create_user(db, username="ada", tier_id=tier.id), await create_superuser(db)
    assert (await client.get("user/ada")).json()["name"] == "A Person"
    await db.exec(update(User).where(col(User.id) == user.id).values(name="Changed Behind Its Back"))
    await db.commit()
    assert (await client.get("user/ada")).json()["name"] == "A Person"  # So it is cached.

    await by(deed, user, settings, admin)

    answer = await client.get("user/ada")
    assert (answer.status_code == 404) is (deed in {rename, delete})
    assert answer.status_code == 404 or answer.json()["name"] == "Changed Behind Its Back"


async def test_nothing_is_dropped_or_told_when_it_is_rolled_back(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    before = await all_rows(db)
    for deed in (rename, change_email, delete, leave_tier, promote, sign_out):
        async with transaction() as other:
            await deed(other, await other.get_one(User, user.id), settings, admin)
            await other.rollback()
    assert await all_rows(db) == before


async def test_without_a_cache_nothing_is_written_down_for_it(settings: Settings) -> None:
    async with opened_session(settings) as db:
        user, admin = await create_user(db), await create_superuser(db)
        await by(delete, user, SettingsGroup(), admin)  # type: ignore[arg-type]  # those of an app without a cache
        assert not list(await db.exec(select(CacheInvalidation)))
        await by(restore, user, settings, admin)
        targets = [row.target for row in await db.exec(select(CacheInvalidation))]
        assert targets == [f"user_profile:{user.username}"]


# ---- Profiles ----


async def test_taken_names_and_addresses_are_refused(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await create_user(db, username="new", email="New@example.com")
    for deed, problem in ((rename, UsernameTaken), (change_email, EmailTaken)):
        with pytest.raises(problem):
            await by(deed, user, settings, admin)
    assert await events_about(db, user) == []


async def test_a_change_during_a_renaming_drops_the_new_name_too(settings: Settings) -> None:
    """It was asked for under the old name, and what is cached under the new one is made wrong by it."""
    async with opened_session(settings) as db, second_session() as renaming:
        user, admin = await create_user(db, username="old"), await create_superuser(db)
        await rename(renaming, await renaming.get_one(User, user.id), settings, admin)
        async with second_session() as other:
            theirs = await other.get_one(User, user.id)
            assert theirs.username == "old"
            values = UserUpdate(name="Another Name")
            changing = asyncio.create_task(accounts.update_profile(other, theirs, values, settings, CLIENT, admin))
            await until_waited_for(renaming)
            await renaming.commit()
            changed = await changing
            assert (changed.username, changed.name) == ("new", "Another Name")
        targets = [row.target for row in await db.exec(select(CacheInvalidation).order_by(col(CacheInvalidation.id)))]
        assert targets == ["user_profile:new", "user_profile:old", "user_profile:new"]


# ---- Deleted, and back ----


async def test_who_is_restored_can_sign_in_again_and_is_signed_in_nowhere(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db, username="ada"), await create_superuser(db)
    await by(delete, user, settings, admin)
    form = {"username": "ada", "password": PASSWORD}
    assert (await client.post("login", data=form)).status_code == 401
    assert (await client.get("user/ada")).status_code == 404

    restored = await by(restore, user, settings, admin)

    assert (restored.is_deleted, restored.deleted_at) == (False, None)
    assert await status_of_me(client, user, settings) == 401
    assert (await client.get("user/ada")).json()["id"] == user.id
    assert (await client.post("login", data=form)).status_code == 200
    kinds = [(kind, actor_id) for kind, actor_id, _ in await events_about(db, user)]
    assert (EventKind.USER_RESTORED, admin.id) in kinds


async def test_nobody_is_restored_who_was_not_deleted(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    with pytest.raises(UserNotFound):
        await by(restore, user, settings, admin)
    await by(delete, user, settings, admin)
    async with transaction() as other:
        theirs = await other.get_one(User, user.id)
        await crud_users.delete(db, user)
        await db.commit()
        with pytest.raises(UserNotFound):
            await restore(other, theirs, settings, admin)


@pytest.mark.parametrize(("first", "kind"), [(delete, EventKind.USER_DELETED), (restore, EventKind.USER_RESTORED)])
async def test_of_two_who_do_it_at_once_one_does(
    db: AsyncSession, settings: Settings, first: Deed, kind: EventKind
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    if first is restore:
        await by(delete, user, settings, admin)
    done = await asyncio.gather(*(by(first, user, settings, admin) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, UserNotFound) for outcome in done) == 4
    assert [event[0] for event in await events_about(db, user)].count(kind) == 1


async def test_a_login_that_begins_during_the_deletion_is_ended(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """Otherwise it would be good again with the user."""
    user, admin = await create_user(db), await create_superuser(db)
    async with second_session() as signing_in:
        assert await crud_users.lock_unchanged(signing_in, user) is not None
        deleting = asyncio.create_task(by(delete, user, settings, admin))
        await until_waited_for(signing_in)
        late = await create_session(signing_in, user)
    await deleting
    await by(restore, user, settings, admin)
    assert (await db.get_one(LoginSession, late.id)).revoked_at is not None
    headers = signed_in(user, settings, late.id)
    assert (await client.get("user/me/", headers=headers)).status_code == 401


# ---- Tiers ----


@pytest.mark.parametrize("tier_id", [99, 0, -1, 2**31, 2**70])
async def test_nobody_is_moved_to_a_tier_that_is_not_there(db: AsyncSession, settings: Settings, tier_id: int) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    before = await all_rows(db)
    with pytest.raises(TierNotFound):
        async with transaction() as other:
            await accounts.move_to_tier(other, user, tier_id, settings, CLIENT, admin)
    assert await all_rows(db) == before


# ---- Logins ----


async def test_logins_of_all_kinds_end(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings) -> None:
    user, other, admin = await create_user(db), await create_user(db), await create_superuser(db)
    await create_session(db, user, kind=LoginKind.CONSOLE)
    assert await by(sign_out, user, settings, admin) == 2
    assert await status_of_me(client, user, settings) == 401
    assert await status_of_me(client, other, settings) == 200


# ---- Rank ----


async def test_a_demoted_superuser_is_signed_in_nowhere_and_a_new_one_stays(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    console = await create_session(db, user, kind=LoginKind.CONSOLE)

    assert await by(promote, user, settings, admin) is True
    assert await status_of_me(client, user, settings) == 200
    assert (await client.get("security_events", headers=signed_in(user, settings))).status_code == 200
    assert await by(demote, user, settings, admin) is True

    assert await status_of_me(client, user, settings) == 401
    for session_id in (console.id, session_of(user)):
        session = await db.get_one(LoginSession, session_id, populate_existing=True)
        assert session.revoked_at is not None
    rights = [(actor_id, details) for _, actor_id, details in await events_about(db, user)]
    assert rights == [(admin.id, {"is_superuser": True}), (admin.id, {"is_superuser": False})]


async def test_what_is_so_already_changes_nothing(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    before = await all_rows(db)
    assert await by(demote, user, settings, admin) is False
    assert await by(promote, admin, settings, admin) is False
    assert await all_rows(db) == before


async def test_nobody_takes_their_own_rank(db: AsyncSession, settings: Settings) -> None:
    admin, _ = await create_superuser(db), await create_superuser(db)
    before = await all_rows(db)
    with pytest.raises(OwnRank) as refused:
        await by(demote, admin, settings, admin)
    assert refused.value.status_code == 409
    assert await all_rows(db) == before
    assert await by(demote, admin, settings, None) is True  # A script may.


async def test_of_two_superusers_who_demote_each_other_one_stays(db: AsyncSession, settings: Settings) -> None:
    ada, grace = await create_superuser(db), await create_superuser(db)
    done = await asyncio.gather(
        by(demote, ada, settings, grace), by(demote, grace, settings, ada), return_exceptions=True
    )
    assert [type(outcome) for outcome in done if outcome is not True] == [Forbidden]
    assert len(list(await db.exec(select(User.id).where(col(User.is_superuser).is_(True))))) == 1


async def test_who_is_no_superuser_any_more_makes_nobody_one(db: AsyncSession, settings: Settings) -> None:
    user, admin = await create_user(db), await create_superuser(db)
    await by(demote, admin, settings, None)
    with pytest.raises(Forbidden):
        await by(promote, user, settings, admin)
