"""What an operator sees of the cache, and drops from it."""

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import APIKeyHeader
from redis import Redis
from starlette.requests import Request
from starlette.responses import Response

from app.core.setup import create_application
from app.core.utils.cache import (
    Cache,
    CachedVariant,
    KnownPrefix,
    UnknownPrefix,
    cache,
    entries_of,
    inspection,
    known_prefixes,
    purge,
)
from app.core.utils.cache.store import NOTES, Lease
from app.core.utils.redis_link import LinkError
from scripts.embedded import Valkey
from tests.conftest import whole_app
from tests.core.utils.cache.conftest import CacheSettings, Stored, started, states
from tests.core.utils.test_redis_link import stopped

pytestmark = pytest.mark.anyio

SECRET = "canary-of-a-body"
KEY = "the-key-of-a-caller"
router = APIRouter(prefix="/api")


@router.get("/things/{thing_id}")
@cache("thing", expiration=60, stale_while_revalidate=30)
async def read_thing(thing_id: int, response: Response, size: int = 1) -> str:
    response.headers["X-Secret"] = SECRET
    response.headers["Last-Modified"] = "Wed, 25 Nov 2026 12:00:00 GMT"
    return SECRET * size


@router.get("/things/{thing_id}/parts")
@cache("thing")
async def read_parts(thing_id: int) -> str:
    return SECRET


@router.get("/slow/{thing_id}")
@cache("slow", lease=30)
async def read_slowly(thing_id: int, request: Request) -> str:
    await request.app.state.release.wait()
    return SECRET


@router.get("/mine/{thing_id}", dependencies=[Depends(APIKeyHeader(name="X-Key"))])
@cache("mine")
async def read_mine(thing_id: int) -> str:
    return SECRET


@router.get("/all")
@cache("things", resource_id="all")
async def read_all() -> str:
    return SECRET


@router.get("/{name}/posts/{post_id}")
@cache("{name}_posts", resource_id_name="post_id")
async def read_post(name: str, post_id: int) -> str:
    return SECRET


@router.get("/odd/{name}")
@cache("odd[*]?:{name}", resource_id="x")
async def read_odd(name: str) -> str:
    return SECRET


@router.patch("/changed/{thing_id}")
@cache("changed")
async def change(thing_id: int) -> None: ...


TEMPLATES = ["mine", "odd[*]?:{name}", "slow", "thing", "things", "{name}_posts"]


@pytest.fixture
def app(cache_only: CacheSettings) -> FastAPI:
    return create_application(router, cache_only)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    app.state.release = asyncio.Event()
    async with started(app) as client:
        yield client
        app.state.release.set()


async def fill(client: httpx2.AsyncClient, *paths: str, **headers: str) -> None:
    for path in paths:
        assert (await client.get(path, headers=headers)).headers["X-Cache"] == "MISS"


def opened(app: FastAPI) -> Cache:
    found: Cache = app.state.cache
    return found


async def purged(app: FastAPI, template: str, resource_id: object = None) -> int | None:
    return await purge(opened(app), template, resource_id, known=known_prefixes(app))


# ---- Prefixes ----


def test_the_prefixes_are_those_of_cached_routes(app: FastAPI) -> None:
    found = {prefix.template: prefix for prefix in known_prefixes(app)}
    assert list(found) == TEMPLATES
    assert found["thing"] == KnownPrefix("thing", (), ("/api/things/{thing_id}", "/api/things/{thing_id}/parts"), ())
    assert found["things"] == KnownPrefix("things", (), ("/api/all",), ("all",))
    posts = found["{name}_posts"]
    assert posts == KnownPrefix("{name}_posts", ("name",), ("/api/{name}/posts/{post_id}",), ())
    assert posts.fill(name="a:b*") == "a%3Ab%2A_posts"
    with pytest.raises(KeyError):
        posts.fill()


def test_the_whole_app_has_some_and_no_tables_of_routes_disturb() -> None:
    found = {prefix.template: prefix for prefix in known_prefixes(whole_app())}
    assert found["tier"].paths == ("/api/v1/tier/{name}",)
    assert found["tiers"].fixed_ids == ("all",)


# ---- Entries ----


async def test_each_variant_is_told_of_without_its_body(app: FastAPI, client: httpx2.AsyncClient) -> None:
    assert await entries_of(opened(app), "thing", 1) == []
    await fill(client, "api/things/1", "api/things/1?size=100", "api/things/2")
    etag = (await client.get("api/things/1")).headers["etag"]
    large, small = await entries_of(opened(app), "thing", 1)
    assert large.body_bytes == 2 + 100 * len(SECRET)
    assert small.body_bytes == 2 + len(SECRET)
    assert large.id != small.id
    assert len(small.id) == 8
    assert (small.status, small.is_being_computed) == (200, False)
    assert small.age_seconds is not None
    assert 0 <= small.age_seconds < 30
    assert small.fresh_seconds + small.age_seconds == pytest.approx(60, abs=0.001)
    assert small.stale_seconds == pytest.approx(30)
    assert dict(small.headers) == {
        "content-type": "application/json",
        "etag": etag,
        "last-modified": "Wed, 25 Nov 2026 12:00:00 GMT",
    }
    assert SECRET not in repr([large, small])


async def test_who_asked_is_not_told(app: FastAPI, client: httpx2.AsyncClient) -> None:
    await fill(client, "api/mine/1", **{"X-Key": KEY})
    await fill(client, "api/mine/1", **{"X-Key": "another"})
    found = await entries_of(opened(app), "mine", 1)
    assert len(found) == 2
    assert KEY not in repr(found)
    assert KEY.encode().hex() not in repr(found)


async def test_what_gets_older_is_stale_and_then_cannot_be_served(
    app: FastAPI, client: httpx2.AsyncClient, stored: Stored
) -> None:
    await fill(client, "api/things/1")
    stored.make_older("thing:1", 65)
    (variant,) = await entries_of(opened(app), "thing", 1)
    assert variant.age_seconds is not None
    assert 65 <= variant.age_seconds < 90
    assert variant.fresh_seconds == 0
    assert variant.stale_seconds + variant.age_seconds == pytest.approx(90, abs=0.001)
    stored.make_older("thing:1", 60)
    (variant,) = await entries_of(opened(app), "thing", 1)
    assert (variant.fresh_seconds, variant.stale_seconds) == (0, 0)


async def test_what_is_being_computed_is_told_of(app: FastAPI, client: httpx2.AsyncClient) -> None:
    asking = asyncio.create_task(client.get("api/slow/1"))
    found: list[CachedVariant] = []
    async with asyncio.timeout(10):
        while not found:
            await asyncio.sleep(0.01)
            found = await entries_of(opened(app), "slow", 1)
    assert found == [CachedVariant(found[0].id, is_being_computed=True)]
    app.state.release.set()
    await asking
    (after,) = await entries_of(opened(app), "slow", 1)
    assert (after.id, after.is_being_computed, after.status) == (found[0].id, False, 200)


async def test_of_much_only_some_is_read(
    app: FastAPI, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(client, *(f"api/things/1?size={number}" for number in range(1, 21)))
    monkeypatch.setattr(inspection, "MOST_BYTES", 1500)
    found = await entries_of(opened(app), "thing", 1)
    assert len(found) == 20
    assert all(variant.body_bytes for variant in found)
    assert 0 < sum(variant.status is not None for variant in found) < 8
    monkeypatch.setattr(inspection, "MOST_FIELDS", 5)
    assert len(await entries_of(opened(app), "thing", 1)) == 5


async def test_headers_that_are_too_long_are_cut_off(
    app: FastAPI, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(client, "api/things/1?size=5")
    monkeypatch.setattr(inspection, "LONGEST_HEAD", 20)
    (variant,) = await entries_of(opened(app), "thing", 1)
    assert (variant.status, variant.body_bytes) == (200, 2 + 5 * len(SECRET))
    assert all(len(name) + len(value) < 20 for name, value in variant.headers)


@pytest.mark.parametrize(
    "fields", [{b"v": b"x"}, {b"v" * 17: b"x"}, {b"l" * 17: b"x"}, {b"l" * 17: b":99999999999999"}]
)
async def test_what_is_not_ours_is_not_shown(
    app: FastAPI, client: httpx2.AsyncClient, stored: Stored, fields: dict[bytes, bytes]
) -> None:
    stored.client.hset("thing:1", mapping=fields)
    found = await entries_of(opened(app), "thing", 1)
    assert [(variant.status, variant.body_bytes, variant.is_being_computed) for variant in found] in (
        [],
        [(None, 1, False)],
    )
    stored.client.delete("thing:1")
    stored.client.set("thing:1", SECRET)
    assert await entries_of(opened(app), "thing", 1) == []


# ---- Purge ----

OTHERS: dict[str, Any] = {
    "slipway:workers:told": {"thing": 1},
    "slipway:recent_posts:1": {"a": 1},
    "slipway:x_posts": {"a": 1},
    "{slipway:recent}:1_posts:1": {"a": 1},
    "rate:a_posts": {"a": 1},
    "rate:{user:5}:/api/thing:*": {"used": 1},
    "arq:y_posts": {"a": 1},
    "thing": {"a": 1},
    "thing:1:more": {"a": 1},
    "another_thing:1": {"a": 1},
    "oddly:a:x": {"a": 1},
    "odd[*]?:a:x:y": {"a": 1},
}


@pytest.fixture
def others(stored: Stored) -> Stored:
    """What is not the cache's, and looks like it."""
    for key, fields in OTHERS.items():
        stored.client.hset(key, mapping=fields)
    stored.client.hset(b"\xff_posts:1", "a", 1)
    stored.client.set("thing:text", SECRET)
    return stored


async def test_an_unknown_prefix_is_refused(app: FastAPI, client: httpx2.AsyncClient, others: Stored) -> None:
    before = set(others.client.keys())
    for template in ("*", "", "thin", "thing*", "slipway", "changed", "a_posts", "{name}"):
        with pytest.raises(UnknownPrefix) as refusal:
            await purged(app, template)
        assert refusal.value.status_code == 404
    assert set(others.client.keys()) == before


PATHS = [
    "api/things/1",
    "api/things/1?size=2",
    "api/things/2",
    "api/all",
    "api/a/posts/1",
    "api/b*:c/posts/1",
    "api/a/posts/2",
    "api/odd/a",
    "api/odd/b",
]


@pytest.mark.parametrize(
    ("template", "resource_id", "gone"),
    [
        ("thing", 1, ["thing:1"]),
        ("thing", 3, []),
        ("thing", "*", []),
        ("thing", None, ["thing:1", "thing:2"]),
        ("things", "all", ["things:all"]),
        ("things", None, ["things:all"]),
        ("{name}_posts", 1, ["a_posts:1", "b%2A%3Ac_posts:1"]),
        ("{name}_posts", None, ["a_posts:1", "a_posts:2", "b%2A%3Ac_posts:1"]),
        ("odd[*]?:{name}", "x", ["odd[*]?:a:x", "odd[*]?:b:x"]),
        ("odd[*]?:{name}", None, ["odd[*]?:a:x", "odd[*]?:b:x"]),
        ("odd[*]?:{name}", "y", []),
        ("mine", None, []),
    ],
)
async def test_what_is_named_is_dropped_and_nothing_else(
    app: FastAPI, client: httpx2.AsyncClient, others: Stored, template: str, resource_id: object, gone: list[str]
) -> None:
    await fill(client, *PATHS)
    before = set(others.client.keys()) - {NOTES.encode()}
    assert await purged(app, template, resource_id) == len(gone)
    after = set(others.client.keys()) - {NOTES.encode()}
    assert before - after == {key.encode() for key in gone}
    again = states(*[await client.get(path) for path in PATHS])
    assert again.count("MISS") == (len(gone) + 1 if "thing:1" in gone else len(gone))


@pytest.mark.parametrize("resource_id", [1, None])
async def test_what_is_being_computed_is_not_stored_after(
    app: FastAPI, client: httpx2.AsyncClient, resource_id: int | None
) -> None:
    asking = asyncio.create_task(client.get("api/slow/1"))
    async with asyncio.timeout(10):
        while not await entries_of(opened(app), "slow", 1):  # noqa: ASYNC110 -- it asks another process
            await asyncio.sleep(0.01)
    assert await purged(app, "slow", resource_id) == 1
    app.state.release.set()
    assert (await asking).status_code == 200
    assert await entries_of(opened(app), "slow", 1) == []


async def test_who_has_read_before_and_takes_a_lease_after_does_not_store(
    app: FastAPI, client: httpx2.AsyncClient
) -> None:
    store = opened(app).store
    before = perf_counter()
    assert await purged(app, "thing") == 0
    lease = await store.take("thing:9", b"0" * 16, 5)
    assert isinstance(lease, Lease)
    assert not store.covers(lease, before)


async def test_more_than_a_page_is_dropped(app: FastAPI, client: httpx2.AsyncClient, stored: Stored) -> None:
    with stored.client.pipeline() as pipeline:
        for number in range(2500):
            pipeline.hset(f"thing:{number}", "a", 1)
            pipeline.hset(f"other:{number}", "a", 1)
        pipeline.execute()
    assert await purged(app, "thing") == 2500
    assert stored.client.dbsize() in {2500, 2501}


async def test_while_the_server_hangs_one_resource_waits_and_more_is_refused(
    app: FastAPI, client: httpx2.AsyncClient, valkey: Valkey
) -> None:
    await fill(client, "api/things/1", "api/things/2")
    with Redis(port=valkey.port) as redis, stopped(redis):
        assert await purged(app, "thing", 1) is None
        with pytest.raises(LinkError):
            await purged(app, "thing")
        with pytest.raises(LinkError):
            await entries_of(opened(app), "thing", 1)
    async with asyncio.timeout(20):
        while not opened(app).usable:  # noqa: ASYNC110 -- of all kinds of things
            await asyncio.sleep(0.02)
    assert states(await client.get("api/things/1"), await client.get("api/things/2")) == ["MISS", "HIT"]


async def test_one_resource_of_a_filled_prefix_is_counted_and_nobody_else_s_is_touched(
    app: FastAPI, client: httpx2.AsyncClient
) -> None:
    await fill(client, "api/a/posts/1", "api/b/posts/1")

    async def purged_of(name: str, template: str = "{name}_posts") -> int | None:
        return await purge(opened(app), template, 1, known=known_prefixes(app), values={"name": name})

    assert [await purged_of("a") for _ in range(2)] == [1, 0]
    assert (await client.get("api/b/posts/1")).headers["X-Cache"] == "HIT"
    bare = KnownPrefix("{name}", ("name",), (), ())
    with pytest.raises(UnknownPrefix):
        await purge(opened(app), "{name}", "recent", known=[bare], values={"name": "slipway"})
