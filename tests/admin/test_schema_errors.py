"""A page of the console whose table lacks a column says which migration is missing, to developers only."""

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import EnvironmentOption
from app.core.db import schema_version
from app.models.user import User
from tests.admin.operator import sign_in
from tests.conftest import connect

pytestmark = pytest.mark.anyio

REASON = "column tier.updated_at does not exist: every migration has run."


@pytest.mark.parametrize("is_local", [True, False])
async def test_a_page_without_its_column(
    console: httpx2.AsyncClient,
    superuser: User,
    db: AsyncSession,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    is_local: bool,
) -> None:
    if not is_local:
        monkeypatch.setattr(schema_version, "environment_of", lambda settings: EnvironmentOption.STAGING)
    await sign_in(console, superuser)
    await db.close()
    connection = await connect(database)
    await connection.execute("ALTER TABLE tier DROP COLUMN updated_at")
    await connection.close()
    with capture_logs() as lines:
        page = await console.get("tier/list")
    assert page.status_code == 500
    assert (REASON in page.text) is is_local
    assert [REASON in line["reason"] for line in lines if line["event"] == "schema error"] == [True]


async def test_a_page_that_works(console: httpx2.AsyncClient, superuser: User) -> None:
    await sign_in(console, superuser)
    assert (await console.get("tier/list")).status_code == 200
