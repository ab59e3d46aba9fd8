"""Failed logins: counted by account and by address, locked for a while, and never for ever."""

import asyncio
from datetime import timedelta

import httpx2
import pytest
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.sign_in import FREE_FAILURES_OF_ACCOUNT, FREE_FAILURES_OF_ADDRESS
from app.core.client_address import network_of
from app.core.config import Settings
from app.core.db.models import utc_now
from app.crud import crud_login_throttle as throttle
from app.models.login_throttle import LoginThrottle
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from tests.conftest import second_session
from tests.helper import PASSWORD, create_session, create_user, signed_in

pytestmark = pytest.mark.anyio


async def log_in(client: httpx2.AsyncClient, name: str, password: str = PASSWORD) -> int:
    return (await client.post("login", data={"username": name, "password": password})).status_code


async def fail(client: httpx2.AsyncClient, name: str, times: int) -> None:
    for _ in range(times):
        assert await log_in(client, name, "a wrong password") == 401


async def count_of(db: AsyncSession, key: str) -> LoginThrottle:
    row = await db.get(LoginThrottle, key, populate_existing=True)
    assert row is not None
    return row


async def pass_time(db: AsyncSession, passed: timedelta) -> None:
    """Makes it look as if that long had passed since the last failures."""
    for row in await db.exec(select(LoginThrottle).execution_options(populate_existing=True)):
        row.last_failure_at -= passed
        if row.locked_until is not None:
            row.locked_until -= passed
    await db.commit()


async def test_too_many_failures_lock_an_account_for_a_while(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)

    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT)
    assert await log_in(client, user.username) == 200
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT + 1)
    assert await log_in(client, user.username) == 401, "the success has reset the count, and this is the lock"
    await pass_time(db, timedelta(seconds=1))
    assert await log_in(client, user.username) == 200


async def test_name_and_address_are_one_account(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    for name in (user.username, user.email, user.email.upper()) * 2:
        await fail(client, name, 1)
    assert await log_in(client, user.username) == 401


async def test_the_lock_doubles_and_has_a_longest(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT)
    for expected in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900):
        await fail(client, user.username, 1)
        row = await count_of(db, f"account:{user.uuid}")
        assert row.locked_until is not None
        assert (row.locked_until - row.last_failure_at).total_seconds() == expected
        await pass_time(db, timedelta(seconds=expected))


async def test_asking_on_while_locked_does_not_prolong_the_lock(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT + 1)
    before = (await count_of(db, f"account:{user.uuid}")).model_dump()
    await fail(client, user.username, 5)
    assert (await count_of(db, f"account:{user.uuid}")).model_dump() == before


async def test_failures_are_forgotten_after_a_while(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT)
    await pass_time(db, throttle.FORGOTTEN_AFTER + timedelta(seconds=1))
    await fail(client, user.username, 1)
    assert (await count_of(db, f"account:{user.uuid}")).failures == 1


async def test_strangers_cannot_keep_a_user_out_of_where_they_signed_in_before(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    locked = LoginThrottle(
        key=f"account:{user.uuid}",
        failures=1_000,
        last_failure_at=utc_now(),
        locked_until=utc_now() + throttle.LONGEST_LOCK,
    )
    db.add(locked)
    await db.commit()
    assert await log_in(client, user.username) == 401

    await create_session(db, user, address="127.0.0.1")  # From where the test asks.
    assert await log_in(client, user.username) == 200
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT + 1)
    assert await log_in(client, user.username) == 401, "guesses from there are counted too"


async def test_an_address_that_tries_many_accounts_is_locked(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    row = LoginThrottle(key="address:127.0.0.1", failures=FREE_FAILURES_OF_ADDRESS, last_failure_at=utc_now())
    db.add(row)
    await db.commit()
    assert await log_in(client, user.username) == 200, "the free ones are used up, and no more"

    await fail(client, "nobody", 1)
    assert await log_in(client, user.username) == 401
    assert (await client.get("user/me/", headers=signed_in(user, settings))).status_code == 200, "who is in stays in"
    await pass_time(db, timedelta(seconds=1))
    assert await log_in(client, user.username) == 200
    await db.refresh(row)
    assert row.failures == FREE_FAILURES_OF_ADDRESS + 1, "one's own account does not wash an address clean"


async def test_an_address_of_many_people_recovers_though_somebody_always_mistypes(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    row = LoginThrottle(key="address:127.0.0.1", failures=FREE_FAILURES_OF_ADDRESS, last_failure_at=utc_now())
    db.add(row)
    await db.commit()
    for left in (51, 2, 1):
        await pass_time(db, timedelta(minutes=30))
        await fail(client, "nobody", 1)
        assert (await count_of(db, "address:127.0.0.1")).failures == left


async def test_of_many_guesses_at_once_no_more_are_answered_than_of_as_many_in_turn(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    """Every failure that is counted was one answered guess; the lock holds for those that were under way."""
    user = await create_user(db)
    statuses = await asyncio.gather(*(log_in(client, user.username, "a wrong password") for _ in range(40)))
    assert set(statuses) == {401}
    assert (await count_of(db, f"account:{user.uuid}")).failures == FREE_FAILURES_OF_ACCOUNT + 1


async def test_a_right_guess_that_comes_in_after_the_lock_is_refused(
    client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    user = await create_user(db)
    keys = {f"account:{user.uuid}": FREE_FAILURES_OF_ACCOUNT}
    async with second_session() as other:
        assert not await throttle.crud_login_throttle.is_locked(other, keys)
        for _ in range(FREE_FAILURES_OF_ACCOUNT + 1):
            await throttle.crud_login_throttle.fail(other, keys)
        guess = asyncio.create_task(log_in(client, user.username))
        await asyncio.sleep(0.3)
        assert not guess.done(), "it waits for the failures that are being counted"
    assert await guess == 401


async def test_many_right_logins_at_once_lock_nobody(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    assert set(await asyncio.gather(*(log_in(client, user.username) for _ in range(20)))) == {200}


async def test_a_failure_and_a_lock_are_events(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    user = await create_user(db)
    await fail(client, user.username, FREE_FAILURES_OF_ACCOUNT + 2)
    await fail(client, "nobody", 1)

    events = (await db.exec(select(SecurityEvent).order_by(col(SecurityEvent.id)))).all()
    failed, locked = EventKind.LOGIN_FAILED, EventKind.LOGIN_LOCKED
    assert [event.kind for event in events] == [failed] * (FREE_FAILURES_OF_ACCOUNT + 1) + [locked, failed, failed]
    assert [event.user_id for event in events] == [user.id] * (FREE_FAILURES_OF_ACCOUNT + 3) + [None]
    assert [event.details for event in events[-2:]] == [{"locked": True}, {}]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "unknown"),
        (None, "unknown"),
    ],
)
def test_what_counts_as_one_place(address: str | None, network: str) -> None:
    assert network_of(address) == network


async def test_nobodys_row_is_made_for_an_unknown_name(client: httpx2.AsyncClient, db: AsyncSession) -> None:
    await fail(client, "nobody", 2)
    assert [row.key for row in await db.exec(select(LoginThrottle))] == ["address:127.0.0.1"]
    assert (await db.exec(select(User))).all() == []
