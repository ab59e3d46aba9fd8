"""Removing users, tiers and rate limits that an application's own tables refer to."""

import httpx2
import pytest
from sqlalchemy import func, text
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.models.rate_limit import RateLimit
from app.models.security_event import SecurityEvent
from app.models.tier import Tier
from app.models.user import User
from tests.helper import create_rate_limit, create_superuser, create_tier, create_user, make_room, signed_in

pytestmark = pytest.mark.anyio

OPTIONS = ["", "ON DELETE RESTRICT", "ON DELETE NO ACTION DEFERRABLE INITIALLY DEFERRED"]


async def refer_to(db: AsyncSession, table: str, row_id: int, options: str, *, name: str = "post") -> None:
    """Creates a table of the application with a row that refers to this one, and commits."""
    connection = await db.connection()
    reference = f'CONSTRAINT fk_{name}_{table} REFERENCES "{table}" {options}'
    await make_room(connection, name)
    await connection.execute(text(f"CREATE TABLE {name} (id int PRIMARY KEY, of_id int NOT NULL {reference})"))
    await connection.execute(text(f"INSERT INTO {name} (id, of_id) VALUES (1, :of_id)"), {"of_id": row_id})  # noqa: S608 -- a name of these tests
    await db.commit()


async def count(db: AsyncSession, table: type[SQLModel]) -> int:
    return (await db.exec(select(func.count()).select_from(table))).one()


def assert_held(answer: httpx2.Response, table: str, constraint: str) -> None:
    assert answer.status_code == 409, answer.text
    document = answer.json()
    assert document["type"] == "urn:problem-type:still-referenced"
    assert (document["table"], document["constraint"]) == (table, constraint)
    assert table in document["detail"]
    assert constraint in document["detail"]


@pytest.mark.parametrize("options", OPTIONS)
async def test_a_user_is_not_erased(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, options: str
) -> None:
    user, admin = await create_user(db, username="ada"), signed_in(await create_superuser(db), settings)
    await refer_to(db, "user", user.id, options)

    assert_held(await client.delete("db_user/ada", headers=admin), "post", "fk_post_user")

    assert await count(db, User) == 2
    assert await count(db, SecurityEvent) == 0
    assert (await client.get("user/ada")).status_code == 200
    await (await db.connection()).execute(text("DELETE FROM post"))
    await db.commit()
    assert (await client.delete("db_user/ada", headers=admin)).status_code == 200


async def test_of_several_relations_the_next_is_named_once_the_first_is_gone(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user, admin = await create_user(db, username="ada"), signed_in(await create_superuser(db), settings)
    await refer_to(db, "user", user.id, "")
    await refer_to(db, "user", user.id, "ON DELETE CASCADE", name="profile")
    await refer_to(db, "user", user.id, "ON DELETE RESTRICT", name="invoice")

    first = (await client.delete("db_user/ada", headers=admin)).json()["table"]
    assert first in {"post", "invoice"}
    await (await db.connection()).execute(text(f"DROP TABLE {first}"))
    await db.commit()
    (second,) = {"post", "invoice"} - {first}
    assert_held(await client.delete("db_user/ada", headers=admin), second, f"fk_{second}_user")


@pytest.mark.parametrize("options", OPTIONS)
async def test_a_tier_and_a_rate_limit_are_not_deleted(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, options: str
) -> None:
    admin = signed_in(await create_superuser(db), settings)
    pro = await create_tier(db, "pro")
    rule = await create_rate_limit(db, pro)
    plain = await create_tier(db, "plain")
    await refer_to(db, "tier", plain.id, options, name="plan")
    await refer_to(db, "rate_limit", rule.id, options, name="note")

    assert_held(await client.delete("tier/plain", headers=admin), "plan", "fk_plan_tier")
    assert_held(await client.delete(f"tier/pro/rate_limit/{rule.id}", headers=admin), "note", "fk_note_rate_limit")
    # The tier's rules go with it, so what holds one of them holds the tier.
    assert_held(await client.delete("tier/pro", headers=admin), "note", "fk_note_rate_limit")
    assert (await count(db, Tier), await count(db, RateLimit)) == (2, 1)


async def test_what_a_trigger_keeps_is_a_conflict(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    await create_user(db, username="ada")
    admin = signed_in(await create_superuser(db), settings)
    connection = await db.connection()
    for statement in (
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'keep %', OLD.email; END $$",
        'CREATE TRIGGER keep BEFORE DELETE ON "user" FOR EACH ROW EXECUTE FUNCTION keep()',
    ):
        await connection.execute(text(statement))
    await db.commit()

    answer = await client.delete("db_user/ada", headers=admin)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:problem-type:constraint-conflict")
    assert "ada@" not in answer.text
    assert await count(db, User) == 2
