"""Whether the database has the schema this code was written for, and which migrations it lacks."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic

import structlog
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.core.config import EnvironmentOption, SettingsGroup, environment_of
from app.core.db.database import reading

MIGRATIONS = Path(__file__).parents[3] / "migrations"
EXPLAIN_SECONDS = 2.0  # that the explanation of an error may take
EXPLAIN_INTERVAL = 1.0  # seconds for which the schema is not read again: every request may fail

# SQLSTATE: undefined column, undefined table, unknown schema.
_SCHEMA_ERRORS = {"42703", "42P01", "3F000"}

log = structlog.stdlib.get_logger("slipway.schema")


class SchemaBehind(Exception):  # noqa: N818 -- a state, with what to do about it
    """The database lacks migrations that this code has."""


@dataclass(frozen=True, slots=True)
class Migrations:
    """The migrations that are files.

    Attributes:
        heads: the newest revisions: one, unless two branches were merged without care.
        files: the name of each revision's file, oldest first.
        parents: the revisions that each of them follows.
    """

    heads: frozenset[str]
    files: Mapping[str, str]
    parents: Mapping[str, frozenset[str]]

    def missing(self, applied: frozenset[str]) -> list[str]:
        """The files that have yet to run in a database at these revisions, oldest first."""
        done, ahead = set[str](), list(applied)
        while ahead:
            revision = ahead.pop()
            if revision not in done:
                done.add(revision)
                ahead += self.parents.get(revision, ())
        return [file for revision, file in self.files.items() if revision not in done]


def known_migrations() -> Migrations:
    """Return the migrations whose files are there now. They are read again only when one of them has changed."""
    files = sorted((MIGRATIONS / "versions").glob("*.py"))
    return _read(tuple((str(file), file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _read(_state: tuple[tuple[str, int], ...]) -> Migrations:
    # Imported here: only a process that is asked whether it is ready has to load Alembic, a tenth of all our code.
    from alembic.script import ScriptDirectory

    scripts = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())[::-1]
    return Migrations(
        frozenset(script.revision for script in scripts if script.is_head),
        {script.revision: Path(script.path).name for script in scripts},
        {script.revision: frozenset(script._all_down_revisions) for script in scripts},
    )


async def applied_revisions(connection: AsyncConnection) -> frozenset[str]:
    """Return the revisions that the database is at; none when nothing was migrated yet."""
    try:
        rows = await connection.execute(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:  # no such table
        return frozenset()
    return frozenset(rows.scalars())


async def check_schema(engine: AsyncEngine) -> None:
    """Passes when the schema is at the head, or beyond it: a newer release may migrate while this one still runs.

    Raises: SchemaBehind, with the migrations that are missing.
    """
    migrations = await asyncio.to_thread(known_migrations)
    async with engine.connect() as connection:
        applied = await applied_revisions(connection)
    if applied != migrations.heads and applied <= migrations.files.keys():
        raise SchemaBehind(_behind(migrations.missing(applied)))


async def report_schema_error(error: BaseException, settings: SettingsGroup) -> str | None:
    """Log why a table or column is missing, and return it where the caller may read it: in `local`."""
    reason = await explain_schema_error(error)
    if reason is not None:
        log.error("schema error", reason=reason)
    return reason if environment_of(settings) is EnvironmentOption.LOCAL else None


async def explain_schema_error(error: BaseException) -> str | None:
    """Return one line that says why the table or column is missing and which command creates it.

    None for any other error, and when the database does not answer in time.
    """
    found = _schema_error(error)
    if found is None:
        return None
    try:
        async with asyncio.timeout(EXPLAIN_SECONDS):
            return f"{str(found).splitlines()[0]}: {await _reason()}"
    except Exception as failure:
        log.warning("schema not read", why=repr(failure.__cause__ or failure))
        return None


_reasons: tuple[float, str] = (-EXPLAIN_INTERVAL, "")  # when the last one was found, and what it is


async def _reason() -> str:
    global _reasons
    if monotonic() - _reasons[0] > EXPLAIN_INTERVAL:
        migrations = await asyncio.to_thread(known_migrations)
        async with reading() as db:
            applied = await applied_revisions(await db.connection())
        _reasons = monotonic(), _reason_of(migrations, applied)
    return _reasons[1]


def _reason_of(migrations: Migrations, applied: frozenset[str]) -> str:
    unknown = sorted(applied - migrations.files.keys())
    if unknown:
        return (
            f"the database is at migration {', '.join(unknown)}, whose file is not here: "
            "deploy the release that has it, or downgrade the database with that release"
        )
    if missing := migrations.missing(applied):
        return _behind(missing)
    return (
        "every migration has run. If a model has it, write the migration that creates it: "
        'make migration m="...", then make migrate'
    )


def _behind(missing: list[str]) -> str:
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"the database lacks the migration{'s' * (len(missing) > 1)} {shown}: run make migrate"


def _schema_error(error: BaseException | None) -> BaseException | None:
    """The driver's error in a chain of errors, if it is one of these."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "sqlstate", None) in _SCHEMA_ERRORS and not hasattr(error, "orig"):
            return error
        error = error.__cause__ or error.__context__
    return None
