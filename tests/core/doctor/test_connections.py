"""How many connections a fleet holds, what limits them, and that the sum is what is really opened."""

import asyncio
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.config import get_settings
from app.core.db import engine as engines
from app.core.doctor import Fleet, connections_of_web, connections_of_worker
from app.core.setup import create_application
from app.core.worker.opened import open_worker
from scripts.embedded import Postgres
from tests.conftest import Execute
from tests.doctor_kit import FAILED, OK, Settle, lines

pytestmark = pytest.mark.anyio


async def test_more_connections_than_there_are(settle: Settle, execute: Execute, database: str) -> None:
    found = (await lines(settle(), Fleet(web=9)))["database: connections"]
    assert (found.outcome, found.is_certain) == (OK, False)

    found = (await lines(settle(), Fleet(web=20)))["database: connections"]
    assert found.outcome is FAILED
    assert "20 web x 12 + 1 worker x 34 + 1 long worker x 11 = 285 of 19" in found.text
    assert "max_connections 200, 3 reserved" in found.text
    assert "set max_connections to 28" in found.remedy
    assert "POSTGRES_POOL_SIZE" in found.remedy

    behind = (await lines(settle(POSTGRES_POOL_MODE="transaction"), Fleet(web=20)))["database: connections"]
    assert behind.outcome is OK
    assert "its max_client_conn has to be 285 or more" in behind.text

    settle(POSTGRES_POOL_MODE="session")
    await asyncio.to_thread(execute, f"ALTER DATABASE {database} CONNECTION LIMIT 50")
    found = (await lines(settle()))["database: connections"]
    assert found.outcome is FAILED
    assert "= 57 of 50" in found.text
    assert "50 for the database" in found.text


async def test_a_limit_of_the_role(settle: Settle, postgres: Postgres) -> None:
    as_owner(postgres, "ALTER ROLE tester CONNECTION LIMIT 40")
    found = (await lines(settle()))["database: connections"]
    as_owner(postgres, "ALTER ROLE tester CONNECTION LIMIT -1")
    assert found.outcome is FAILED
    assert "= 57 of 40" in found.text
    assert "40 for the role" in found.text


def as_owner(postgres: Postgres, statement: str) -> None:
    """Has the cluster's superuser run this."""
    where = ["-h", str(postgres._socket_folder), "-p", str(postgres.port), "-U", "embedded_owner", "-d", "postgres"]
    postgres._run(["psql", "-X", "-q", *where, "-c", statement])


async def test_what_is_added_up_is_what_is_opened(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = create_async_engine

    def noted(*words: Any, **values: Any) -> Any:
        opened.append(values["pool_size"] + values["max_overflow"])
        return real(*words, **values)

    monkeypatch.setattr(engines, "create_async_engine", noted)
    settings = get_settings()
    app = create_application(APIRouter(), settings)
    async with app.router.lifespan_context(app):
        assert sum(opened) == connections_of_web(settings)
    opened.clear()
    async with open_worker(settings, max_jobs=7):
        assert sum(opened) == connections_of_worker(7)
