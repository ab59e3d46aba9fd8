"""What cannot work is said at import or when the app is built, in words that help; and what works without a cache."""

from collections.abc import AsyncIterator, Callable, Iterator
from math import inf, nan
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from app.core.config import AppSettings, Settings
from app.core.exceptions.cache_exceptions import (
    CacheError,
    CacheIdentificationInferenceError,
    InvalidRequestError,
    MissingClientError,
)
from app.core.setup import create_application
from app.core.utils.cache import cache, invalidate
from tests.conftest import client_of
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, started, states

pytestmark = pytest.mark.anyio


async def with_one_id(my_id: int, page: str = "") -> int:
    """A handler like any other."""
    return my_id


async def with_two_ids(user_id: int, post_id: int) -> int:
    """A handler whose resource could be either."""
    return user_id + post_id


async def with_nothing() -> None:
    """A handler without parameters."""


# ---- At import ----


@pytest.mark.parametrize(
    ("handler", "options", "words"),
    [
        (with_one_id, {"resource_id_name": "id"}, ["'id'", "my_id, page"]),
        (with_nothing, {}, ["int", "no parameter", "resource_id_name"]),
        (with_one_id, {"resource_id_type": bytes}, ["bytes", "no parameter", "resource_id_name"]),
        (with_one_id, {"resource_id_type": (bytes, float)}, ["bytes or float", "resource_id_name"]),
        (with_two_ids, {}, ["user_id, post_id", "resource_id_name"]),
        (with_one_id, {"resource_id_type": (int, str), "resource_id_name": "my_Id"}, ["'my_Id'", "my_id, page"]),
    ],
)
def test_an_id_that_cannot_be_told_is_refused_at_import(
    handler: Callable[..., Any], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CacheIdentificationInferenceError) as error:
        cache("sample", **options)(handler)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key_prefix": "{name}_posts"}, ["key_prefix", "{name}", "my_id, page"]),
        ({"key_prefix": "{}_posts"}, ["key_prefix", "{}"]),
        ({"key_prefix": "{my_id!r}_posts"}, ["key_prefix", "{my_id}"]),
        ({"key_prefix": "{my_id:>5}_posts"}, ["key_prefix", "{my_id}"]),
        ({"key_prefix": "{my_id.real}_posts"}, ["key_prefix", "{my_id.real}"]),
        ({"key_prefix": "{my_id_posts"}, ["key_prefix", "'{my_id_posts'"]),
        ({"key_prefix": ""}, ["key_prefix", "''"]),
        ({"key_prefix": None}, ["key_prefix", "None"]),
        ({"to_invalidate_extra": {"{name}_posts": "{my_id}"}}, ["to_invalidate_extra", "{name}", "my_id, page"]),
        ({"to_invalidate_extra": {"posts": "{name}"}}, ["to_invalidate_extra", "{name}", "my_id, page"]),
        ({"to_invalidate_extra": {"posts": 7}}, ["to_invalidate_extra", "7"]),
        ({"pattern_to_invalidate_extra": ["{name}_*"]}, ["pattern_to_invalidate_extra", "{name}", "my_id, page"]),
        ({"pattern_to_invalidate_extra": ["posts:{my_id}"]}, ["'posts:{my_id}'", "`*`", "to_invalidate_extra"]),
        ({"pattern_to_invalidate_extra": ["*_posts"]}, ["'*_posts'", "something fixed"]),
        ({"pattern_to_invalidate_extra": ["{my_id}*"]}, ["'{my_id}*'", "something fixed"]),
        ({"pattern_to_invalidate_extra": ["*"]}, ["'*'", "something fixed"]),
        ({"pattern_to_invalidate_extra": [""]}, ["''", "`*`"]),
        ({"pattern_to_invalidate_extra": [7]}, ["7", "`*`"]),
        ({"pattern_to_invalidate_extra": "posts:*"}, ["pattern_to_invalidate_extra", "`*`"]),
        ({"resource_id": "all", "resource_id_name": "my_id"}, ["resource_id", "resource_id_name", "exclude"]),
        ({"unless": "nosuch"}, ["unless", "'nosuch'"]),
        ({"expiration": 0}, ["expiration", "0.001 or more", "0"]),
        ({"expiration": -1}, ["expiration", "-1"]),
        ({"expiration": nan}, ["expiration", "nan"]),
        ({"expiration": inf}, ["expiration", "inf"]),
        ({"jitter": 1}, ["jitter", "below 1", "not 1"]),
        ({"jitter": -0.1}, ["jitter", "-0.1"]),
        ({"jitter": nan}, ["jitter", "nan"]),
        ({"jitter": "0.1"}, ["jitter", "'0.1'"]),
        ({"client_max_age": -1}, ["client_max_age", "0 to 31536000", "-1"]),
        ({"client_max_age": 31_536_001}, ["client_max_age"]),
        ({"client_max_age": 1.5}, ["client_max_age", "1.5"]),
        ({"client_max_age": True}, ["client_max_age", "True"]),
        ({"lease": 0}, ["lease", "0.001 or more"]),
        ({"lease": -0.5}, ["lease", "-0.5"]),
        ({"stale_while_revalidate": -1}, ["stale_while_revalidate", "0 or more"]),
        ({"stale_while_revalidate": nan}, ["stale_while_revalidate"]),
    ],
    ids=repr,
)
def test_options_that_cannot_work_are_refused_at_import(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as error:
        cache(**{"key_prefix": "sample"} | options)(with_one_id)
    for word in words:
        assert word in str(error.value)


async def one_by_one(my_id: int) -> AsyncIterator[int]:
    """A handler whose answer is a stream."""
    yield my_id


def one_by_one_in_a_thread(my_id: int) -> Iterator[int]:
    """The same as a plain function."""
    yield my_id


@pytest.mark.parametrize("handler", [one_by_one, one_by_one_in_a_thread])
def test_a_generator_is_refused_at_import(handler: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError, match=rf"{handler.__name__}.*streamed"):
        cache("sample")(handler)


def test_every_error_is_one_of_the_cache() -> None:
    assert all(
        issubclass(error, CacheError)
        for error in (CacheIdentificationInferenceError, InvalidRequestError, MissingClientError)
    )


# ---- When the app is built ----


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "options", [{"to_invalidate_extra": {"posts": "all"}}, {"pattern_to_invalidate_extra": ["posts:*"]}]
)
def test_a_get_that_is_to_invalidate_is_refused_when_the_app_is_built(
    cache_only: CacheSettings, options: dict[str, Any], method: str
) -> None:
    inner, router = APIRouter(prefix="/deep"), APIRouter()

    @inner.api_route("/sample/{my_id}", methods=[method])
    @cache("sample", **options)
    async def the_handler(my_id: int) -> int:
        return my_id

    router.include_router(inner)
    with pytest.raises(InvalidRequestError, match=r"the_handler.*to_invalidate_extra.*do not work with GET"):
        create_application(router, cache_only)


async def test_a_get_that_is_to_invalidate_is_no_answer_where_the_app_was_not_checked(
    cache_only: CacheSettings, stored: Stored
) -> None:
    app = create_application(APIRouter(), cache_only)

    @app.get("/sample/{my_id}")
    @cache("sample", to_invalidate_extra={"posts": "all"})
    async def sample(my_id: int) -> int:
        return my_id

    async with started(app) as client:
        assert (await client.get("sample/7")).status_code == 500
    assert stored.all_keys() == set()


def test_the_decorator_above_the_routers_is_refused_when_the_app_is_built(cache_only: CacheSettings) -> None:
    router = APIRouter()

    @cache("sample")
    @router.get("/sample/{my_id}")
    async def sample(my_id: int) -> int:
        return my_id

    with pytest.raises(InvalidRequestError, match=r"/sample/\{my_id\}.*below"):
        create_application(router, cache_only)


async def test_a_function_can_be_cached_under_two_names(cache_only: CacheSettings, stored: Stored) -> None:
    async def sample(my_id: int) -> int:
        return my_id

    router = APIRouter()
    for name in ("one", "two"):
        router.get(f"/{name}/{{my_id}}")(cache(name)(sample))

    async with running(router, cache_only) as client:
        for name in ("one", "two"):
            assert (await client.get(f"{name}/7")).json() == 7
    assert stored.all_keys() == {"one:7", "two:7"}


async def test_a_router_can_serve_two_apps(cache_only: CacheSettings, stored: Stored) -> None:
    router, calls = APIRouter(), []

    @router.get("/sample/{my_id}")
    @cache("sample")
    async def sample(my_id: int) -> int:
        calls.append(my_id)
        return my_id

    for _ in range(2):
        async with running(router, cache_only) as client:
            assert (await client.get("sample/7")).json() == 7
    assert calls == [7]


# ---- Without a cache ----


def sample_router() -> APIRouter:
    """A cached route, and one that changes what it answers."""
    router = APIRouter()

    @router.get("/sample/{my_id}")
    @cache("sample")
    async def sample(my_id: int) -> dict[str, int]:
        return {"id": my_id}

    @router.delete("/sample/{my_id}")
    @cache("sample")
    async def erase(my_id: int) -> None:
        return None

    return router


async def test_a_cache_that_is_not_open_is_said_to_be_missing(cache_only: CacheSettings) -> None:
    app = create_application(sample_router(), cache_only)
    bare = FastAPI()
    bare.include_router(sample_router())
    async with client_of(app) as client, client_of(bare) as bare_client:
        for method in ("GET", "DELETE"):
            assert (await client.request(method, "http://test/sample/7")).status_code == 500
            with pytest.raises(MissingClientError, match=r"RedisCacheSettings.*lifespan"):
                await bare_client.request(method, "http://test/sample/7")
    with pytest.raises(MissingClientError):
        await invalidate("sample", 7)


async def test_a_cache_that_is_closed_is_missing_again(cache_only: CacheSettings) -> None:
    app = create_application(sample_router(), cache_only)
    async with started(app) as client:
        assert (await client.get("sample/7")).status_code == 200
    async with client_of(app) as client:
        assert (await client.get("http://test/sample/7")).status_code == 500


async def test_without_cache_settings_everything_works_and_nothing_is_cached(stored: Stored) -> None:
    async with running(sample_router(), AppSettings()) as client:
        for _ in range(2):
            answer = await client.get("sample/7")
            assert answer.json() == {"id": 7}
            assert not {"X-Cache", "ETag", "Age"} & {name.title() for name in answer.headers}
            assert "x-cache" not in answer.headers
            assert "etag" not in answer.headers
        assert (await client.delete("sample/7")).status_code == 200
    assert stored.all_keys() == set()


async def test_an_app_without_a_cache_uses_no_other_apps(cache_only: CacheSettings, stored: Stored) -> None:
    async with running(sample_router(), cache_only) as cached, running(sample_router(), AppSettings()) as uncached:
        assert states(await cached.get("sample/7"), await uncached.get("sample/7")) == ["MISS", None]


async def test_a_decorated_handler_can_be_called_by_hand(settings: Settings, stored: Stored) -> None:
    @cache("sample")
    async def sample(my_id: int, page: int = 1) -> tuple[int, int]:
        """What it does."""
        return my_id, page

    @cache("sample")
    def plain(my_id: int) -> int:
        return my_id

    @cache("sample")
    async def with_request(request: Request | None, my_id: int, response: Response | None = None) -> int:
        return my_id

    assert await sample(7) == (7, 1)
    assert await sample(my_id=7, page=2) == (7, 2)
    assert await plain(7) == 7
    assert await with_request(None, 7) == 7
    assert await with_request(request=None, my_id=7) == 7
    assert stored.all_keys() == set()
    assert sample.__doc__ == "What it does."
    with pytest.raises(TypeError):
        await sample()


async def test_the_documentation_does_not_show_what_the_decorator_adds(cache_only: CacheSettings) -> None:
    app = create_application(sample_router(), cache_only)
    operation = app.openapi()["paths"]["/sample/{my_id}"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["my_id"]
    assert "requestBody" not in operation
