"""Who asks, and who is there: users that sign up and in over HTTP as anybody does, and rows for them to be among."""

import asyncio
import os
from dataclasses import dataclass
from secrets import token_urlsafe
from urllib.parse import urlencode

import httpx2

import src  # noqa: F401 isort: skip  (makes `app` importable)
import asyncpg

USERNAME = "ada"
VISITOR = "visitor"  # who signs in again and again, so that all those logins are not the other's

_FILL = """
    INSERT INTO "user" (uuid, name, username, email, hashed_password, created_at, is_deleted)
    SELECT gen_random_uuid(), 'Person ' || n, 'person' || n, 'person' || n || '@example.com', 'none',
           now() - n * interval '1 second', false
    FROM generate_series((SELECT count(*) FROM "user") + 1, $1::bigint) AS n
"""
_RULES = """
    INSERT INTO rate_limit (tier_id, name, path, "limit", period, created_at)
    SELECT tier.id, 'rule' || n, '/api/v1/other' || n, 1000000, 60, now()
    FROM tier, generate_series(1, $1::bigint) AS n
    WHERE NOT EXISTS (SELECT FROM rate_limit AS other WHERE other.path = '/api/v1/other' || n)
"""


@dataclass(frozen=True, slots=True)
class People:
    """Attributes:
    token: the `Authorization` header of a user who has signed in.
    form: what somebody sends to sign in.
    """

    token: dict[str, str]
    form: str


def sign_up(address: str) -> People:
    """Signs two users up, and one in. Raises: httpx2.HTTPStatusError."""
    password = token_urlsafe(16)
    with httpx2.Client(base_url=f"{address}/api/v1/", timeout=30) as client:
        for name in (USERNAME, VISITOR):
            values = {"name": name, "username": name, "email": f"{name}@example.com", "password": password}
            client.post("user", json=values).raise_for_status()
        answer = client.post("login", data={"username": USERNAME, "password": password}).raise_for_status()
    token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    return People(token, urlencode({"username": VISITOR, "password": password}))


def fill(users: int) -> None:
    """Has so many users there be, all in all, and PostgreSQL know it."""
    asyncio.run(_execute((_FILL, users)))


def add_rules(count: int) -> None:
    """Has the tier that is there have so many rules, for paths that nobody asks for, and gives it to the user."""
    asyncio.run(
        _execute(
            (_RULES, count), ('UPDATE "user" SET tier_id = (SELECT min(id) FROM tier) WHERE username = $1', USERNAME)
        )
    )


async def _execute(*statements: tuple[object, ...]) -> None:
    connection = await asyncpg.connect(
        host=os.environ["POSTGRES_SERVER"],
        port=int(os.environ["POSTGRES_PORT"]),
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        database=os.environ["POSTGRES_DB"],
    )
    try:
        for statement, *values in statements:
            await connection.execute(statement, *values)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
