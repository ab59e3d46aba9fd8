"""All routes of the console at once: a new one that lets in who should not come in, or changes by GET, fails here."""

from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.models.tier import Tier
from app.models.user import User
from tests.admin.conftest import app_with_console
from tests.admin.operator import SAME_ORIGIN, console_of, post, sign_in, token_of
from tests.admin.routes import UNSAFE, addresses_of, crawl, keys_of
from tests.admin.world import create_world
from tests.conftest import client_of
from tests.helper import all_rows, create_superuser, create_user

pytestmark = pytest.mark.anyio

# What would change something, wherever it is taken.
FORM = {
    "name": "changed",
    "username": "changed",
    "email": "changed@example.com",
    "hashed_password": "changed",
    "is_superuser": "true",
    "tier_id": "1",
    "path": "*",
    "limit": "1",
    "period": "1",
    "pk": "1",
    "pks": "1",
    "action": "delete",
    "function": "",
    "prefix": "tiers",
}
QUERY = {"key": "tier", "pk": "1", "pks": "1", "name": "delete", "field": "name"}


@pytest.fixture
async def world(operator: httpx2.AsyncClient, db: AsyncSession) -> dict[str, set[str]]:
    """Something of everything is there, and the operator is signed in. All rows, to compare."""
    await create_world(db)
    return await all_rows(db)


async def rows_of(db: AsyncSession) -> dict[str, set[str]]:
    await db.rollback()
    return await all_rows(db)


# ---- Who comes in ----


async def test_without_signing_in_no_route_says_anything(app: FastAPI, db: AsyncSession, settings: Settings) -> None:
    """By default it is denied: only the form, and the files that it needs, are for everybody."""
    await create_world(db)
    before = await rows_of(db)
    for address in addresses_of(app):
        for method in ("GET", "HEAD", "OPTIONS", *UNSAFE):
            async with console_of(app) as stranger:
                answer = await stranger.request(method, address, params=QUERY)
            if address == "login" and method in {"GET", "HEAD"}:
                assert answer.status_code == 200
            elif method in UNSAFE:
                assert answer.status_code == 403, (method, address)
            else:
                assert answer.status_code == 303, (method, address)
                assert answer.headers["Location"].startswith("/admin/login?next=")
                assert answer.content == b""
    assert await rows_of(db) == before


async def test_somebody_signed_in_who_is_no_superuser_is_a_stranger(
    app: FastAPI, operator: httpx2.AsyncClient, superuser: User, db: AsyncSession
) -> None:
    token = await token_of(operator)
    superuser.is_superuser = False
    await db.commit()
    before = await rows_of(db)
    for address in addresses_of(app):
        if address != "login":
            assert (await operator.get(address, params=QUERY)).status_code == 303, address
        answer = await operator.post(address, data={**FORM, "csrftoken": token}, headers=SAME_ORIGIN)
        assert answer.status_code == 403, address
    assert await rows_of(db) == before


def test_the_console_can_be_switched_off(settings: Settings) -> None:
    app = app_with_console(settings.model_copy(update={"CONSOLE_ENABLED": False}))
    assert "/admin" not in {getattr(route, "path", None) for route in app.router.routes}


# ---- Changes need the token that belongs to the login, from the console's own pages ----


@pytest.mark.parametrize(
    "how",
    ["no token", "empty", "foreign", "visitor", "earlier login", "query", "header empty", "json", "text", "cookie"],
)
async def test_no_change_without_the_token_of_this_login(
    app: FastAPI, operator: httpx2.AsyncClient, superuser: User, db: AsyncSession, world: dict[str, Any], how: str
) -> None:
    own = await token_of(operator)
    content: dict[str, Any] = {"data": FORM}
    params, headers = dict(QUERY), dict(SAME_ORIGIN)
    match how:
        case "empty":
            content = {"data": {**FORM, "csrftoken": ""}}
        case "foreign":
            other = await create_superuser(db)
            async with console_of(app) as console:
                await sign_in(console, other)
                content = {"data": {**FORM, "csrftoken": await token_of(console)}}
        case "visitor":
            async with console_of(app) as console:
                content = {"data": {**FORM, "csrftoken": await token_of(console)}}
        case "earlier login":
            async with console_of(app) as console:
                await sign_in(console, superuser)
                content = {"data": {**FORM, "csrftoken": await token_of(console)}}
        case "query":
            params |= {"csrftoken": own, "X-CSRFToken": own}
        case "header empty":  # A header goes before the form's field.
            content, headers["X-CSRFToken"] = {"data": {**FORM, "csrftoken": own}}, ""
        case "json":
            content = {"json": {**FORM, "csrftoken": own}}
        case "text":
            content = {"content": f"csrftoken={own}&name=changed"}
            headers["Content-Type"] = "text/plain"
        case "cookie":
            operator.cookies.set("csrftoken", own, domain="test.local", path="/")
            operator.cookies.set("starlette_admin_csrftoken", own, domain="test.local", path="/")
    before = await rows_of(db)
    for address in addresses_of(app):
        for method in UNSAFE:
            answer = await operator.request(method, address, params=params, headers=headers, **content)
            assert answer.status_code == 403, (method, address)
    assert await rows_of(db) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # a sub-domain, or another port
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://test"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://sub.test"},
        {"Origin": "http://test:8080"},
        {"Origin": "http://test.evil.example"},
        {"Origin": "http://test@evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[broken"},
    ],
)
async def test_no_change_from_another_site_even_with_the_token(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession, headers: dict[str, str], world: dict[str, Any]
) -> None:
    form = {**FORM, "csrftoken": await token_of(operator)}
    before = await rows_of(db)
    for address in addresses_of(app):
        answer = await operator.post(address, params=QUERY, data=form, headers=headers)
        assert answer.status_code == 403, address
    assert await rows_of(db) == before


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_scripts_of_other_sites_read_nothing_and_their_links_lead_here(
    operator: httpx2.AsyncClient, site: str
) -> None:
    """Not even where CORS lets them ask the API."""
    for mode, status in (("cors", 403), ("no-cors", 403), ("same-origin", 403), (None, 403), ("navigate", 200)):
        headers = {"Sec-Fetch-Site": site} | ({"Sec-Fetch-Mode": mode} if mode else {})
        answer = await operator.get("tier/list", headers=headers)
        assert answer.status_code == status, mode
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [SAME_ORIGIN, {"Origin": "http://test"}, {}, SAME_ORIGIN | {"Origin": "null"}, {"Sec-Fetch-Site": "none"}],
)
async def test_with_the_token_it_is_changed(
    operator: httpx2.AsyncClient, db: AsyncSession, headers: dict[str, str]
) -> None:
    """The other side of the tests above: it was the token that was missing, and the site that was wrong."""
    token = await token_of(operator)
    answer = await operator.post("tier/create", data={**FORM, "csrftoken": token}, headers=headers)
    assert answer.status_code == 303
    answer = await operator.post("tier/create", data={"name": "two"}, headers={**headers, "X-CSRFToken": token})
    assert answer.status_code == 303
    tiers = list(await db.exec(select(Tier.name).order_by(col(Tier.id))))
    assert tiers == ["changed", "two"]


# ---- What no request may do ----


async def test_reading_changes_nothing(
    operator: httpx2.AsyncClient, app: FastAPI, db: AsyncSession, world: Any
) -> None:
    kinds = {}
    async for answer in crawl(operator):
        assert answer.status_code == 200, answer.url
        kinds[answer.url.path] = answer
    lists = {f"/admin/{key}/list" for key in keys_of(app)}
    assert lists <= kinds.keys(), "every list is in the menu"
    for address in addresses_of(app):
        for key in keys_of(app):
            answer = await operator.get(address.replace("tier", key, 1), params=QUERY | {"key": key})
            assert answer.status_code < 500, answer.url
    assert await rows_of(db) == world


async def test_fields_that_no_form_has_change_nothing(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession
) -> None:
    person = await create_user(db, username="victim")
    columns = {"id": "99", "hashed_password": "x", "is_superuser": "on", "uuid": "0" * 32, "is_deleted": "on"}
    columns |= {"password_changed_at": "", "created_at": "2000-01-01 00:00:00", "deleted_at": "2000-01-01 00:00:00"}
    columns |= {"email_verified_at": "2000-01-01 00:00:00", "password_expires_at": "2000-01-01 00:00:00"}
    before = person.model_dump(exclude={"name", "updated_at"})
    form = {**columns, "username": person.username, "email": person.email, "name": "Another"}
    answer = await post(operator, f"user/edit?pk={person.id}", form)
    assert answer.status_code == 303, "the declared one is changed"
    await db.refresh(person)
    assert person.name == "Another"
    assert person.model_dump(exclude={"name", "updated_at"}) == before

    await post(operator, "tier/create", {**columns, "name": "gold"})
    [tier] = await db.exec(select(Tier))
    assert (tier.id, tier.name) == (1, "gold")
    await post(operator, "tier/edit?pk=1", {**columns, "name": "silver"})
    await db.refresh(tier)
    assert (tier.id, tier.name) == (1, "silver")
    users = list(await db.exec(select(User.username).where(col(User.is_superuser))))
    assert users == ["operator"], "and nobody became a superuser"


QUESTIONS = (
    "sort=hashed_password",
    "sort=hashed_password__asc",
    "sort=password_expires_at__asc",
    "cols=hashed_password",
    "q=argon2",
    "filter=hashed_password__contains%3Dargon2",
    "filter=hashed_password__eq%3Dx&filter=salt__eq%3Dx",
    "filter=id__eq%3D99999999999999999999",
    "filter=id__eq%3Dx&filter=&filter=__&filter=id__nothing%3D1",
    "filter=name__contains%3D%00",
    "search=argon2",
    "hashed_password=x",
    "page=-1",
    "page=99999999999999999999",
    "page=x",
    "page_size=1000000",
    "page_size=-1",
    "sort=&q=%25&q=_",
    "q=%00",
    "q=%ff%fe",
    "q=" + "x" * 5000,
    "where={",
    'where={"hashed_password":{"contains":"argon2"}}',
)


@pytest.mark.parametrize("query", QUESTIONS)
async def test_lists_take_any_question_and_never_tell_of_a_hash(
    operator: httpx2.AsyncClient, app: FastAPI, query: str
) -> None:
    for key in keys_of(app):
        answer = await operator.get(f"{key}/list?{query}")
        assert answer.status_code in {200, 303, 400, 404, 422}, (key, query)
        assert "$argon2" not in answer.text
        assert "SELECT" not in answer.text


async def test_what_the_library_can_do_besides_is_closed(
    app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession, world: dict[str, Any]
) -> None:
    token = await token_of(operator)
    headers = SAME_ORIGIN | {"X-CSRFToken": token}
    before = await rows_of(db)
    for key in keys_of(app):
        csv = {"file": ("rows.csv", b"name\nimported\n", "text/csv")}
        refused = [
            await operator.post(f"_api/{key}/import", files=csv, data={"name": "csv"}, headers=headers),
            await operator.post(f"_api/{key}/action?name=export&format=csv&scope=all", headers=headers),
            await operator.post(f"_api/{key}/inline-edit?pk=1&field=name", data={"name": "x"}, headers=headers),
            await operator.get(f"_api/{key}/inline-edit?pk=1&field=name"),
            await operator.get(f"_api/{key}/inline-edit/row?pk=1"),
            await operator.get(f"_api/{key}/relation-lookup?q=a"),
            await operator.get("_files/local/../../etc/passwd"),
            await operator.get("_files/local/x"),
            await operator.get(f"{key}/import"),
        ]
        for answer in refused:
            assert answer.status_code in {400, 403, 404, 405}, (answer.request.method, answer.url)
            assert "Content-Disposition" not in answer.headers
    assert await rows_of(db) == before


async def test_nothing_of_the_console_is_in_the_api_s_description(app: FastAPI) -> None:
    async with client_of(app) as client:
        answer = await client.get("http://test/openapi.json")
    assert answer.status_code == 200
    assert "/admin" not in answer.text
