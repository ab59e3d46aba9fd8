"""The scripts that make the first superuser and the first tier: once, and with an exit code that tells."""

import asyncio
import os
import re
import subprocess
import sys

import pytest

from app.core.config import get_settings
from scripts import create_first_superuser, create_first_tier
from scripts.embedded import free_port
from tests.conftest import opened_session
from tests.helper import create_user
from tests.processes import ROOT


def test_the_superuser_is_created_once(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    create_first_superuser.run()
    create_first_superuser.run()
    assert capsys.readouterr().out == "Superuser admin created.\nSuperuser admin exists already.\n"


@pytest.mark.parametrize("name", ["Admin", " ADMIN "])
def test_the_name_of_the_superuser_may_have_another_case(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("ADMIN_USERNAME", name)
    get_settings.cache_clear()
    create_first_superuser.run()
    create_first_superuser.run()
    assert capsys.readouterr().out == "Superuser admin created.\nSuperuser admin exists already.\n"


def test_the_tier_is_created_once(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIER_NAME", " starter ")
    get_settings.cache_clear()
    create_first_tier.run()
    create_first_tier.run()
    assert capsys.readouterr().out == "Tier starter created.\nTier starter exists already.\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ADMIN_PASSWORD", "short", "ADMIN_PASSWORD: Value should have at least 8 items"),
        ("ADMIN_USERNAME", "The Boss", "ADMIN_USERNAME: String should match pattern"),
        ("ADMIN_EMAIL", "nobody", "ADMIN_EMAIL: value is not a valid email address"),
        ("ADMIN_USERNAME", "me", "ADMIN_USERNAME: Value error, This user name is reserved"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        create_first_superuser.run()
    assert str(stopped.value.code).startswith(message)
    assert len(str(stopped.value.code).splitlines()) == 1


def test_without_a_password_no_superuser_is_made(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_PASSWORD")
    get_settings.cache_clear()
    with pytest.raises(SystemExit, match=r"ADMIN_PASSWORD must be .* It is not set"):
        create_first_superuser.run()


def test_an_ordinary_user_of_that_name_is_not_made_a_superuser(database: str) -> None:
    asyncio.run(sign_up(username="admin"))
    with pytest.raises(SystemExit, match="ADMIN_USERNAME must not be admin"):
        create_first_superuser.run()


async def sign_up(**values: str) -> None:
    async with opened_session(get_settings()) as db:
        await create_user(db, **values)


def test_a_superuser_who_was_renamed_exists(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create_first_superuser.run()
    monkeypatch.setenv("ADMIN_USERNAME", "other")
    get_settings.cache_clear()
    create_first_superuser.run()
    assert capsys.readouterr().out.endswith("Superuser admin exists already.\n")


def test_scripts_that_start_together_take_turns(database: str) -> None:
    command = [sys.executable, "-m", "src.scripts.create_first_superuser"]
    scripts = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(script.communicate(timeout=60)[0] for script in scripts)
    assert said == ["Superuser admin created.\n", *["Superuser admin exists already.\n"] * 2]


def test_an_address_that_is_somebody_elses_is_refused(database: str) -> None:
    asyncio.run(sign_up(username="other", email="admin@example.com"))
    with pytest.raises(SystemExit, match="E-mail address is already registered"):
        create_first_superuser.run()


def test_a_tier_name_that_cannot_be_is_said(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_NAME", "x" * 51)
    get_settings.cache_clear()
    with pytest.raises(SystemExit, match="TIER_NAME: String should have at most 50 characters"):
        create_first_tier.run()


def test_before_the_migration_they_say_what_to_do(empty_database: str) -> None:
    with pytest.raises(SystemExit, match="run `make migrate` first"):
        create_first_tier.run()


@pytest.mark.parametrize("script", ["create_first_superuser", "create_first_tier"])
def test_without_a_database_the_exit_code_is_not_0(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"src.scripts.{script}"],
        cwd=ROOT,
        env=os.environ | {"POSTGRES_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"The database is not available\. Try again shortly\. \(.*Connect call failed.*\)\n", done.stderr
    )


def test_a_wrong_password_is_said_without_the_password(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "not the one")
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        create_first_tier.run()
    monkeypatch.undo()  # The database is dropped with the right one.
    message = 'The database is not available. Try again shortly. (password authentication failed for user "tester")'
    assert stopped.value.code == message
