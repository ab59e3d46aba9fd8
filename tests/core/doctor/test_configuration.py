"""The settings by themselves: what is weak is warned of, and production refuses it."""

import pytest

from app.core.doctor import Fleet, examine
from tests.doctor_kit import STRONG, WARNING, Settle, run

pytestmark = pytest.mark.anyio


async def test_weak_settings_are_refused_in_production_and_warned_of_before(settle: Settle) -> None:
    found = await examine(settle(ADMIN_PASSWORD="admin", PASSWORD_RESET_URL="http://front.example/reset"), Fleet())
    weak = [finding for finding in found if finding.check == "settings" and finding.outcome is WARNING]
    assert [finding.remedy.split()[1] for finding in weak] == ["ADMIN_PASSWORD", "PASSWORD_RESET_URL"]

    done = run(ENVIRONMENT="production", SECRET_KEY=STRONG, ADMIN_PASSWORD="admin")
    assert done.returncode == 1
    assert "failed   settings: ADMIN_PASSWORD must not be an example" in done.stdout
