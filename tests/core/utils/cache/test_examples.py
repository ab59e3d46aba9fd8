"""The caching examples as the template's readers know them, and what they promise."""

from collections.abc import AsyncIterator, Awaitable, Callable
from threading import get_ident
from time import perf_counter
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Path, Request
from pydantic import BaseModel
from sqlalchemy import text
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import get_current_user
from app.core.config import Settings
from app.core.db.database import async_get_db
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils.cache import cache
from app.models.user import User
from tests.conftest import second_session
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, started, states
from tests.helper import create_user, make_room, signed_in

pytestmark = pytest.mark.anyio


# ---- A GET ----


async def test_an_answer_is_stored_under_the_prefix_and_the_named_id(settings: Settings, stored: Stored) -> None:
    calls = []
    app = create_application(APIRouter(), settings)

    @app.get("/sample/{my_id}")
    @cache(key_prefix="sample_data", expiration=3600, resource_id_name="my_id")
    async def sample_endpoint(request: Request, my_id: int):  # type: ignore[no-untyped-def]
        calls.append(my_id)
        return {"data": "my_data"}

    before = perf_counter()
    async with started(app) as client:
        answers = [await client.get("sample/7") for _ in range(3)]
        assert stored.all_keys() == {"sample_data:7"}
        assert 3600 - (perf_counter() - before) - 0.001 <= stored.seconds_left("sample_data:7") <= 3600

        await client.get("sample/8")
        assert stored.all_keys() == {"sample_data:7", "sample_data:8"}

    assert [answer.json() for answer in answers] == [{"data": "my_data"}] * 3
    assert states(*answers) == ["MISS", "HIT", "HIT"]
    assert calls == [7, 8]


async def test_the_id_is_inferred_by_its_type_and_kept_for_an_hour(settings: Settings, stored: Stored) -> None:
    app = create_application(APIRouter(), settings)

    @app.get("/sample/{my_id}")
    @cache(key_prefix="sample_data", resource_id_type=int)
    async def sample_endpoint(request: Request, my_id: int):  # type: ignore[no-untyped-def]
        return {"data": "my_data"}

    before = perf_counter()
    async with started(app) as client:
        assert states(await client.get("sample/7"), await client.get("sample/7")) == ["MISS", "HIT"]

    assert stored.all_keys() == {"sample_data:7"}
    assert 3600 - (perf_counter() - before) - 0.001 <= stored.seconds_left("sample_data:7") <= 3600


@pytest.mark.parametrize("expiration", [2, 30, 60, 90])
async def test_a_key_is_kept_as_long_as_its_answer_is_good(
    cache_only: CacheSettings, stored: Stored, expiration: int
) -> None:
    router = APIRouter()

    @router.get("/sample/{my_id}")
    @cache("sample_data", "my_id", expiration)
    async def sample_endpoint(request: Request, my_id: int) -> int:
        return my_id

    async with running(router, cache_only) as client:
        before = perf_counter()
        await client.get("sample/7")
        left, passed = stored.seconds_left("sample_data:7"), perf_counter() - before

    assert expiration - passed - 0.001 <= left <= expiration


async def test_variants_of_a_resource_share_its_key_and_its_longest_life(
    cache_only: CacheSettings, stored: Stored
) -> None:
    router = APIRouter()

    @router.get("/sample/{my_id}/short")
    @cache("sample_data", "my_id", 30)
    async def short(my_id: int) -> str:
        return "short"

    @router.get("/sample/{my_id}/long")
    @cache("sample_data", "my_id", 300)
    async def long(my_id: int) -> str:
        return "long"

    async with running(router, cache_only) as client:
        for path in ("long", "short"):
            await client.get(f"sample/7/{path}")
        assert [(await client.get(f"sample/7/{path}")).json() for path in ("long", "short")] == ["long", "short"]

    assert stored.all_keys() == {"sample_data:7"}
    assert 295 < stored.seconds_left("sample_data:7") <= 300


async def test_the_type_that_tells_the_id_can_be_any(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    some_uuid = uuid4()

    @router.get("/by-name/{name}")
    @cache("by_name", resource_id_type=str)
    async def by_name(request: Request, name: str, page: int = 1) -> str:
        return name

    @router.get("/by-uuid/{it}")
    @cache("by_uuid", resource_id_type=(UUID, bytes))
    async def by_uuid(request: Request, it: UUID, note: str = "") -> str:
        return str(it)

    @router.get("/by-id/{post_id}")
    @cache("by_id")
    async def by_id(page: Annotated[int, Path(alias="post_id")], post_id: Annotated[int, Path()]) -> int:
        return post_id

    async with running(router, cache_only) as client:
        for path in ("by-name/ada", f"by-uuid/{some_uuid}", "by-id/3"):
            assert states(await client.get(path), await client.get(path)) == ["MISS", "HIT"]

    assert stored.all_keys() == {"by_name:ada", f"by_uuid:{some_uuid}", "by_id:3"}


async def test_the_handler_may_be_written_in_any_way(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    calls: list[str] = []

    @router.get("/last/{my_id}")
    @cache("last", "my_id")
    async def request_last(my_id: int, request: Request):  # type: ignore[no-untyped-def]
        calls.append(request.url.path)
        return {"id": my_id}

    @router.get("/plain/{my_id}")
    @cache("plain", "my_id")
    def plain_function(request: Request, my_id: int):  # type: ignore[no-untyped-def]
        calls.append(request.url.path)
        return {"id": my_id}

    @router.get("/without/{my_id}")
    @cache("without", "my_id")
    async def without_request(my_id: int):  # type: ignore[no-untyped-def]
        calls.append("/without/7")
        return {"id": my_id}

    @router.get("/modelled/{my_id}", response_model=dict[str, int])
    @cache("modelled", "my_id")
    def with_response_model(my_id: int, request: Request) -> Any:
        calls.append(request.url.path)
        return {"id": str(my_id)}

    async with running(router, cache_only) as client:
        for name in ("last", "plain", "without", "modelled"):
            answers = [await client.get(f"{name}/7") for _ in range(2)]
            assert states(*answers) == ["MISS", "HIT"]
            assert {answer.content for answer in answers} == {b'{"id":7}'}
            assert {answer.headers["Content-Type"] for answer in answers} == {"application/json"}

    assert calls == ["/last/7", "/plain/7", "/without/7", "/modelled/7"]
    assert stored.all_keys() == {"last:7", "plain:7", "without:7", "modelled:7"}


async def test_a_plain_function_does_not_hold_up_others(cache_only: CacheSettings) -> None:
    threads = []
    router = APIRouter()

    @router.get("/plain/{my_id}")
    @cache("plain", "my_id")
    def plain_function(my_id: int) -> int:
        threads.append(get_ident())
        return my_id

    async with running(router, cache_only) as client:
        await client.get("plain/7")

    assert threads != [get_ident()]


# ---- What changes it ----


class PostRead(BaseModel):
    id: int
    title: str


class PostUpdate(BaseModel):
    title: str


async def run(db: AsyncSession, statement: str, **values: Any) -> Any:
    return await (await db.connection()).execute(text(statement), values)


def posts_router() -> APIRouter:
    """The example's routes; what its dots stand for is filled in."""
    router = APIRouter()

    @router.get("/{username}/posts", response_model=list[PostRead])
    @cache(key_prefix="{username}_posts", resource_id_name="username")
    async def read_posts(request: Request, username: str, db: Annotated[AsyncSession, Depends(async_get_db)]):  # type: ignore[no-untyped-def]
        return list(await run(db, "SELECT id, title FROM post WHERE username = :username", username=username))

    @router.get("/{username}/post/{id}", response_model=PostRead)
    @cache(key_prefix="{username}_post_cache", resource_id_name="id")
    async def read_post(request: Request, username: str, id: int, db: Annotated[AsyncSession, Depends(async_get_db)]):  # type: ignore[no-untyped-def]  # noqa: A002
        return (await run(db, "SELECT id, title FROM post WHERE id = :id", id=id)).one()

    @router.delete("/{username}/post/{id}")
    @cache(
        "{username}_post_cache",
        resource_id_name="id",
        to_invalidate_extra={"{username}_posts": "{username}"},  # also invalidate "{username}_posts:{username}" cache
    )
    async def erase_post(  # type: ignore[no-untyped-def]
        request: Request,
        username: str,
        id: int,  # noqa: A002
        current_user: Annotated[User, Depends(get_current_user)],
        db: Annotated[AsyncSession, Depends(async_get_db)],
    ):
        await run(db, "DELETE FROM post WHERE id = :id", id=id)

    @router.patch("/{username}/post/{id}", response_model=PostRead)
    @cache("{username}_post_cache", resource_id_name="id", to_invalidate_extra={"{username}_posts": "{username}"})
    async def patch_post(  # type: ignore[no-untyped-def]
        request: Request,
        username: str,
        id: int,  # noqa: A002
        values: PostUpdate,
        current_user: Annotated[User, Depends(get_current_user)],
        db: Annotated[AsyncSession, Depends(async_get_db)],
    ):
        await run(db, "UPDATE post SET title = :title WHERE id = :id", id=id, title=values.title)
        if values.title == "refused":
            raise Conflict
        return {"id": id, "title": values.title}

    return router


ALICES = {"alice_posts:alice", "alice_post_cache:1", "alice_post_cache:2"}
BOBS = {"bob_posts:bob", "bob_post_cache:3"}


class Posts:
    """The example's app, asked by somebody who is signed in; all its posts are cached."""

    def __init__(self, app: FastAPI, client: httpx2.AsyncClient) -> None:
        self.app = app
        self.client = client
        self.headers: dict[str, str] = {}

    async def read(self, path: str) -> Any:
        return (await self.client.get(path)).json()


@pytest.fixture
async def posts(settings: Settings, stored: Stored) -> AsyncIterator[Posts]:
    app = create_application(posts_router(), settings)
    async with started(app) as client:
        posts = Posts(app, client)
        async with second_session() as db:
            posts.headers = signed_in(await create_user(db, username="alice"), settings)
            await make_room(await db.connection(), "post")
            await run(
                db,
                "CREATE TABLE post (id int PRIMARY KEY, username text,"
                " title text UNIQUE DEFERRABLE INITIALLY DEFERRED)",
            )
            await run(db, "INSERT INTO post VALUES (1, 'alice', 'one'), (2, 'alice', 'two'), (3, 'bob', 'three')")
        for path in ("alice/posts", "alice/post/1", "alice/post/2", "bob/posts", "bob/post/3"):
            assert states(await client.get(path), await client.get(path)) == ["MISS", "HIT"]
        assert stored.all_keys() == ALICES | BOBS
        yield posts


async def test_delete_drops_its_own_key_and_the_extra_one(posts: Posts, stored: Stored) -> None:
    assert (await posts.client.delete("alice/post/1", headers=posts.headers)).status_code == 200

    assert stored.all_keys() == {"alice_post_cache:2"} | BOBS
    assert await posts.read("alice/posts") == [{"id": 2, "title": "two"}]
    assert await posts.read("bob/posts") == [{"id": 3, "title": "three"}]


async def test_patch_drops_its_own_key_and_the_extra_one(posts: Posts, stored: Stored) -> None:
    changed = await posts.client.patch("alice/post/1", json={"title": "uno"}, headers=posts.headers)

    assert changed.json() == {"id": 1, "title": "uno"}
    assert "X-Cache" not in changed.headers
    assert stored.all_keys() == {"alice_post_cache:2"} | BOBS
    assert await posts.read("alice/post/1") == {"id": 1, "title": "uno"}
    assert {"id": 1, "title": "uno"} in await posts.read("alice/posts")


async def test_what_is_rolled_back_drops_nothing(posts: Posts, stored: Stored) -> None:
    refused = await posts.client.patch("alice/post/1", json={"title": "refused"}, headers=posts.headers)

    assert refused.status_code == 409
    assert stored.all_keys() == ALICES | BOBS
    assert await posts.read("alice/post/1") == {"id": 1, "title": "one"}


async def test_a_commit_that_fails_drops_nothing(posts: Posts, stored: Stored) -> None:
    taken = await posts.client.patch("alice/post/1", json={"title": "two"}, headers=posts.headers)

    assert taken.status_code == 409  # Nothing is wrong until COMMIT checks the deferred constraint.
    assert stored.all_keys() == ALICES | BOBS
    assert await posts.read("alice/post/1") == {"id": 1, "title": "one"}


async def test_who_may_not_change_it_drops_nothing(posts: Posts, stored: Stored) -> None:
    assert (await posts.client.delete("alice/post/1")).status_code == 401
    assert (await posts.client.patch("alice/post/1", json={}, headers=posts.headers)).status_code == 422
    assert stored.all_keys() == ALICES | BOBS


def seen_at_the_answer(app: ASGIApp, look: Callable[[], Awaitable[Any]], seen: list[Any]) -> httpx2.AsyncClient:
    """A client of an app; when an answer starts, it is looked at what is there by then."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.append(await look())
            await send(message)

        await app(scope, receive, look_and_send)

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=watched), base_url="http://test/")


async def test_a_change_is_committed_and_dropped_before_the_answer_starts(posts: Posts, stored: Stored) -> None:
    async def look() -> tuple[str, set[str]]:
        async with second_session() as db:
            return (await run(db, "SELECT title FROM post WHERE id = 1")).scalar_one(), stored.all_keys()

    seen: list[Any] = []
    async with seen_at_the_answer(posts.app, look, seen) as client:
        await client.patch("alice/post/1", json={"title": "uno"}, headers=posts.headers)

    assert seen == [("uno", {"alice_post_cache:2"} | BOBS)]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_that_changes_something_drops_it(
    cache_only: CacheSettings, stored: Stored, method: str
) -> None:
    router = APIRouter()

    @router.get("/sample/{my_id}")
    @cache("sample_data", "my_id")
    async def read(my_id: int) -> int:
        return my_id

    @router.api_route("/sample/{my_id}", methods=[method])
    @cache("sample_data", resource_id_type=int)
    def change(my_id: int) -> None:
        return None

    async with running(router, cache_only) as client:
        for number in (7, 8):
            await client.get(f"sample/{number}")
        assert stored.all_keys() == {"sample_data:7", "sample_data:8"}

        assert (await client.request(method, "sample/7")).status_code == 200
        assert stored.all_keys() == {"sample_data:8"}


async def test_a_pattern_drops_what_matches_it(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()

    @router.get("/{username}/page/{number}")
    @cache("{username}_page", "number")
    async def read(username: str, number: int) -> int:
        return number

    @router.delete("/{username}")
    @cache("user", "username", pattern_to_invalidate_extra=["{username}_page:*"])
    async def erase(username: str) -> None:
        return None

    async with running(router, cache_only) as client:
        for path in ("ada/page/1", "ada/page/2", "ada2/page/1", "bob/page/1"):
            await client.get(path)
        await client.delete("ada")

    assert stored.all_keys() == {"ada2_page:1", "bob_page:1"}


async def test_a_list_has_a_fixed_id(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    names = ["one"]

    @router.get("/names")
    @cache("names", resource_id="all")
    async def read() -> list[str]:
        return names

    @router.post("/names")
    @cache("names", resource_id="all")
    async def add(name: Annotated[str, Body(embed=True)]) -> None:
        names.append(name)

    async with running(router, cache_only) as client:
        await client.get("names")
        assert stored.all_keys() == {"names:all"}
        await client.post("names", json={"name": "two"})
        assert stored.all_keys() == set()
        assert (await client.get("names")).json() == ["one", "two"]


async def test_a_row_that_a_dependency_loads_can_be_changed_by_the_handler(settings: Settings) -> None:
    router = APIRouter()
    Session = Annotated[AsyncSession, Depends(async_get_db)]  # noqa: N806 -- as FastAPI's documentation has it

    async def get_user(username: str, db: Session) -> User:
        found: User = (await db.exec(select(User).where(User.username == username))).one()
        return found

    @router.patch("/user/{username}")
    @cache("user", "username")
    async def rename(username: str, user: Annotated[User, Depends(get_user)], db: Session) -> str:
        user.name = "Changed"
        db.add(user)
        await db.flush()
        return user.name

    async with running(router, settings) as client:
        async with second_session() as db:
            await create_user(db, username="alice")
        assert (await client.patch("user/alice")).json() == "Changed"
        async with second_session() as db:
            assert (await db.exec(select(User))).one().name == "Changed"
