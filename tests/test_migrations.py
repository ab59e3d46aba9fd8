"""Alembic owns the schema: up, down and up again give the same, and the models are what was migrated."""

import asyncio
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from app.core.config import get_settings
from tests.conftest import ALEMBIC_INI, connect
from tests.processes import BIN, ROOT

SCHEMA = """
    SELECT table_name || '.' || column_name AS what, data_type || coalesce(character_maximum_length::text, '')
           || is_nullable || coalesce(column_default, '') AS how
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT sequencename, data_type::text FROM pg_sequences WHERE schemaname = 'public'
    UNION ALL SELECT typname, typtype::text FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'
    ORDER BY 1, 2
"""


def alembic(name: str, *args: str) -> None:
    getattr(command, name)(Config(ALEMBIC_INI), *args)


def schema_of(database: str) -> list[tuple[str, str]]:
    async def read() -> list[tuple[str, str]]:
        connection = await connect(database)
        try:
            return [tuple(row) for row in await connection.fetch(SCHEMA)]
        finally:
            await connection.close()

    return asyncio.run(read())


def test_up_down_and_up_again_give_the_same_schema(empty_database: str) -> None:
    bare = schema_of(empty_database)
    alembic("upgrade", "head")
    first = schema_of(empty_database)
    assert len(first) > 40
    alembic("downgrade", "base")
    left = [line for line in schema_of(empty_database) if line not in bare]
    assert all(what.startswith("alembic_version") for what, _ in left)
    alembic("upgrade", "head")
    assert schema_of(empty_database) == first


def test_the_migrated_schema_is_the_models_to_the_last_name(database: str) -> None:
    """Autogenerate compares no check constraints and no names of foreign keys."""
    migrated = schema_of(database)
    asyncio.run(recreate_from_models(database))
    assert schema_of(database) == [line for line in migrated if not line[0].startswith("alembic_version")]


async def recreate_from_models(database: str) -> None:
    await run_sql(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine = create_async_engine(get_settings().postgres_url)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    await engine.dispose()


def test_autogenerate_on_head_finds_nothing(database: str) -> None:
    alembic("check")


def test_autogenerate_finds_a_difference(database: str) -> None:
    """The test above would pass too if autogenerate saw nothing at all."""
    asyncio.run(run_sql(database, "ALTER TABLE tier ALTER COLUMN name TYPE varchar(10)"))
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        alembic("check")


async def run_sql(database: str, statement: str) -> None:
    connection = await connect(database)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def test_servers_that_migrate_at_once_take_turns(empty_database: str) -> None:
    servers = [
        subprocess.Popen([str(BIN / "alembic"), "upgrade", "head"], cwd=ROOT / "src", stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    errors = [server.communicate(timeout=60)[1].decode() for server in servers]
    assert [server.returncode for server in servers] == [0] * 4, errors


def test_a_busy_table_stops_a_migration_rather_than_the_site(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that waited for a lock would make every later query wait behind it."""
    alembic("upgrade", "head")
    monkeypatch.setenv("MIGRATION_LOCK_TIMEOUT", "200ms")
    get_settings.cache_clear()
    locked, release = threading.Event(), threading.Event()

    async def hold_a_lock() -> None:
        connection = await connect(empty_database)
        async with connection.transaction():
            await connection.execute("LOCK TABLE tier")
            locked.set()
            await asyncio.to_thread(release.wait)
        await connection.close()

    holder = threading.Thread(target=asyncio.run, args=(hold_a_lock(),))
    holder.start()
    try:
        assert locked.wait(5)
        with pytest.raises(Exception, match="lock timeout"):
            alembic("downgrade", "base")
    finally:
        release.set()
        holder.join()


def test_the_sql_can_be_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    command.upgrade(Config(ALEMBIC_INI, stdout=sys.stdout), "head", sql=True)
    assert "CREATE TABLE rate_limit" in capsys.readouterr().out


def test_a_new_migration_is_written_from_the_models(empty_database: str, tmp_path: Path) -> None:
    """As `make migration` does it: what the template writes must run."""
    config = Config(ALEMBIC_INI)
    config.set_main_option("script_location", str(shutil.copytree(ROOT / "src" / "migrations", tmp_path / "copy")))
    command.upgrade(config, "head")
    asyncio.run(run_sql(empty_database, "ALTER TABLE tier DROP COLUMN updated_at"))

    command.revision(config, "add it", autogenerate=True)

    command.upgrade(config, "head")
    assert ("tier.updated_at", "timestamp with time zoneYES") in schema_of(empty_database)
    command.downgrade(config, "-1")
