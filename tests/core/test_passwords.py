"""Which passwords are refused, and how they are hashed."""

import asyncio
import os
import threading

import pytest

from app.core import passwords
from app.core.config import Settings
from app.core.passwords import HashingBusy, hash_password, is_common, verify_password

pytestmark = pytest.mark.anyio

SETTINGS = Settings()
PASSWORD = "correct horse battery"


@pytest.mark.parametrize(
    "password",
    ["password", "PassWord", " p a s s w o r d ", "12345678", "qwertyuiop", "aaaaaaaa", "abababab", "\uff50assword"],
)
def test_what_everybody_tries_first_is_refused(password: str) -> None:
    assert is_common(password)


@pytest.mark.parametrize("password", ["ada.lovelace", "Ada.Lovelace1815", "ada.lovelace@example.com", "lovelace1815!"])
def test_what_the_account_gives_away_is_refused(password: str) -> None:
    assert is_common(password, "lovelace", "ada.lovelace@example.com")


@pytest.mark.parametrize(
    "password",
    [PASSWORD, "zx8 vq2 km4", "password,12345678", "\u00fcber allen Gipfeln", "lovelace of the analytical engine"],
)
def test_anything_else_will_do(password: str) -> None:
    assert not is_common(password, "lovelace", "ada.lovelace@example.com")


async def test_a_hash_knows_its_password() -> None:
    hashed = await hash_password(PASSWORD, SETTINGS)

    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await verify_password(PASSWORD, hashed, SETTINGS) == (True, None)
    assert await verify_password("correct horse batterx", hashed, SETTINGS) == (False, None)
    assert hashed != await hash_password(PASSWORD, SETTINGS), "each hash has a salt of its own"


async def test_a_hash_of_other_parameters_is_renewed() -> None:
    costlier = SETTINGS.model_copy(update={"PASSWORD_HASH_TIME_COST": 3})
    old = await hash_password(PASSWORD, SETTINGS)

    assert await verify_password("wrong", old, costlier) == (False, None)
    matches, renewed = await verify_password(PASSWORD, old, costlier)
    assert matches
    assert renewed is not None
    assert renewed.startswith("$argon2id$v=19$m=19456,t=3,p=1$")
    assert await verify_password(PASSWORD, renewed, costlier) == (True, None)


async def test_nobodys_password_is_never_right() -> None:
    for password in ("", PASSWORD, "nobody", "\0" * 32):
        assert (await verify_password(password, None, SETTINGS))[0] is False


async def test_a_hash_of_another_kind_lets_nobody_in() -> None:
    assert await verify_password("x", "$2b$12$" + "a" * 53, SETTINGS) == (False, None)


async def test_a_missing_hash_costs_what_a_real_one_costs() -> None:
    parameters = (await hash_password("x", SETTINGS)).split("$")[:4]
    assert passwords._nobodys_hash(SETTINGS).split("$")[:4] == parameters


async def test_too_many_hashes_at_once_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "HASHES_WAITING", 3)

    results = await asyncio.gather(*(hash_password("x", SETTINGS) for _ in range(12)), return_exceptions=True)

    hashed = [result for result in results if isinstance(result, str)]
    assert len(hashed) == passwords.HASHES_AT_ONCE + 3
    assert all(isinstance(result, HashingBusy) for result in results if result not in hashed)
    assert await hash_password("x", SETTINGS), "and then there is room again"


async def test_hashes_are_computed_elsewhere_and_step_back_behind_the_loop() -> None:
    def where() -> tuple[str, int]:
        return threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    thread, niceness = await passwords._hash_in_thread(where)
    assert thread.startswith("hash")
    assert thread != threading.current_thread().name
    assert niceness > os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
