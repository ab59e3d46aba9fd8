"""What blocks are tried with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from app.core.config import Settings
from scripts.embedded import Valkey
from tests.conftest import Execute, cloned_database
from tests.docs import sessions
from tests.docs.commands import Terminal, copy_of_project
from tests.docs.sessions import Api


@pytest.fixture(scope="module")
def api(execute: Execute, migrated_template: str, valkey: Valkey, shared_copy: Path) -> Iterator[Api]:
    """A running API, which the sessions of a module share."""
    with (
        _not_measured() as patch,
        cloned_database(execute, patch, migrated_template),
        sessions.running(valkey.port, shared_copy) as api,
    ):
        yield api


@contextmanager
def _not_measured() -> Iterator[pytest.MonkeyPatch]:
    """What is started is to start soon and to do as it should. Other tests measure it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield patch


@pytest.fixture(scope="session")
def shared_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project."""
    return copy_of_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def copy(shared_copy: Path) -> Iterator[Path]:
    """A copy of the project, to start things in; migrations that are written there go again."""
    versions = shared_copy / "src" / "migrations" / "versions"
    before = set(versions.iterdir())
    with _not_measured():
        yield shared_copy
    for written in set(versions.glob("*.py")) - before:
        written.unlink()


@pytest.fixture(scope="session")
def known_lines() -> set[str]:
    """The commands that have been seen to work."""
    return set()


@pytest.fixture
def terminal(
    settings: Settings, valkey: Valkey, copy: Path, known_lines: set[str], monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """Where commands run: in a copy of the project, on a database of this test alone."""
    address = f"{settings.POSTGRES_SERVER}:{settings.POSTGRES_PORT}/{settings.POSTGRES_DB}"
    login = f"{settings.POSTGRES_USER}:{quote(settings.POSTGRES_PASSWORD.get_secret_value())}"
    monkeypatch.setenv("POSTGRES_URL", f"postgresql://{login}@{address}")
    return Terminal(copy, valkey.port, known_lines)
