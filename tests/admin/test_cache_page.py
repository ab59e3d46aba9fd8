"""The console's page of the cache, over HTTP, with answers that the API has cached."""

import re
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.metrics.recent import Recent
from app.core.utils.cache import Cache, cache, known_prefixes
from app.models.user import User
from scripts.embedded import free_port
from tests.admin.conftest import app_with_console
from tests.admin.operator import SAME_ORIGIN, console_of, post, sign_in, text_of
from tests.admin.people import entries
from tests.conftest import client_of, second_session
from tests.durable_jobs import until
from tests.helper import create_superuser, create_tier, signed_in

pytestmark = pytest.mark.anyio

SCRIPT = '"><script>fail()</script>'


async def x_cache(client: httpx2.AsyncClient, path: str, headers: dict[str, str] | None = None) -> str:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["X-Cache"])


async def purged(console: httpx2.AsyncClient, **values: str) -> str:
    """What the page says after a purge, read as a browser does."""
    answer = await post(console, "cache/purge", values)
    assert answer.status_code == 303
    page = await console.get(answer.headers["location"].removeprefix("/admin/"))
    assert page.status_code == 200
    found = re.search(r'alert-description">(.*?)</div>', page.text, re.DOTALL)
    assert found is not None
    return found[1]


# ---- What is seen ----


async def test_entries_of_a_resource_are_shown(
    app: FastAPI, operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    await create_tier(db, "gold")
    await db.commit()
    assert await x_cache(client, "tier/gold") == "MISS"
    answer = await client.get("tier/gold")
    page = await operator.get("cache", params={"prefix": "tier", "id": "gold"})
    text = text_of(page)
    for part in (
        "The cache is in use",
        "tier: gold",
        "200",
        "content-type: application/json",
        "fresh",
        "/api/v1/tier/{name}",
    ):
        assert part in text, part
    assert f"{len(answer.content)} Bytes" in text
    if etag := answer.headers.get("etag"):
        assert f"etag: {etag}" in text
    assert text.count("application/json") == 1
    assert '"name"' not in page.text.replace('"name":"', "")  # no body

    assert "Nothing is stored of this resource" in text_of(await operator.get("cache?prefix=tier&id=none"))
    for known in known_prefixes(app):
        assert f'<option value="{known.template}"' in page.text


async def test_the_last_hour_is_shown_by_prefix(
    app: FastAPI, operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    await create_tier(db, "gold")
    await db.commit()
    recent: Recent = app.state.recent
    for _ in range(4):
        await client.get("tier/gold")

    async def is_counted() -> bool:
        return "tier" in (await recent.last_hour()).prefixes

    await until(is_counted)
    page = await operator.get("cache")
    row = re.search(r'<th scope="row"[^>]*>tier</th>(.*?)</tr>', page.text, re.DOTALL)
    assert row is not None
    assert re.findall(r"<td>(.*?)</td>", row[1]) == ["75.0 %", "3", "0", "1", "0"]
    assert "Hit ratio by prefix" in page.text
    assert re.search(r'id="cache-now" data-live="\d"', page.text)
    assert "not asked" in text_of(page)


@pytest.mark.parametrize(
    "query", ["prefix=none&id=x", "prefix=tier", "prefix=tier&id=", "id=x", "prefix=%00&id=%00", "prefix=tier&id=%00"]
)
async def test_questions_without_an_answer_are_pages(operator: httpx2.AsyncClient, query: str) -> None:
    assert (await operator.get(f"cache?{query}")).status_code == 200


async def test_script_is_text(operator: httpx2.AsyncClient, app: FastAPI, client: httpx2.AsyncClient) -> None:
    @cache(key_prefix="hostile", resource_id_name="name")
    async def hostile(request: Request, name: str) -> Any:
        return {"name": name}

    app.get("/hostile")(hostile)
    app.router.routes.insert(0, app.router.routes.pop())
    try:
        answer = await client.get("http://test/hostile", params={"name": SCRIPT})
        assert answer.status_code == 200
        page = await operator.get("cache", params={"prefix": "hostile", "id": SCRIPT})
        assert SCRIPT in text_of(page).replace("&#34;", '"')
        assert "content-type: application/json" in text_of(page)
        said = await purged(operator, prefix="hostile", id=SCRIPT, what="resource")
        for text in (page.text, said):
            assert "<script>fail" not in text
        assert "The resource is dropped." in said
        assert (await client.get("http://test/hostile", params={"name": SCRIPT})).headers["X-Cache"] == "MISS"
    finally:
        app.router.routes.pop(0)
    for values in ({"prefix": SCRIPT, "id": SCRIPT}, {"prefix": "tier", "id": SCRIPT}):
        page = await operator.get("cache", params=values)
        assert "<script>fail" not in page.text


# ---- What is dropped ----


async def test_one_resource_is_dropped(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    for name in ("gold", "silver"):
        await create_tier(db, name)
    await db.commit()
    for name in ("gold", "silver"):
        assert [await x_cache(client, f"tier/{name}") for _ in range(2)] == ["MISS", "HIT"]
    answer = await post(operator, "cache/purge", {"prefix": "tier", "id": "gold", "what": "resource"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/cache?prefix=tier&id=gold")
    assert "The resource is dropped." in text_of(await operator.get("cache?prefix=tier&id=gold"))
    assert await x_cache(client, "tier/gold") == "MISS"
    assert await x_cache(client, "tier/silver") == "HIT"
    what = {"prefix": "tier", "id": "gold"}
    assert await entries(db) == [(superuser.username, "cache.purge", "cache tier:gold", what, {"dropped": True})]
    assert await purged(operator, prefix="tier", id="none", what="resource") == "Nothing was stored of the resource."


async def test_a_prefix_is_dropped_when_that_is_confirmed(
    app: FastAPI, operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    for name in ("gold", "silver"):
        await create_tier(db, name)
    await db.commit()
    headers = signed_in(superuser, app.state.settings)
    paths = ("tier/gold", "tier/silver", "tiers")
    for path in paths:
        await x_cache(client, path, headers)
    link = app.state.cache.store.link
    await link.send("SET", "slipway:other", "kept")

    assert "not confirmed" in await purged(operator, prefix="tier", what="prefix")
    assert await entries(db) == []
    assert await x_cache(client, "tier/gold", headers) == "HIT"

    assert await purged(operator, prefix="tier", what="prefix", confirmed="yes") == "Resources dropped of tier: 2."
    assert [await x_cache(client, path, headers) for path in paths] == ["MISS", "MISS", "HIT"]
    assert await link.send("GET", "slipway:other") == b"kept"
    facts = ("cache.purge", "cache tier:*", {"prefix": "tier"}, {"dropped": True})
    assert await entries(db) == [(superuser.username, *facts)]


async def test_what_is_not_the_apps_is_not_dropped(
    operator: httpx2.AsyncClient, app: FastAPI, db: AsyncSession
) -> None:
    link = app.state.cache.store.link
    await link.send("HSET", "slipway:precious", "a", "b")
    for prefix in ("slipway", "*", "", "none", "arq", "tier*"):
        said = await purged(operator, prefix=prefix, id="precious", what="resource")
        assert said == "No route of this app is cached under this prefix."
        said = await purged(operator, prefix=prefix, what="prefix", confirmed="yes")
        assert said == "No route of this app is cached under this prefix."
    assert "say which resource" in await purged(operator, prefix="tier", id="", what="resource")
    assert await link.send("HGET", "slipway:precious", "a") == b"b"
    assert await entries(db) == []


async def test_nothing_is_dropped_without_a_token_or_by_a_get(
    operator: httpx2.AsyncClient, client: httpx2.AsyncClient, db: AsyncSession
) -> None:
    await create_tier(db, "gold")
    await db.commit()
    await x_cache(client, "tier/gold")
    values = {"prefix": "tier", "id": "gold", "what": "resource"}
    assert (await operator.post("cache/purge", data=values, headers=SAME_ORIGIN)).status_code == 403
    assert (await operator.get("cache/purge", params=values)).status_code in (404, 405)
    assert await x_cache(client, "tier/gold") == "HIT"
    assert await entries(db) == []


# ---- A prefix with parameters ----


async def test_parameters_of_a_prefix_are_asked_for(
    operator: httpx2.AsyncClient, app: FastAPI, client: httpx2.AsyncClient, db: AsyncSession, superuser: User
) -> None:
    @cache(key_prefix="{owner}_posts", resource_id_name="number")
    async def posts(request: Request, owner: str, number: int) -> Any:
        return {"owner": owner}

    app.get("/posts/{owner}/{number}")(posts)
    app.router.routes.insert(0, app.router.routes.pop())
    try:
        urls = ["http://test/posts/ann/1", "http://test/posts/bob/1", "http://test/posts/bob/2"]
        for url in urls:
            await x_cache(client, url)
        page = await operator.get("cache", params={"prefix": "{owner}_posts", "id": "1"})
        assert '<label class="form-label" for="parameter-owner">owner</label>' in page.text
        assert "application/json" not in text_of(page)
        values = {"prefix": "{owner}_posts", "id": "1", "parameter-owner": "ann"}
        page = await operator.get("cache", params=values)
        assert "ann_posts: 1" in text_of(page)
        assert "application/json" in text_of(page)
        assert await purged(operator, what="resource", **values) == "The resource is dropped."
        assert await purged(operator, what="resource", **values) == "Nothing was stored of the resource."
        assert [await x_cache(client, url) for url in urls] == ["MISS", "HIT", "HIT"]
        said = await purged(operator, prefix="{owner}_posts", what="prefix", confirmed="yes")
        assert said == "Resources dropped of {owner}_posts: 3."
        assert [await x_cache(client, url) for url in urls] == ["MISS"] * 3
    finally:
        app.router.routes.pop(0)
    assert [target for _, _, target, _, _ in await entries(db)] == [
        *["cache ann_posts:1"] * 2,
        "cache {owner}_posts:*",
    ]


# ---- Valkey away ----


async def test_without_valkey_it_says_so_and_notes_what_was_asked_for(settings: Settings) -> None:
    ports = dict.fromkeys(("REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT"), free_port())
    app = app_with_console(settings.model_copy(update=ports))
    async with app.router.lifespan_context(app), console_of(app) as console, client_of(app) as client:
        async with second_session() as db:
            operator = await create_superuser(db)
            await create_tier(db, "gold")
        assert (await sign_in(console, operator)).status_code == 303
        text = text_of(await console.get("cache?prefix=tier&id=gold"))
        for part in ("Redis/Valkey is away", "The last hour is not known", "what it holds cannot be known"):
            assert part in text, part
        assert (await client.get("tier/gold")).status_code == 200
        assert "before the cache is used again" in await purged(console, prefix="tier", id="gold", what="resource")
        assert "not all of it is dropped" in await purged(console, prefix="tier", what="prefix", confirmed="yes")
        async with second_session() as db:
            assert [(action, target) for _, action, target, _, _ in await entries(db)] == [
                ("cache.purge", "cache tier:gold"),
                ("cache.purge", "cache tier:*"),
                ("cache.purge_failed", "cache tier:*"),
            ]


async def test_a_cache_that_is_not_trusted_is_said_to_be(operator: httpx2.AsyncClient, app: FastAPI) -> None:
    opened: Cache = app.state.cache
    opened.invalidator.trusted = False
    page = await operator.get("cache")
    opened.invalidator.trusted = True
    assert "The cache is not trusted yet" in text_of(page)
