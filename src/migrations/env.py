"""Runs migrations: all of them in one transaction, one server at a time, never waiting long for a busy table."""

import asyncio
import os
import warnings
from typing import Any

from alembic import context
from alembic.autogenerate.api import RevisionContext
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlmodel import SQLModel

import app.models  # noqa: F401  (fills the metadata)
from app.core.config import get_settings
from app.core.db.engine import create_migration_engine
from app.core.db.migration_errors import missing_extension

CONNECT_TIMEOUT = 5.0  # seconds
LOCK_KEY = 7_541_609_920  # any number of our own
WAIT_FOR_OTHERS = "10min"
# Then the migration fails rather than hold up every query behind its own wait.
WAIT_FOR_TABLES = os.environ.get("MIGRATION_LOCK_TIMEOUT", "10s")


def autogenerate_options() -> dict[str, Any]:
    """How migrations are written from the models. Only commands that do so load what they need for it."""
    from app.core.db.autogenerate import plugin, revision, types

    schemas = {table.schema for table in SQLModel.metadata.tables.values()} | {None}
    warnings.filterwarnings("ignore", "Did not recognize type", SAWarning)  # They are read from the catalog.
    warnings.filterwarnings("ignore", "Cannot correctly sort tables", SAWarning)  # The plugin does.
    return {
        "autogenerate_plugins": ["alembic.autogenerate.*", plugin.NAME],
        "include_schemas": True,
        "include_name": lambda name, kind, parents: kind != "schema" or name in schemas,
        "process_revision_directives": revision.skip_if_empty,
        "render_item": types.render_item,
    }


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_server_default=True,
        **(autogenerate_options() if new_revision is not None else {}),
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
    except DBAPIError as error:
        if (explanation := missing_extension(error)) is None:
            raise
        raise CommandError(explanation) from error
    except TimeoutError:
        raise CommandError(f"PostgreSQL does not answer within {CONNECT_TIMEOUT:.0f} seconds.") from None


def migrate_offline() -> None:
    context.configure(dialect_name="postgresql", target_metadata=SQLModel.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def prepare_revision(new: RevisionContext) -> None:
    from app.core.db.autogenerate import revision

    revision.refuse_no_message(new, context.config)
    revision.number(new, context.script)


options = context._proxy.context_opts  # type: ignore[attr-defined]  # no part of Alembic's API says what is to be done
new_revision: RevisionContext | None = options.get("revision_context")
if options.get("destination_rev") == "head" or "template_args" in options:
    from app.core.db.autogenerate.revision import refuse_same_number, refuse_several_heads

    refuse_same_number(context.script)
    if options.get("destination_rev") == "head":
        refuse_several_heads(context.script)
if new_revision is not None:
    prepare_revision(new_revision)

if new_revision is None and "template_args" in options:
    pass  # `alembic merge` looks at files only.
elif new_revision is not None and not new_revision.command_args["autogenerate"]:
    pass  # So does `alembic revision` without --autogenerate.
elif context.is_offline_mode():
    migrate_offline()
else:
    asyncio.run(migrate_online())
