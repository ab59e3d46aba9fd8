"""An application adds columns of any type to its users, and each of the routes about users works on."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from app.core.config import Settings
from tests.conftest import connect
from tests.processes import ROOT

pytestmark = pytest.mark.anyio

COLUMNS = """
    balance: Decimal = Field(default=Decimal("1.50"), max_digits=12, decimal_places=2)
    rating: float = Field(default=0.25)
    locale: str = Field(default="de", sa_column=Column("preferred_locale", String(5), nullable=False))
    tags: list[str] = Field(default_factory=lambda: ["new"], sa_column=Column(ARRAY(String), nullable=False))
    prices: list[Decimal] = Field(default_factory=lambda: [Decimal("2.5")], sa_column=Column(ARRAY(Numeric(10, 2))))
    options: dict[str, Any] = Field(default_factory=lambda: {"dark": True}, sa_column=Column(JSON, nullable=False))
    plan: Plan = Field(default=Plan.FREE, sa_column_kwargs={"name": "Plan of theirs"})
    trial: timedelta = Field(default=timedelta(days=14))
"""
MORE = """

User.biography = deferred(Column("biography", Text, server_default="a person"))
User.initial = column_property(func.left(User.__table__.c.name, 1))
User.logins = relationship(
    "LoginSession", primaryjoin="User.id == foreign(LoginSession.user_id)", viewonly=True, lazy="selectin"
)
"""
IMPORTS = """
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import ARRAY, JSON, Column, Numeric, String, Text, func
from sqlalchemy.orm import column_property, deferred, relationship


class Plan(Enum):
    FREE = "free"
    PAID = "paid"

"""
TABLE = """
CREATE TYPE plan AS ENUM ('FREE', 'PAID');
ALTER TABLE "user" ADD balance numeric(12, 2) NOT NULL, ADD rating double precision NOT NULL,
    ADD preferred_locale varchar(5) NOT NULL, ADD tags varchar[] NOT NULL, ADD prices numeric(10, 2)[],
    ADD options json NOT NULL, ADD "Plan of theirs" plan NOT NULL, ADD trial interval NOT NULL,
    ADD biography text DEFAULT 'a person'
"""
READ = """
    balance: Decimal
    rating: float
    locale: str
    tags: list[str]
    prices: list[Decimal]
    options: dict[str, Any]
    plan: Plan
    trial: timedelta
"""
SCRIPT = """
import asyncio, json
import httpx2
from app.main import app
from tests.conftest import client_of
from tests.helper import PASSWORD

async def main():
    async with app.router.lifespan_context(app), client_of(app) as client:
        person = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": PASSWORD}
        answers = [await client.post("user", json=person)]
        token = (await client.post("login", data={"username": "ada", "password": PASSWORD})).json()["access_token"]
        mine = {"Authorization": "Bearer " + token}
        answers.append(await client.get("user/me/", headers=mine))
        answers.append(await client.get("user/ada", headers=mine))
        answers.append(await client.get("users"))
        answers.append(await client.patch("user/ada", headers=mine, json={"name": "Ada L"}))
        answers.append(await client.get("user/me/", headers=mine))
        answers.append(await client.get("user/ada/rate_limits", headers=mine))
        answers.append(await client.get("user/me/sessions", headers=mine))
        answers.append(await client.delete("user/ada", headers=mine))
        print(json.dumps([[answer.status_code, answer.json()] for answer in answers]))

asyncio.run(main())
"""


def with_columns(folder: Path, more: str) -> Path:
    """A copy of the application whose users have more columns."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", ".env"))
    model = folder / "src" / "app" / "models" / "user.py"
    text = model.read_text()
    for anchor, added in (
        ("from sqlmodel import Field\n", IMPORTS),
        (
            '    is_superuser: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})\n',
            COLUMNS + more,
        ),
        ("    created_at: datetime\n    updated_at: datetime | None\n", READ),
    ):
        assert text.count(anchor) == 1
        text = text.replace(anchor, anchor + added)
    model.write_text(text)
    return folder


@pytest.mark.parametrize("more", ["", MORE], ids=["columns", "left to the session"])
async def test_columns_of_any_type(settings: Settings, tmp_path: Path, more: str) -> None:
    connection = await connect(settings.POSTGRES_DB)
    await connection.execute(TABLE)
    await connection.close()
    folder = with_columns(tmp_path, more)
    paths = f"import sys; sys.path[:0] = [{str(folder / 'src')!r}, {str(ROOT)!r}]\n"
    run = subprocess.run(  # noqa: ASYNC221 -- nothing else runs in this loop
        [sys.executable, "-c", paths + textwrap.dedent(SCRIPT)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    assert [status for status, _ in answers] == [201, 200, 200, 200, 200, 200, 200, 200, 200]
    expected = {
        "balance": "1.50",
        "rating": 0.25,
        "locale": "de",
        "tags": ["new"],
        "prices": ["2.50"],
        "options": {"dark": True},
        "plan": "free",
        "trial": "P14D",
    }
    for _, profile in (answers[1], answers[2], answers[5]):
        assert {name: profile[name] for name in expected} == expected
    assert answers[5][1]["name"] == "Ada L"
    assert ("rows are loaded by a session" in run.stdout + run.stderr) == bool(more)
