"""Whether the database has the schema this code was written for."""

import asyncio
from functools import lru_cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

MIGRATIONS = Path(__file__).parents[3] / "migrations"


class SchemaBehind(Exception):  # noqa: N818 -- a state, with what to do about it
    """The database lacks migrations that this code has."""


@lru_cache(maxsize=1)
def known_revisions() -> tuple[frozenset[str], frozenset[str]]:
    """The revisions that ship with this code: the heads, and all of them."""
    # Imported here: only a process that is asked whether it is ready has to load Alembic, a tenth of all our code.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    return frozenset(scripts.get_heads()), frozenset(script.revision for script in scripts.walk_revisions())


async def check_schema(engine: AsyncEngine) -> None:
    """Passes when the schema is at the head, or beyond it: a newer release may migrate while this one still runs.

    Raises: SchemaBehind.
    """
    heads, known = await asyncio.to_thread(known_revisions)
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(text("SELECT version_num FROM alembic_version"))
            current = frozenset(rows.scalars())
    except ProgrammingError:  # no such table: nothing was migrated yet
        current = frozenset()
    if current != heads and current <= known:
        raise SchemaBehind("run `make migrate`")
