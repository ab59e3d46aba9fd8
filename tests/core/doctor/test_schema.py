"""A schema that is not the code's: behind, ahead or not there."""

import pytest

from tests.doctor_kit import FAILED, WARNING, Settle, in_database, lines

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
    assert "alembic upgrade head" in found["schema"].remedy

    await in_database(database, "UPDATE alembic_version SET version_num = 'of tomorrow'")
    assert (await lines(settings))["schema"].outcome is WARNING
