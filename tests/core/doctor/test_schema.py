"""A schema that is not the code's: behind, ahead or not there."""

import shutil
from pathlib import Path

import pytest

from app.core.db import schema_version
from tests.doctor_kit import FAILED, WARNING, Settle, in_database, lines
from tests.processes import ROOT

pytestmark = pytest.mark.anyio


async def test_a_database_that_is_not_migrated(settle: Settle, empty_database: str) -> None:
    found = await lines(settle())
    assert found["schema"].outcome is FAILED
    assert "run `make migrate`" in found["schema"].remedy


async def test_a_schema_that_is_behind_or_ahead(settle: Settle, database: str) -> None:
    settings = settle()
    await in_database(database, "UPDATE alembic_version SET version_num = '0001'")
    found = await lines(settings)
    assert (found["schema"].outcome, found["schema"].text[:17]) == (FAILED, "at 0001, behind 0")
    assert "20261124_0002_sign_in_that_holds.py, " in found["schema"].text
    assert "alembic upgrade head" in found["schema"].remedy

    await in_database(database, "UPDATE alembic_version SET version_num = 'of tomorrow'")
    assert (await lines(settings))["schema"].outcome is WARNING


async def test_migrations_with_two_heads(
    settle: Settle, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(ROOT / "src/migrations", tmp_path / "migrations")
    (copy / "versions" / "20270101_9000_theirs.py").write_text('revision = "9000"\ndown_revision = "0006"\n')
    monkeypatch.setattr(schema_version, "MIGRATIONS", copy)
    found = await lines(settle())
    assert found["schema"].outcome is FAILED
    assert found["schema"].text.startswith("2 migrations are the newest: ")
    assert "20270101_9000_theirs.py" in found["schema"].text
    assert "alembic merge heads" in found["schema"].remedy
