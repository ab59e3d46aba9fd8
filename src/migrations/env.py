"""Runs migrations: all of them in one transaction, one server at a time, never waiting long for a busy table."""

import asyncio
import os

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import app.models  # noqa: F401  (fills the metadata)
from app.core.config import get_settings
from app.core.db.engine import create_migration_engine

CONNECT_TIMEOUT = 5.0  # seconds
LOCK_KEY = 7_541_609_920  # any number of our own
WAIT_FOR_OTHERS = "10min"
# Then the migration fails rather than hold up every query behind its own wait.
WAIT_FOR_TABLES = os.environ.get("MIGRATION_LOCK_TIMEOUT", "10s")


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        # Servers that start together migrate together: the first does the work, the others find it done.
        connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_OTHERS}'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_KEY})"))
        connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": WAIT_FOR_TABLES})
        context.run_migrations()


async def migrate_online() -> None:
    engine = create_migration_engine(get_settings(), CONNECT_TIMEOUT)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
    except TimeoutError:
        raise CommandError(f"PostgreSQL does not answer within {CONNECT_TIMEOUT:.0f} seconds.") from None


def migrate_offline() -> None:
    context.configure(dialect_name="postgresql", target_metadata=SQLModel.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    migrate_offline()
else:
    asyncio.run(migrate_online())
