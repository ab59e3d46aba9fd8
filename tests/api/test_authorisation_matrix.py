"""Who may do what: every route, asked by every kind of caller, against the table in `authorisation_matrix.py`."""

import re
from collections.abc import AsyncIterator, Iterator
from itertools import count

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import PREFIX, build_router
from app.core.config import Settings, get_settings
from app.core.mounts import all_routes
from app.core.setup import create_application
from app.core.utils import queue
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_users import crud_users
from app.models.mail_token import MailPurpose
from app.models.user import User
from scripts.embedded import Valkey
from tests.api.authorisation_matrix import BODIES, CALLERS, MATRIX, NEED_A_COOKIE, NEED_AN_ENDED_TASK, Body, World
from tests.conftest import Execute, cloned_database
from tests.helper import (
    PASSWORD,
    all_rows,
    create_rate_limit,
    create_superuser,
    create_tier,
    create_user,
    session_of,
    signed_in,
)
from tests.images import png

pytestmark = pytest.mark.anyio

_number = count(1)


@pytest.fixture(scope="module")
def database(execute: Execute, migrated_template: str) -> Iterator[str]:
    """One database for all cells: each has rows of its own in it, and making a database takes longer than a cell."""
    with pytest.MonkeyPatch.context() as monkeypatch, cloned_database(execute, monkeypatch, migrated_template) as name:
        yield name


@pytest.fixture(scope="module")
def settings(database: str, valkey: Valkey) -> Settings:
    return get_settings()


@pytest.fixture(scope="module")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app):
        yield app


async def build_world(client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, template: str) -> World:
    owner, number = await create_user(db), next(_number)
    tier = await create_tier(db, f"tier {number}")
    rate_limit = await create_rate_limit(db, tier)
    task = await client.post("tasks/task", params={"message": "hello"}, headers=signed_in(owner, settings))
    path = {
        "username": owner.username,
        "name": tier.name,
        "tier_name": tier.name,
        "id": rate_limit.id,
        "task_id": task.json()["id"],
    }
    if template.startswith("/media/"):
        path |= await stored_image(client, owner, settings)
    if template in NEED_AN_ENDED_TASK:
        await queue.request_cancel(db, path["task_id"])
    mail_tokens = {purpose: await crud_mail_tokens.issue(db, purpose, owner) or "" for purpose in MailPurpose}
    return World(owner, path, tier.id, mail_tokens, new=f"new{number}")


async def stored_image(client: httpx2.AsyncClient, owner: User, settings: Settings) -> dict[str, str]:
    """The parts of its key."""
    headers = signed_in(owner, settings)
    answer = await client.put(f"user/{owner.username}/profile_image", content=png(), headers=headers)
    *_, folder, owner_id, name = answer.json()["profile_image_url"].split("/")
    return {"folder": folder, "owner": owner_id, "name": name}


async def caller_of(kind: str, world: World, db: AsyncSession) -> User | None:
    if kind == "anonymous":
        return None
    if kind == "owner":
        return world.owner
    return await (create_superuser(db) if kind == "superuser" else create_user(db))


async def sign_in(client: httpx2.AsyncClient, user: User) -> dict[str, str]:
    """The headers of a real login; the client keeps its cookie."""
    answer = await client.post("login", data={"username": user.username, "password": PASSWORD})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.mark.parametrize("kind", CALLERS)
@pytest.mark.parametrize(("method", "template"), MATRIX)
async def test_each_caller_gets_the_answer_in_the_table(
    method: str, template: str, kind: str, client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    world = await build_world(client, db, settings, template)
    caller = await caller_of(kind, world, db)
    headers = {}
    if caller and (method, template) in NEED_A_COOKIE:
        headers = await sign_in(client, caller)
    elif caller:
        headers = signed_in(caller, settings)
    if kind == "deleted" and caller:
        await crud_users.soft_delete(db, caller)
    await db.commit()
    before = await all_rows(db)

    body: Body = BODIES.get((method, template), lambda _: {})
    # Two kinds of things are called by an `id`.
    path = world.path | ({"id": session_of(world.owner)} if "sessions" in template else {})
    lacking = set(re.findall(r"{(\w+)}", template)) - set(path)
    assert not lacking, f"build_world in this file has to make what these parameters of the path name: {lacking}"
    answer = await client.request(method, template.format_map(path).removeprefix("/"), headers=headers, **body(world))

    expected = MATRIX[method, template][CALLERS.index(kind)]
    assert answer.status_code == expected, answer.text
    if expected >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if expected == 401 else None)
        assert await all_rows(db) == before, "a refused request changed something"


async def test_the_document_says_where_signing_in_is_needed(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            row = MATRIX.get((method.upper(), path.removeprefix(PREFIX)))
            if row is None:
                continue  # The test below says so.
            anonymous = row[CALLERS.index("anonymous")]
            security = operation.get("security", [{}])
            assert ({} in security) is (anonymous != 401), (method, path)


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Every route of an app below `/api/v1`, those of mounted applications and WebSockets included."""
    return {
        (method, template.removeprefix(PREFIX))
        for template, context in all_routes(app)
        if getattr(context, "dependant", None) is not None and template.startswith(f"{PREFIX}/")
        for method in context.methods or {"WEBSOCKET"}
    }


async def test_the_table_has_every_route_and_no_other(app: FastAPI) -> None:
    routes = routes_of(app)
    missing, gone = sorted(routes - set(MATRIX)), sorted(set(MATRIX) - routes)
    lines = "\n".join(f"    {route}: (401, 200, 403, 401, 200)," for route in missing)
    assert not missing, f"MATRIX in tests/api/authorisation_matrix.py lacks these rows, each {CALLERS}:\n{lines}"
    assert not gone, f"MATRIX in tests/api/authorisation_matrix.py has rows of routes that are not there: {gone}"
    assert set(BODIES) | NEED_A_COOKIE <= set(MATRIX)


async def test_no_route_escapes_the_table(settings: Settings) -> None:
    router, sub = build_router(settings), FastAPI()

    async def anything() -> None: ...

    router.add_api_websocket_route("/socket", anything)
    sub.add_api_route("/page", anything)
    sub.add_api_websocket_route("/socket", anything)
    app = create_application(router, settings)
    app.mount("/api/v1/sub", sub)
    app.add_api_route("/api/v1/later", anything)
    assert routes_of(app) - set(MATRIX) == {
        ("WEBSOCKET", "/socket"),
        ("GET", "/sub/page"),
        ("WEBSOCKET", "/sub/socket"),
        ("GET", "/later"),
    }
