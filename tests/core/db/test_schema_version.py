"""A database that lacks what the models name: which migration is missing is said, and to whom."""

import os
import shutil
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import EnvironmentOption, Settings
from app.core.db import schema_version
from app.core.db.engine import create_engine
from app.core.db.schema_version import SchemaBehind, check_schema, known_migrations
from app.core.worker import worker as worker_module
from app.core.worker.options import job
from tests.conftest import connect
from tests.durable_jobs import Context, enqueued, until, working
from tests.helper import create_superuser, signed_in
from tests.processes import ROOT

pytestmark = pytest.mark.anyio

WRITE_IT = 'every migration has run. If a model has it, write the migration that creates it: make migration m="..."'


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_version, "_reasons", (-1000.0, ""))


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a copy of the migrations, which is looked at instead."""
    copy = shutil.copytree(ROOT / "src/migrations", tmp_path / "migrations")
    monkeypatch.setattr(schema_version, "MIGRATIONS", copy)
    return copy / "versions"


def add_migration(versions: Path, revision: str, after: str) -> str:
    """Write a migration, and return the name of its file."""
    path = versions / f"20270101_{revision}_colour.py"
    path.write_text(f'revision = "{revision}"\ndown_revision = "{after}"\n')
    return path.name


async def run_sql(database: str, *statements: str) -> None:
    connection = await connect(database)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def head() -> str:
    (revision,) = known_migrations().heads
    return revision


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE tier DROP COLUMN updated_at", "column tier.updated_at does not exist"),
        ("DROP TABLE tier CASCADE", 'relation "tier" does not exist'),
        ("ALTER TABLE tier RENAME COLUMN name TO title", "column tier.name does not exist"),
    ],
)
async def test_a_model_that_no_migration_made(
    client: httpx2.AsyncClient, database: str, statement: str, message: str
) -> None:
    await run_sql(database, statement)
    with capture_logs() as lines:
        answer = await client.get("tiers")
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    reason = f"{message}: {WRITE_IT}, then make migrate"
    assert answer.json()["detail"] == reason
    assert [line["reason"] for line in lines if line["event"] == "schema error"] == [reason]


async def test_a_migration_that_has_yet_to_run(client: httpx2.AsyncClient, database: str, versions: Path) -> None:
    name = add_migration(versions, "9000", head())
    await run_sql(database, "ALTER TABLE tier DROP COLUMN updated_at")
    answer = await client.get("tiers")
    assert answer.json()["detail"].endswith(f"the database lacks the migration {name}: run make migrate")


async def test_a_database_that_is_empty(client: httpx2.AsyncClient, database: str) -> None:
    await run_sql(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    detail = (await client.get("tiers")).json()["detail"]
    first = next(iter(known_migrations().files.values()))
    assert f"the database lacks the migrations {first}, " in detail
    assert detail.endswith("more: run make migrate")
    assert (await client.get("ready")).json()["dependencies"]["schema"] == "behind"


async def test_a_database_of_a_later_release(client: httpx2.AsyncClient, database: str) -> None:
    """An older release was deployed again, and the newer one has dropped a column."""
    await run_sql(
        database, "ALTER TABLE tier DROP COLUMN updated_at", "UPDATE alembic_version SET version_num = 'of tomorrow'"
    )
    detail = (await client.get("tiers")).json()["detail"]
    assert "the database is at migration of tomorrow, whose file is not here" in detail
    assert (await client.get("ready")).json()["dependencies"]["schema"] == "up"


async def test_a_sign_in_that_needs_the_column(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, database: str
) -> None:
    user = await create_superuser(db)
    headers = signed_in(user, settings)
    await db.close()
    await run_sql(database, 'ALTER TABLE "user" DROP COLUMN profile_image_url')
    answer = await client.get("user/me/", headers=headers)
    assert (answer.status_code, "profile_image_url" in answer.json()["detail"]) == (500, True)
    assert WRITE_IT in answer.json()["detail"]


async def test_outside_of_local_only_the_log_says_it(
    client: httpx2.AsyncClient, app: FastAPI, settings: Settings, database: str
) -> None:
    await run_sql(database, "DROP TABLE tier CASCADE")
    app.state.settings = settings.model_copy(update={"ENVIRONMENT": EnvironmentOption.PRODUCTION})
    with capture_logs() as lines:
        answer = await client.get("tiers")
    assert answer.status_code == 500
    assert "tier" not in answer.text
    assert "migrat" not in answer.text
    assert any(WRITE_IT in line["reason"] for line in lines if line["event"] == "schema error")


async def test_another_error_is_not_explained(client: httpx2.AsyncClient, app: FastAPI) -> None:
    with capture_logs() as lines:
        assert await schema_version.explain_schema_error(ValueError("x")) is None
    assert lines == []


async def test_a_database_that_is_away_explains_nothing(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    class MissingTableError(Exception):
        sqlstate = "42P01"

    def away() -> None:
        raise OSError("away")

    monkeypatch.setattr(schema_version, "reading", away)
    with capture_logs() as lines:
        assert await schema_version.explain_schema_error(MissingTableError("x")) is None
    assert [line["event"] for line in lines] == ["schema not read"]


async def test_ready_sees_a_migration_that_is_written_later(
    client: httpx2.AsyncClient, settings: Settings, versions: Path
) -> None:
    engine = create_engine(settings, pool_size=1)
    await check_schema(engine)
    first = add_migration(versions, "9000", head())
    second = add_migration(versions, "9001", "9000")
    with pytest.raises(SchemaBehind, match=f"the migrations {first}, {second}: run make migrate"):
        await check_schema(engine)
    (versions / second).unlink()
    (versions / first).unlink()
    await check_schema(engine)
    await engine.dispose()


async def test_ready_sees_several_heads(settings: Settings, versions: Path, database: str) -> None:
    before = head()
    engine = create_engine(settings, pool_size=1)
    mine, theirs = add_migration(versions, "9000", before), add_migration(versions, "9001", before)
    await run_sql(database, "UPDATE alembic_version SET version_num = '9000'")
    with pytest.raises(SchemaBehind, match=f"the migration {theirs}"):
        await check_schema(engine)
    await run_sql(database, "INSERT INTO alembic_version VALUES ('9001')")
    await check_schema(engine)
    await engine.dispose()
    assert mine != theirs


async def test_files_are_read_once(settings: Settings, versions: Path) -> None:
    first = known_migrations()
    assert known_migrations() is first
    (file, *_) = known_migrations().files.values()
    os.utime(versions / file, ns=(1, 1))
    assert known_migrations() is not first


async def test_a_job_that_lacks_a_table_says_why(app: FastAPI, db: AsyncSession, database: str) -> None:
    async def look(ctx: Context) -> None:
        await (await ctx["db"].connection()).execute(text("SELECT colour FROM tier"))

    async def said() -> bool:
        return any(WRITE_IT in line["reason"] for line in lines if line["event"] == "schema error")

    await enqueued("look")
    with capture_logs() as lines:
        async with working(job(look, name="look")):
            await until(said)


async def test_a_worker_on_an_older_schema_says_why(
    app: FastAPI, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do(ctx: Context) -> None:
        """Not called here."""

    monkeypatch.setattr(worker_module, "ROUND", 0.05)
    await run_sql(database, "DROP TABLE job", "UPDATE alembic_version SET version_num = '0004'")

    async def said() -> bool:
        return any("the migrations" in line["why"] for line in lines if line["event"] == "worker is held up")

    with capture_logs() as lines:
        async with working(job(do, name="do")):
            await until(said)
    assert all("0005_durable_jobs.py" in line["why"] for line in lines if line["event"] == "worker is held up")
