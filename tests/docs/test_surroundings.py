"""The documents' models stand beside an application that has tables and classes of the same names."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Integer, Table
from sqlmodel import SQLModel

from app.core.config import Settings
from tests.docs import surroundings
from tests.docs.blocks import Block
from tests.docs.surroundings import Code

pytestmark = pytest.mark.anyio

TABLE = """
from sqlmodel import Field

from app.core.db.models import TimestampMixin
from app.core.schemas import RequestModel


class UnlikelyName(TimestampMixin, table=True):
    id: int = Field(default=None, primary_key=True)
    created_by_user_id: int = Field(foreign_key="user.id")


class UnlikelyNameCreate(RequestModel):
    title: str
"""


@pytest.fixture
def table_of_the_application() -> Iterator[Table]:
    table = Table("unlikelyname", SQLModel.metadata, Column("id", Integer, primary_key=True))
    yield table
    SQLModel.metadata.remove(table)


@pytest.mark.parametrize("name", ["table", "model"])
async def test_an_application_may_have_a_table_of_that_name(
    settings: Settings, table_of_the_application: Table, name: str
) -> None:
    before = dict(SQLModel.metadata.tables)
    await getattr(surroundings, name)(Code(Block("docs/example.md:1", "python", TABLE, ("python", name)), settings))
    assert dict(SQLModel.metadata.tables) == before
    assert SQLModel.metadata.tables["unlikelyname"] is table_of_the_application
