"""How long browsers and shared caches may keep an answer: `@cache(client_max_age=...)` and `client_max_age(...)`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response, Security
from fastapi.security import APIKeyHeader
from starlette.responses import StreamingResponse

from app.core.client_cache import client_max_age
from app.core.config import AppSettings, ClientSideCacheSettings, RedisCacheSettings, SettingsError
from app.core.setup import create_application
from app.core.utils.cache import cache
from tests.conftest import client_of
from tests.core.utils.cache.conftest import Stored, states, stored

__all__ = ["stored"]  # a fixture

pytestmark = pytest.mark.anyio

REVALIDATE, PRIVATE = "public, no-cache", "private, no-store"
Key = Annotated[str | None, Security(APIKeyHeader(name="X-Key", auto_error=False))]


class ClientSide(AppSettings, ClientSideCacheSettings):
    """An app of middleware alone."""


class BothCaches(AppSettings, ClientSideCacheSettings, RedisCacheSettings):
    """An app with a cache."""


class OnlyOurs(AppSettings, RedisCacheSettings):
    """An app that tells clients nothing."""


@asynccontextmanager
async def asked(
    router: APIRouter, settings: AppSettings | None = None, **kwargs: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_application(router, settings or ClientSide(), **kwargs)
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


# ---- A route without @cache ----


@pytest.mark.parametrize(
    ("seconds", "policy"), [(0, REVALIDATE), (1, "public, max-age=1"), (300, "public, max-age=300")]
)
async def test_a_route_says_it_itself(seconds: int, policy: str) -> None:
    router = APIRouter()

    @router.get("/it", dependencies=[Depends(client_max_age(seconds))])
    async def it() -> dict[str, int]:
        return {"it": 1}

    async with asked(router) as client:
        answer = await client.get("it")
        assert answer.headers["Cache-Control"] == policy
        assert answer.headers["ETag"].startswith('"')
        again = await client.get("it", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["Cache-Control"] == policy
        assert again.headers["ETag"] == answer.headers["ETag"]
        assert again.headers["Vary"] == answer.headers["Vary"]
        assert not {"content-length", "content-type"} & set(again.headers)
        head = await client.head("it")
        assert (head.status_code, head.headers["Cache-Control"]) == (200, policy)
        assert head.headers["Content-Length"] == answer.headers["Content-Length"]


async def test_a_changed_answer_is_sent_in_full() -> None:
    router, value = APIRouter(), ["old"]

    @router.get("/it", dependencies=[Depends(client_max_age(0))])
    async def it() -> str:
        return value[0]

    async with asked(router) as client:
        old = await client.get("it")
        value[0] = "new"
        new = await client.get("it", headers={"If-None-Match": old.headers["ETag"]})
        assert (new.status_code, new.json()) == (200, "new")
        assert new.headers["ETag"] != old.headers["ETag"]
        both = await client.get("it", headers={"If-None-Match": f'W/"x", {new.headers["ETag"]}'})
        assert both.status_code == 304
        assert (await client.get("it", headers={"If-None-Match": '"x", junk, "'})).status_code == 200


async def test_who_has_signed_in_keeps_nothing() -> None:
    router = APIRouter()

    @router.get("/it", dependencies=[Depends(client_max_age(300))])
    async def it(key: Key) -> str:
        return key or "anonymous"

    async with asked(router) as client:
        for headers in ({"X-Key": "a"}, {"Authorization": "Bearer a"}, {"Cookie": "a=b"}):
            answer = await client.get("it", headers=headers)
            assert answer.headers["Cache-Control"] == PRIVATE
            assert "ETag" not in answer.headers
        assert (await client.get("it")).headers["Cache-Control"] == "public, max-age=300"


async def test_errors_changes_and_what_can_tell_callers_apart_are_kept_by_nobody() -> None:
    router = APIRouter(dependencies=[Depends(client_max_age(300))])

    @router.get("/error")
    async def error() -> None:
        raise HTTPException(404)

    @router.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError

    @router.post("/change")
    async def change() -> str:
        return "changed"

    @router.get("/invalid")
    async def invalid(number: int) -> int:
        return number

    @router.get("/cookie")
    async def cookie(response: Response) -> str:
        response.set_cookie("a", "b")
        return "cookie"

    @router.get("/address")
    async def address(request: Request) -> str:
        return str(request.client)

    async with asked(router) as client:
        for path in ("error", "crash", "invalid", "cookie", "address", "nosuch"):
            answer = await client.get(path)
            assert answer.headers["Cache-Control"] == PRIVATE, path
            assert "ETag" not in answer.headers
        assert (await client.post("change")).headers["Cache-Control"] == PRIVATE


async def test_what_stands_nearer_to_the_handler_wins() -> None:
    inner = APIRouter(dependencies=[Depends(client_max_age(20))])

    @inner.get("/router")
    async def of_router() -> str:
        return "router"

    @inner.get("/route", dependencies=[Depends(client_max_age(30))])
    async def of_route() -> str:
        return "route"

    outer = APIRouter(dependencies=[Depends(client_max_age(10))])
    outer.include_router(inner)

    @outer.get("/outer")
    async def of_outer() -> str:
        return "outer"

    async with asked(outer, dependencies=[Depends(client_max_age(5))]) as client:
        told = [(await client.get(path)).headers["Cache-Control"] for path in ("outer", "router", "route")]
    assert told == ["public, max-age=10", "public, max-age=20", "public, max-age=30"]


async def test_a_routes_own_headers_stay() -> None:
    router = APIRouter(dependencies=[Depends(client_max_age(0))])

    @router.get("/policy")
    async def policy(response: Response) -> str:
        response.headers["Cache-Control"] = "max-age=5"
        return "it"

    @router.get("/etag")
    async def etag(response: Response) -> str:
        response.headers["ETag"] = '"own"'
        return "it"

    async with asked(router) as client:
        answer = await client.get("policy")
        assert (answer.headers["Cache-Control"], "ETag" in answer.headers) == ("max-age=5", False)
        answer = await client.get("etag")
        assert (answer.headers["Cache-Control"], answer.headers["ETag"]) == (REVALIDATE, '"own"')


async def test_a_stream_is_not_held_up() -> None:
    router = APIRouter()

    @router.get("/it", dependencies=[Depends(client_max_age(0))])
    async def it() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(parts())

    async with asked(router) as client:
        answer = await client.get("it")
    assert (answer.content, answer.headers["Cache-Control"], "ETag" in answer.headers) == (b"onetwo", REVALIDATE, False)


async def test_a_middleware_that_changes_the_body_has_the_tag_of_what_is_sent() -> None:
    from starlette.middleware.gzip import GZipMiddleware

    router = APIRouter()

    @router.get("/it", dependencies=[Depends(client_max_age(0))])
    async def it() -> str:
        return "x" * 5000

    app = create_application(router, ClientSide())
    app.add_middleware(GZipMiddleware)
    async with client_of(app) as client:
        packed = await client.get("http://test/it", headers={"Accept-Encoding": "gzip"})
        plain = await client.get("http://test/it", headers={"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert packed.headers["Vary"].startswith("Accept-Encoding")


async def test_languages_have_tags_of_their_own() -> None:
    router = APIRouter()

    @router.get("/it", dependencies=[Depends(client_max_age(0))])
    async def it(accept_language: Annotated[str, Header()] = "en") -> str:
        return accept_language

    async with asked(router) as client:
        german = await client.get("it", headers={"Accept-Language": "de"})
        english = await client.get("it", headers={"If-None-Match": german.headers["ETag"]})
    assert "Accept-Language" in german.headers["Vary"]
    assert (english.status_code, english.json()) == (200, "en")


@pytest.mark.parametrize("seconds", [-1, 31_536_001, 1.5, True, "60", None])
def test_what_is_no_age_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match="client_max_age takes a whole number of seconds, 0 to 31536000"):
        client_max_age(seconds)


async def test_settings_that_could_not_say_it_are_refused() -> None:
    for build in (_with_dependency, _with_decorator):
        app = build()
        with pytest.raises(SettingsError, match=r"^/it says client_max_age: .* ClientSideCacheSettings\.$"):
            async with app.router.lifespan_context(app):
                pass


def _with_dependency() -> FastAPI:
    router = APIRouter()
    router.add_api_route("/it", lambda: "it", dependencies=[Depends(client_max_age(0))])
    return create_application(router, AppSettings())


def _with_decorator() -> FastAPI:
    router = APIRouter()

    @router.get("/it")
    @cache("it", resource_id="all", client_max_age=0)
    async def it() -> str:
        return "it"

    return create_application(router, OnlyOurs())


# ---- With @cache ----


def cached(**options: Any) -> APIRouter:
    router = APIRouter()

    @router.get("/it")
    @cache("it", resource_id="all", **options)
    async def it() -> str:
        return "it"

    @router.put("/it")
    @cache("it", resource_id="all")
    async def change() -> str:
        return "changed"

    return router


async def test_browsers_revalidate_what_our_cache_keeps(stored: Stored) -> None:
    async with asked(cached(client_max_age=0), BothCaches()) as client:
        first, hit = await client.get("it"), await client.get("it")
        assert states(first, hit) == ["MISS", "HIT"]
        stored.make_older("it:all", 100)
        old = await client.get("it")
        assert old.headers["Age"] == "100"
        for answer in (first, hit, old):
            assert answer.headers["Cache-Control"] == REVALIDATE
        again = await client.get("it", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.headers["Cache-Control"]) == (304, REVALIDATE)
        head = await client.head("it")
        assert (head.headers["Cache-Control"], head.headers["ETag"]) == (REVALIDATE, first.headers["ETag"])
        assert (await client.put("it")).headers["Cache-Control"] == PRIVATE


@pytest.mark.parametrize(("state", "age"), [("HIT", 9), ("STALE", 15)])
async def test_a_longer_life_outside_counts_from_now(stored: Stored, state: str, age: int) -> None:
    """What is served stale has an age as well, and is as good as new to whoever gets it."""
    router = APIRouter()

    @router.get("/it")
    @cache("it", resource_id="all", expiration=10, stale_while_revalidate=50, client_max_age=300)
    async def it() -> str:
        return "it"

    async with asked(router, BothCaches()) as client:
        assert (await client.get("it")).headers["Cache-Control"] == "public, max-age=300"
        stored.make_older("it:all", age)
        if state == "STALE":  # Somebody else computes a new one.
            stored.client.hset("it:all", b"l" + next(iter(stored.client.hkeys("it:all")))[1:], b"other:9999999999999")
        answer = await client.get("it")
    assert states(answer) == [state]
    assert answer.headers["Age"] == str(age)
    assert answer.headers["Cache-Control"] == f"public, max-age={300 + age}"


async def test_without_it_the_settings_age_counts(stored: Stored) -> None:
    async with asked(cached(), BothCaches(CLIENT_CACHE_MAX_AGE=7)) as client:
        assert (await client.get("it")).headers["Cache-Control"] == "public, max-age=7"
        assert (await client.get("it")).headers["Cache-Control"] == "public, max-age=7"
    async with asked(cached(client_max_age=3), BothCaches(CLIENT_CACHE_MAX_AGE=7)) as client:
        assert (await client.get("it")).headers["Cache-Control"] == "public, max-age=3"


async def test_an_age_of_nothing_in_the_settings_is_to_ask_each_time(stored: Stored) -> None:
    async with asked(cached(), BothCaches(CLIENT_CACHE_MAX_AGE=0)) as client:
        assert (await client.get("it")).headers["Cache-Control"] == REVALIDATE


async def test_a_private_route(stored: Stored) -> None:
    router = APIRouter()

    @router.get("/it")
    @cache("it", resource_id="all", client_max_age=0)
    async def it(key: Key) -> str:
        return key or "anonymous"

    async with asked(router, BothCaches()) as client:
        mine = await client.get("it", headers={"X-Key": "a"})
        assert (mine.json(), mine.headers["Cache-Control"]) == ("a", PRIVATE)
        hit = await client.get("it", headers={"X-Key": "a"})
        assert (*states(hit), hit.headers["Cache-Control"]) == ("HIT", PRIVATE)
        anonymous = await client.get("it")
        assert (anonymous.json(), anonymous.headers["Cache-Control"]) == ("anonymous", REVALIDATE)
