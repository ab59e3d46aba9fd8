"""Creates the kitchen sink's tables in the database that the settings name: `python -m tests.kitchen_sink.tables`."""

import asyncio

import src  # noqa: F401  (makes `app` importable from the project's folder)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from app import models  # noqa: F401  (the tables that others refer to)
from tests.kitchen_sink.models import Article, Everything, Remark
from tests.kitchen_sink.settings import get_settings


async def create_tables() -> None:
    """Create those of this package only; the others are the migrations'."""
    engine = create_async_engine(get_settings().postgres_url)
    own = [SQLModel.metadata.tables[str(model.__tablename__)] for model in (Everything, Article, Remark)]
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all, tables=own)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
