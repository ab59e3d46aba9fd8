"""Making and unmaking superusers from the command line."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlmodel import select

from app.core.config import get_settings
from app.models.login_session import LoginSession
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User
from scripts import set_superuser
from tests.conftest import opened_session
from tests.helper import create_user
from tests.processes import ROOT


async def ada(*, create: bool = False) -> tuple[bool, list[dict[str, object]]]:
    async with opened_session(get_settings()) as db:
        if create:
            await create_user(db, username="ada")
        user = (await db.exec(select(User))).one()
        events = await db.exec(select(SecurityEvent).where(SecurityEvent.kind == EventKind.RIGHTS_CHANGED))
        return user.is_superuser, [event.details for event in events]


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command with these words and gives back its last line."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["set_superuser", *words])
        set_superuser.main()
        return capsys.readouterr().out.splitlines()[-1]

    return run


def test_a_user_becomes_a_superuser_and_is_none_again(run: Callable[..., str]) -> None:
    asyncio.run(ada(create=True))
    assert run("ada", "on") == "ada is a superuser now."
    assert run("ada", "on") == "ada is a superuser already."
    assert asyncio.run(ada()) == (True, [{"is_superuser": True}])
    assert run("ada", "off") == "ada is no superuser now."
    assert asyncio.run(ada()) == (False, [{"is_superuser": True}, {"is_superuser": False}])


def test_the_name_may_have_another_case(run: Callable[..., str]) -> None:
    asyncio.run(ada(create=True))
    assert run("Ada", "on") == "ada is a superuser now."


def test_who_is_no_superuser_any_more_is_signed_in_nowhere(run: Callable[..., str]) -> None:
    async def lives() -> bool:
        async with opened_session(get_settings()) as db:
            return (await db.exec(select(LoginSession))).one().revoked_at is None

    asyncio.run(ada(create=True))
    run("ada", "on")
    assert asyncio.run(lives())
    run("ada", "off")
    assert not asyncio.run(lives())


def test_who_is_not_there_is_named_in_one_line(run: Callable[..., str]) -> None:
    with pytest.raises(SystemExit, match=r"^There is no such user\.$"):
        run("nobody", "on")


def test_as_a_command(database: str) -> None:
    command = [sys.executable, "-m", "src.scripts.set_superuser", "nobody", "maybe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "choose from" in done.stderr
