"""A project of its own for tests about migrations: its models, its files of migrations, and a database."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, Table
from sqlalchemy.orm import registry
from sqlmodel import SQLModel

from app.core.config import get_settings
from app.core.db.column_types import store_enums_as_text
from app.core.db.engine import create_migration_engine
from tests.conftest import ALEMBIC_INI, connect
from tests.processes import ROOT

SCHEMA = """
    SELECT table_name || '.' || column_name AS what, data_type || coalesce(character_maximum_length::text, '')
           || is_nullable || coalesce(column_default, '') || udt_name || coalesce(generation_expression, '') AS how
    FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
    UNION ALL SELECT conname, pg_get_constraintdef(oid, true) FROM pg_constraint WHERE oid > 16000
    UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
    UNION ALL SELECT nspname, 'schema' FROM pg_namespace WHERE oid > 16000
    UNION ALL SELECT sequencename, data_type::text FROM pg_sequences
    UNION ALL SELECT typname, typtype::text || coalesce((
        SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = pg_type.oid
    ), '') FROM pg_type WHERE typtype IN ('e', 'd') AND oid > 16000
    ORDER BY 1, 2
"""


def new_base() -> Any:
    """A base for models of one test, as `SQLModel` is for the application's."""
    tables = MetaData(naming_convention=SQLModel.metadata.naming_convention)
    store_enums_as_text(tables)

    class Base(SQLModel, registry=registry(metadata=tables)):
        metadata = tables

    return Base


class Project:
    """Migrations of these models, none at first.

    Attributes:
        folder: with `env.py` and `versions/`.
        database: the name of its database.
    """

    def __init__(
        self, folder: Path, database: str, monkeypatch: pytest.MonkeyPatch, *, formatted: bool = False
    ) -> None:
        self.folder, self.database, self._monkeypatch = folder, database, monkeypatch
        self.config = Config(ALEMBIC_INI)
        self.config.set_main_option("script_location", str(folder))
        self.config.set_section_option("post_write_hooks", "hooks", "format" if formatted else "")

    def use(self, base: Any) -> None:
        """Have these models instead of the former ones."""
        self._monkeypatch.setattr(SQLModel, "metadata", base.metadata)

    def write(self, message: str = "change") -> str | None:
        """Write a migration from the models. Returns its text; None when there is nothing to write."""
        script: Any = command.revision(self.config, message, autogenerate=True)
        return Path(script.path).read_text() if script else None

    def run(self, name: str, *args: str) -> None:
        """Run a command of Alembic."""
        getattr(command, name)(self.config, *args)

    def schema(self) -> list[tuple[str, str]]:
        """What is in the database, but for Alembic's own table."""
        rows = self.fetch(SCHEMA)
        casts = re.compile(r"::(character varying|text)(\[\])?")  # PostgreSQL spells its own spelling differently.
        return [(what, casts.sub("", how)) for what, how in rows if not what.startswith("alembic_version")]

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query, past the application."""

        async def read() -> list[tuple[Any, ...]]:
            connection: asyncpg.Connection = await connect(self.database)
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()

        return asyncio.run(read())

    def select(self, table: Table) -> list[tuple[Any, ...]]:
        """The rows of a table, as a session of the application sees them."""

        async def read() -> list[tuple[Any, ...]]:
            engine = create_migration_engine(get_settings(), 5)
            async with engine.connect() as connection:
                rows = [tuple(row) for row in await connection.execute(table.select())]
            await engine.dispose()
            return rows

        return asyncio.run(read())

    def change(self, base: Any) -> str | None:
        """Write and run the migration to these models; it has to work both ways, and to leave nothing to find."""
        self.use(base)
        before = self.schema()
        text = self.write()
        self.run("upgrade", "head")
        after = self.schema()
        self.run("check")
        if text is not None:
            self.run("downgrade", "-1")
            assert self.schema() == before, f"{set(self.schema()) ^ set(before)}"
            self.run("upgrade", "head")
            assert self.schema() == after, f"{set(self.schema()) ^ set(after)}"
            self.run("check")
        return text


def empty_project(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project without migrations, without formatting what is written."""
    ignore = shutil.ignore_patterns("*.pyc", "__pycache__", "20*.py")
    folder = shutil.copytree(ROOT / "src" / "migrations", tmp_path / "migrations", ignore=ignore)
    return Project(folder, database, monkeypatch)
