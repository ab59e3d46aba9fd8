"""The migrations: does the database have those of this code?"""

import asyncio

from app.core.config import PostgresSettings
from app.core.db.engine import DatabaseUnavailable
from app.core.db.schema_version import applied_revisions, known_migrations
from app.core.doctor.database_facts import connected
from app.core.doctor.finding import Finding, failed, ok, warning

CHECK = "schema"
MERGE = 'set the "down_revision" of the one that is not shared yet to the other, or run `alembic merge heads`'
MIGRATE = "run `make migrate` (in a container: cd src && alembic upgrade head)"


async def check_schema_version(settings: PostgresSettings) -> list[Finding]:
    """One finding; none when the database is away, which is said elsewhere."""
    migrations = await asyncio.to_thread(known_migrations)
    try:
        async with connected(settings) as connection:
            found = await applied_revisions(connection)
    except DatabaseUnavailable:
        return []
    if len(migrations.heads) > 1:
        files = ", ".join(migrations.files[head] for head in sorted(migrations.heads))
        return [failed(CHECK, f"{len(migrations.heads)} migrations are the newest: {files}", MERGE)]
    if not found:
        return [failed(CHECK, "nothing was migrated yet", MIGRATE)]
    if found == migrations.heads:
        return [ok(CHECK, f"at the head, {_named(found)}")]
    if found <= migrations.files.keys():
        missing = ", ".join(migrations.missing(found))
        return [failed(CHECK, f"at {_named(found)}, behind {_named(migrations.heads)}: {missing}", MIGRATE)]
    return [warning(CHECK, f"at {_named(found)}, which this code does not know", "deploy the release that migrated it")]


def _named(revisions: frozenset[str]) -> str:
    return ", ".join(sorted(revisions))
