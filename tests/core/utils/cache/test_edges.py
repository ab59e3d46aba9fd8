"""What a hostile reading found: whose answer it is, what has to follow from a change, and what an app can do to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.security import APIKeyCookie, HTTPBearer
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import SessionDep
from app.api.v1 import health
from app.core.config import Settings
from app.core.db.database import after_commit, around_commit, begin_request, close_database, open_database, transaction
from app.core.exceptions.http_exceptions import Conflict
from app.core.utils.cache import cache, identify_caller, invalidate, invalidate_on_commit, open_cache
from app.core.utils.cache import opened as opened_caches
from app.core.utils.cache.store import Lease, Store
from app.models.tier import Tier
from scripts.embedded import Valkey
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, states
from tests.core.utils.test_redis_link import nothing_unseen, opened, stopped, until, url_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def _nothing_unseen() -> AsyncIterator[None]:
    async with nothing_unseen():
        yield


# ---- Whose answer it is ----


def by_hand(request: Request) -> str:
    """Who asks, in a way that nobody else knows of."""
    return request.headers.get("X-API-Key", "nobody")


async def test_a_private_route_that_nothing_tells_callers_apart_on_is_not_cached(
    cache_only: CacheSettings, stored: Stored
) -> None:
    router = APIRouter()

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id", private=True)
    async def mine(my_id: int, request: Request) -> str:
        return by_hand(request)

    async with running(router, cache_only) as client:
        answers = [await client.get("mine/7", headers={"X-API-Key": who}) for who in ("ann", "bob", "ann")]
        answers.append(await client.get("mine/7"))
    assert [answer.json() for answer in answers] == ["ann", "bob", "ann", "nobody"]
    assert states(*answers) == ["BYPASS"] * 4
    assert stored.all_keys() == set()


async def test_a_private_route_that_names_the_header_is_cached_by_it(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id", private=True, vary=["X-API-Key"])
    async def mine(my_id: int, request: Request) -> str:
        return by_hand(request)

    async with running(router, cache_only) as client:
        answers = [await client.get("mine/7", headers={"X-API-Key": who}) for who in ("ann", "bob", "ann", "bob")]
    assert [answer.json() for answer in answers] == ["ann", "bob", "ann", "bob"]
    assert states(*answers) == ["MISS", "MISS", "HIT", "HIT"]
    assert len(stored.values("mine:7")) == 2


async def test_a_private_route_is_cached_for_callers_who_say_who_they_are(
    cache_only: CacheSettings, stored: Stored
) -> None:
    router = APIRouter()

    async def identify(request: Request) -> None:
        if who := request.headers.get("X-Who"):
            identify_caller(request, who)

    @router.get("/mine/{my_id}", dependencies=[Depends(identify)])
    @cache("mine", "my_id", private=True)
    async def mine(my_id: int, request: Request) -> list[str | None]:
        return [request.headers.get(name) for name in ("X-Who", "Authorization", "Cookie")]

    async with running(router, cache_only) as client:
        for name in ("X-Who", "Authorization", "Cookie"):
            answers = [await client.get("mine/7", headers={name: who}) for who in ("ann", "bob", "ann", "bob")]
            assert [set(answer.json()) - {None} for answer in answers] == [{"ann"}, {"bob"}] * 2
            assert states(*answers) == ["MISS", "MISS", "HIT", "HIT"]
        assert states(*[await client.get("mine/7") for _ in range(2)]) == ["BYPASS"] * 2
    assert len(stored.values("mine:7")) == 6


async def sign_in_as_ann(request: Request, _: Annotated[Any, Depends(HTTPBearer(auto_error=False))]) -> str:
    identify_caller(request, "ann")
    return "ann"


async def test_who_is_known_has_an_answer_for_each_of_their_cookies(cache_only: CacheSettings) -> None:
    router = APIRouter()

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id")
    async def mine(
        my_id: int,
        who: Annotated[str, Depends(sign_in_as_ann)],
        sid: Annotated[str | None, Depends(APIKeyCookie(name="sid", auto_error=False))],
    ) -> list[str | None]:
        return [who, sid]

    async with running(router, cache_only) as client:
        cookies = ["sid=a", "sid=b", "sid=a", "sid=b", ""]
        answers = [await client.get("mine/7", headers={"Cookie": cookie} if cookie else {}) for cookie in cookies]
    assert [answer.json() for answer in answers] == [
        ["ann", "a"],
        ["ann", "b"],
        ["ann", "a"],
        ["ann", "b"],
        ["ann", None],
    ]
    assert states(*answers) == ["MISS", "MISS", "HIT", "HIT", "MISS"]


async def test_parts_of_a_caller_do_not_run_into_each_other(cache_only: CacheSettings) -> None:
    router = APIRouter()
    parts: list[tuple[object, ...]] = [("a", "b"), ("a b",), ("a, b",), ("a', 'b",), (1,), ("1",), (True,), (None,), ()]

    async def sign_in(request: Request) -> None:
        identify_caller(request, *parts[int(request.headers["X-Number"])])

    @router.get("/mine/{my_id}", dependencies=[Depends(sign_in)])
    @cache("mine", "my_id", private=True)
    async def mine(my_id: int, request: Request) -> str:
        return request.headers["X-Number"]

    async with running(router, cache_only) as client:
        for state in ("MISS", "HIT"):
            for number in range(len(parts)):
                answer = await client.get("mine/7", headers={"X-Number": str(number)})
                assert (answer.json(), *states(answer)) == (str(number), state)


async def test_what_an_app_keeps_in_its_own_state_is_nothing_to_the_cache(cache_only: CacheSettings) -> None:
    router = APIRouter()

    async def keep(request: Request) -> None:
        request.state.caller = "the same for all"
        request.state.started = "yesterday"

    @router.get("/mine/{my_id}", dependencies=[Depends(keep)])
    @cache("mine", "my_id")
    async def mine(my_id: int, token: Annotated[Any, Depends(HTTPBearer())]) -> str:
        return str(token.credentials)

    @router.get("/shared/{my_id}", dependencies=[Depends(keep)])
    @cache("shared", "my_id")
    async def shared(my_id: int, request: Request) -> list[str]:
        return [request.state.caller, request.state.started]

    async with running(router, cache_only) as client:
        mine_answers = [
            await client.get("mine/7", headers={"Authorization": f"Bearer {who}"}) for who in ("ann", "bob", "ann")
        ]
        shared_answers = [await client.get("shared/7") for _ in range(2)]
    assert [answer.json() for answer in mine_answers] == ["ann", "bob", "ann"]
    assert states(*mine_answers) == ["MISS", "MISS", "HIT"]
    assert [answer.json() for answer in shared_answers] == [["the same for all", "yesterday"]] * 2
    assert states(*shared_answers) == ["MISS", "HIT"]


EVIL_HOSTS = ["evil.example", "evil.example:8443", "EVIL.example", 'evil.example/"', "evil.example\\"]


@pytest.mark.parametrize("evil", EVIL_HOSTS)
@pytest.mark.parametrize("place", ["content", "header"])
async def test_an_address_in_an_answer_is_on_the_host_that_was_asked(
    cache_only: CacheSettings, place: str, evil: str
) -> None:
    router = APIRouter()

    @router.get("/thing/{my_id}")
    @cache("thing", "my_id")
    async def thing(my_id: int, request: Request, response: Response) -> str:
        address = str(request.url_for("thing", my_id=my_id))
        if place == "header":
            response.headers["Link"] = address
            return "content"
        return address

    async with running(router, cache_only) as client:
        for host in (evil, "good.example", "good.example", evil, "other.example"):
            for scheme in ("http", "https"):
                answer = await client.get(f"{scheme}://test/thing/7", headers={"Host": host})
                told = answer.headers["Link"] if place == "header" else answer.json()
                if host != evil:
                    assert told == f"{scheme}://{host}/thing/7"


# ---- What has to follow from a change ----


async def a_problem() -> None:
    raise Conflict


async def an_http_exception() -> None:
    raise HTTPException(409)


FAILURES = pytest.mark.parametrize("fail", [a_problem, an_http_exception], ids=lambda fail: fail.__name__)
Fail = Callable[[], Awaitable[None]]


@FAILURES
async def test_what_a_handler_committed_before_it_failed_is_dropped(settings: Settings, fail: Fail) -> None:
    router = APIRouter()

    @router.get("/tiers/{my_id}")
    @cache("tiers", "my_id")
    async def read(my_id: int, db: SessionDep) -> list[str]:
        return list(await db.exec(select(Tier.name)))

    @router.post("/tiers/{my_id}")
    @cache("tiers", "my_id")
    async def write(my_id: int, db: SessionDep) -> None:
        async with db.begin():
            db.add(Tier(name="committed"))
        await fail()

    @router.put("/tiers/{my_id}")
    @cache("tiers", "my_id")
    async def write_nothing(my_id: int, db: SessionDep) -> None:
        db.add(Tier(name="rolled back"))
        await db.flush()
        await fail()

    async with running(router, settings) as client:
        assert [(await client.get("tiers/7")).json() for _ in range(2)] == [[], []]
        assert (await client.put("tiers/7")).status_code == 409
        assert states(await client.get("tiers/7")) == ["HIT"]  # Nothing has changed.
        assert (await client.post("tiers/7")).status_code == 409
        assert (await client.get("tiers/7")).json() == ["committed"]


@FAILURES
async def test_what_a_handler_changed_elsewhere_before_it_failed_is_dropped(
    cache_only: CacheSettings, fail: Fail
) -> None:
    router, things = APIRouter(), {7: "old"}

    @router.get("/things/{my_id}")
    @cache("things", "my_id")
    async def read(my_id: int) -> str:
        return things[my_id]

    @router.put("/things/{my_id}")
    @cache("things", "my_id")
    async def write(my_id: int) -> None:
        things[my_id] = "new"
        await fail()

    async with running(router, cache_only) as client:
        assert [(await client.get("things/7")).json() for _ in range(2)] == ["old", "old"]
        assert (await client.put("things/7")).status_code == 409
        assert (await client.get("things/7")).json() == "new"


async def test_who_leaves_after_a_commit_leaves_nothing_stored_that_is_wrong(
    settings: Settings, stored: Stored
) -> None:
    committed, go_on, acted = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(db: AsyncSession) -> AsyncIterator[None]:
        yield
        committed.set()
        await go_on.wait()

    async def act() -> None:
        acted.set()

    async def change() -> None:
        async with transaction() as db:
            invalidate_on_commit(db, "thing", 1)
            invalidate_on_commit(db, "thing", 2)
            around_commit(db, slow)  # Left first.
            after_commit(db, act)
            db.add(Tier(name="new"))

    engine = open_database(settings)
    begin_request()
    try:
        async with open_cache(settings, durable=True):
            for key in ("thing:1", "thing:2", "thing:3"):
                stored.client.hset(key, "v", "old")
            task = asyncio.create_task(change())
            await committed.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await until(lambda: stored.all_keys() == {"thing:3"} and acted.is_set(), seconds=3)
    finally:
        await close_database(engine)


# ---- The store, the apps of a process, and the server ----


async def test_who_leaves_between_a_question_and_its_reply_has_no_lease(valkey: Valkey, stored: Stored) -> None:
    async with opened(url_of(valkey)) as link:
        store = Store(link)
        with stopped(stored.client):
            taking = asyncio.create_task(store.take("thing:1", b"variant", 5))
            await asyncio.sleep(0.01)  # It is sent by now.
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        async with asyncio.timeout(1):
            while not isinstance(await store.take("thing:1", b"variant", 5), Lease):  # noqa: ASYNC110 -- it is asked
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("left", ["the one opened first", "the one opened last"])
async def test_of_two_apps_in_a_process_the_one_that_is_left_still_has_a_cache(
    cache_only: CacheSettings, stored: Stored, left: str
) -> None:
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(open_cache(cache_only, durable=False))
        await second.enter_async_context(open_cache(cache_only, durable=False))
        await (second if left == "the one opened first" else first).aclose()
        stored.client.hset("thing:7", "v", "old")
        await invalidate("thing", 7)
        assert stored.all_keys() == set()
    assert opened_caches.current() is None


async def test_with_a_server_that_takes_no_changes_the_app_is_degraded(
    cache_only: CacheSettings, stored: Stored
) -> None:
    async with running(health.router, cache_only) as client:
        assert (await client.get("ready")).json() == {"status": "ready", "dependencies": {"redis_cache": "up"}}
        stored.client.replicaof("127.0.0.1", 1)
        try:
            answer = await client.get("ready")
            assert (answer.status_code, answer.json()) == (
                200,
                {"status": "degraded", "dependencies": {"redis_cache": "down"}},
            )
        finally:
            stored.client.replicaof("NO", "ONE")
        assert (await client.get("ready")).json()["status"] == "ready"
