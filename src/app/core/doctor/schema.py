"""The migrations: does the database have those of this code?"""

import asyncio

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.core.config import PostgresSettings
from app.core.db.engine import DatabaseUnavailable
from app.core.db.schema_version import known_revisions
from app.core.doctor.database_facts import connected
from app.core.doctor.finding import Finding, failed, ok, warning

CHECK = "schema"
MIGRATE = "run `make migrate` (in a container: cd src && alembic upgrade head)"


async def check_schema_version(settings: PostgresSettings) -> list[Finding]:
    """One finding; none when the database is away, which is said elsewhere."""
    heads, known = await asyncio.to_thread(known_revisions)
    try:
        async with connected(settings) as connection:
            found = frozenset((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars())
    except ProgrammingError:  # no such table
        found = frozenset()
    except DatabaseUnavailable:
        return []
    if not found:
        return [failed(CHECK, "nothing was migrated yet", MIGRATE)]
    if found == heads:
        return [ok(CHECK, f"at the head, {_named(found)}")]
    if found <= known:
        return [failed(CHECK, f"at {_named(found)}, behind {_named(heads)}", MIGRATE)]
    return [warning(CHECK, f"at {_named(found)}, which this code does not know", "deploy the release that migrated it")]


def _named(revisions: frozenset[str]) -> str:
    return ", ".join(sorted(revisions))
