"""What the tests of the doctor share: values, what is found, and the command itself."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from app.core.config import Settings, get_settings
from app.core.doctor import Finding, Fleet, Outcome, examine
from tests.conftest import connect
from tests.processes import ROOT

STRONG = "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD"
SECRET = "canary-7f3a9c-of-the-doctor"
BEYOND = "0.0.0.0"  # noqa: S104 -- reaches this machine as well, and is no loopback address
OK, WARNING, FAILED = Outcome.OK, Outcome.WARNING, Outcome.FAILED
Settle = Callable[..., Settings]


def settling(monkeypatch: pytest.MonkeyPatch, **always: object) -> Settle:
    """Makes settings in which these values have changed, for this process and those it starts."""

    def settle(**values: object) -> Settings:
        for name, value in {**always, **values}.items():
            monkeypatch.setenv(name, str(value))
        get_settings.cache_clear()
        return get_settings()

    return settle


async def lines(settings: Settings, fleet: Fleet | None = None) -> dict[str, Finding]:
    """What is found, by the check."""
    return {finding.check: finding for finding in await examine(settings, fleet or Fleet())}


async def in_database(name: str, statement: str) -> None:
    """Runs one statement in the database of this name, past everything of ours."""
    connection = await connect(name)
    await connection.execute(statement)
    await connection.close()


def run(*words: str, **values: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m src.scripts.doctor` with these words, and these values in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "src.scripts.doctor", *words],
        cwd=ROOT,
        env=os.environ | values,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
