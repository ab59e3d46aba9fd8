"""What is answered and what is stored: the same bytes, status and headers, and nothing that is one caller's alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import AliasChoices, BaseModel
from sqlmodel import select
from starlette.background import BackgroundTask

from app.api.dependencies import SessionDep
from app.core.config import Settings
from app.core.exceptions.http_exceptions import NotFound
from app.core.utils.cache import cache, reading
from app.core.utils.cache.entry import MAGIC, Entry
from app.models.tier import Tier
from tests.conftest import second_session
from tests.core.utils.cache.conftest import CacheSettings, Stored, metric, running, states
from tests.helper import counted_statements, create_tier

pytestmark = pytest.mark.anyio


class Routes:
    """A router in the making: each route is `GET /{name}/{my_id}`, cached as `{name}`."""

    def __init__(self) -> None:
        self.router = APIRouter()
        self.calls: list[object] = []

    def get(self, name: str, *, route: dict[str, Any] | None = None, **options: Any) -> Callable[..., Any]:
        def add(handler: Callable[..., Any]) -> Any:
            path = f"/{name}/{{my_id}}"
            return self.router.get(path, **route or {})(cache(name, "my_id", **options)(handler))

        return add


@pytest.fixture
def routes() -> Routes:
    return Routes()


async def twice(client: httpx2.AsyncClient, path: str, **kwargs: Any) -> list[httpx2.Response]:
    """The answers to two requests, one after the other."""
    return [await client.get(path, **kwargs) for _ in range(2)]


# ---- The content ----


class Secretive(BaseModel):
    id: int
    hidden: str = "the hidden field"


class Open(BaseModel):
    id: int


async def test_a_hidden_field_is_never_in_valkey(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    @routes.get("model", route={"response_model": Open})
    async def by_model(my_id: int) -> Secretive:
        return Secretive(id=my_id)

    @routes.get("annotated")
    async def by_annotation(my_id: int) -> Open:
        return Secretive(id=my_id)  # type: ignore[return-value]

    @routes.get("excluded", route={"response_model_exclude": {"hidden"}})
    async def by_exclusion(my_id: int) -> Secretive:
        return Secretive(id=my_id)

    async with running(routes.router, cache_only) as client:
        for name in ("model", "annotated", "excluded"):
            assert [answer.content for answer in await twice(client, f"{name}/7")] == [b'{"id":7}'] * 2
            assert b"hidden" not in b"".join(stored.values(f"{name}:7"))
            assert b'{"id":7}' in b"".join(stored.values(f"{name}:7"))


async def test_a_hit_runs_no_handler_and_no_statement(settings: Settings, routes: Routes) -> None:
    @routes.get("tier", route={"response_model": list[str]})
    async def read(my_id: int, db: SessionDep) -> list[str]:
        routes.calls.append(my_id)
        return list(await db.exec(select(Tier.name)))

    async with running(routes.router, settings) as client:
        async with second_session() as db:
            await create_tier(db, "pro")
        with counted_statements() as statements:
            first = await client.get("tier/7")
            assert len(statements) == 1
            second = await client.get("tier/7")
            assert len(statements) == 1

    assert states(first, second) == ["MISS", "HIT"]
    assert first.content == second.content == b'["pro"]'
    assert routes.calls == [7]


@pytest.mark.parametrize("value", [None, [], {}, "", 0, False])
@pytest.mark.parametrize("modelled", [True, False])
async def test_an_empty_answer_is_a_hit(
    cache_only: CacheSettings, routes: Routes, value: object, modelled: bool
) -> None:
    async def read(my_id: int) -> Any:
        routes.calls.append(my_id)
        return value

    routes.get("empty", route={"response_model": Any if modelled else None})(read)
    async with running(routes.router, cache_only) as client:
        answers = await twice(client, "empty/7")

    assert states(*answers) == ["MISS", "HIT"]
    assert [answer.json() for answer in answers] == [value, value]
    assert len(routes.calls) == 1


async def test_an_answer_without_content_is_a_hit(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("none", route={"status_code": 204})
    async def read(my_id: int) -> None:
        routes.calls.append(my_id)

    async with running(routes.router, cache_only) as client:
        answers = await twice(client, "none/7")

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
    assert all("Content-Length" not in answer.headers for answer in answers)
    assert len(routes.calls) == 1


def json_answer() -> Callable[..., Any]:
    async def handler(my_id: int) -> Any:
        return {"ü": [1.5, None, "🚢"]}

    return handler


def own_answer() -> Callable[..., Any]:
    async def handler(my_id: int) -> Any:
        return PlainTextResponse("Grüße", status_code=203, headers={"X-Own": "value"})

    return handler


def answer_with_headers() -> Callable[..., Any]:
    async def handler(my_id: int, response: Response) -> Any:
        response.status_code = 201
        response.headers["X-Own"] = "value"
        response.headers.append("X-Twice", "a")
        response.headers.append("X-Twice", "b")
        return {"id": my_id}

    return handler


def text_answer() -> Callable[..., Any]:
    async def handler(my_id: int) -> Any:
        return "plain"

    return handler


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (json_answer, {}),
        (json_answer, {"response_model": dict[str, Any]}),
        (json_answer, {"response_class": JSONResponse, "status_code": 203}),
        (own_answer, {}),
        (answer_with_headers, {"status_code": 202}),
        (answer_with_headers, {"response_model": dict[str, int]}),
        (text_answer, {"response_class": PlainTextResponse}),
    ],
)
async def test_a_cached_route_answers_as_an_uncached_one_does(
    cache_only: CacheSettings, routes: Routes, make: Callable[[], Callable[..., Any]], options: dict[str, Any]
) -> None:
    routes.router.get("/plain/{my_id}", **options)(make())
    routes.get("cached", route=options)(make())

    def essence(answer: httpx2.Response) -> object:
        ours = {"x-cache", "etag", "age", "x-request-id"}
        headers = sorted(pair for pair in answer.headers.multi_items() if pair[0] not in ours)
        return answer.status_code, headers, answer.content

    async with running(routes.router, cache_only) as client:
        expected = essence(await client.get("plain/7"))
        answers = await twice(client, "cached/7")
    assert states(*answers) == ["MISS", "HIT"]
    assert [essence(answer) for answer in answers] == [expected] * 2


# ---- Validators, age, state ----


async def test_who_has_the_answer_is_told_so_in_a_304(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("one", vary=["Accept-Language"])
    async def read(my_id: int, response: Response) -> str:
        response.headers["X-Own"] = "value"
        return "content"

    async with running(routes.router, cache_only) as client:
        first = await client.get("one/7")
        etag = first.headers["ETag"]
        assert etag.startswith('"')
        for wanted in (etag, f"W/{etag}", f'"other", {etag}', f'W/"other",W/{etag}', "*"):
            answer = await client.get("one/7", headers={"If-None-Match": wanted})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["ETag"] == etag
            assert answer.headers["Vary"].lower() == "accept-language"
            assert "Content-Type" not in answer.headers
            assert states(answer) == ["HIT"]
        for other in ('"other"', "W/", '""', etag.strip('"')):
            answer = await client.get("one/7", headers={"If-None-Match": other})
            assert (answer.status_code, answer.json()) == (200, "content")


async def test_a_computed_answer_can_be_a_304_too(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        etag = (await client.get("one/7")).headers["ETag"]
        stored.client.flushall()
        answer = await client.get("one/7", headers={"If-None-Match": etag})
        assert (answer.status_code, *states(answer)) == (304, "MISS")
        assert (await client.get("one/7")).json() == "content"


async def test_another_content_has_another_etag_and_the_handlers_own_stays(
    cache_only: CacheSettings, routes: Routes
) -> None:
    @routes.get("derived")
    async def derived(my_id: int) -> int:
        return my_id

    @routes.get("own")
    async def own(my_id: int, response: Response) -> int:
        response.headers["ETag"] = 'W/"version 1"'
        return my_id

    async with running(routes.router, cache_only) as client:
        assert (await client.get("derived/7")).headers["ETag"] != (await client.get("derived/8")).headers["ETag"]
        for answer in await twice(client, "own/7"):
            assert answer.headers.get_list("ETag") == ['W/"version 1"']
        assert (await client.get("own/7", headers={"If-None-Match": '"version 1"'})).status_code == 304


async def test_the_age_is_that_of_the_stored_answer(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        first, second = await twice(client, "one/7")
        assert "Age" not in first.headers
        assert second.headers["Age"] == "0"
        stored.make_older("one:7", 100)
        assert (await client.get("one/7")).headers["Age"] == "100"


async def test_head_is_answered_from_the_same_answer(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        routes.calls.append(my_id)
        return "content"

    async with running(routes.router, cache_only) as client:
        answers = [await client.head("one/7"), await client.get("one/7"), await client.head("one/7")]

    assert states(*answers) == ["MISS", "HIT", "HIT"]
    assert [answer.content for answer in answers] == [b"", b'"content"', b""]
    assert {answer.headers["Content-Length"] for answer in answers} == {"9"}
    assert len(routes.calls) == 1


# ---- What is not stored ----


@pytest.fixture
async def unstorable(cache_only: CacheSettings, routes: Routes) -> AsyncIterator[httpx2.AsyncClient]:
    """An app whose cached routes answer what is not to be stored."""

    def answering(name: str, **options: Any) -> Callable[[Callable[[], Any]], None]:
        def add(make: Callable[[], Any]) -> None:
            @routes.get(name, **options)
            async def read(my_id: int) -> Any:
                routes.calls.append(my_id)
                return make()

        return add

    def raising(error: Exception) -> Any:
        raise error

    async def stream() -> AsyncIterator[bytes]:
        yield b"streamed"

    cookie = JSONResponse("with a cookie")
    cookie.set_cookie("session", "secret")
    answering("problem")(lambda: raising(NotFound()))
    answering("http-exception")(lambda: raising(HTTPException(410)))
    answering("crash")(lambda: raising(ZeroDivisionError()))
    answering("unserialisable", route={"response_model": int})(lambda: "no number")
    answering("returned-404")(lambda: JSONResponse("nothing", status_code=404))
    answering("returned-500")(lambda: JSONResponse("broken", status_code=500))
    answering("by-status", route={"status_code": 404})(lambda: "nothing")
    answering("redirect")(lambda: RedirectResponse("/elsewhere"))
    answering("part")(lambda: PlainTextResponse("part", status_code=206, headers={"Content-Range": "bytes 0-3/9"}))
    answering("cookie")(lambda: cookie)
    answering("no-store")(lambda: PlainTextResponse("secret", headers={"Cache-Control": "max-age=0, No-Store"}))
    answering("marked-private")(lambda: PlainTextResponse("own", headers={"Cache-Control": "private"}))
    answering("stream")(lambda: StreamingResponse(stream()))
    answering("file")(lambda: FileResponse(__file__))
    answering("uncovered")(lambda: PlainTextResponse("x", headers={"Vary": "Accept-Language, Accept"}))
    answering("half-covered", vary=["Accept"])(lambda: PlainTextResponse("x", headers={"Vary": "accept, X-Other"}))
    answering("star", vary=["Accept"])(lambda: PlainTextResponse("x", headers={"Vary": "*"}))
    answering("large")(lambda: PlainTextResponse("x" * (reading.LARGEST_BODY + 1)))

    async with running(routes.router, cache_only) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("problem", 404),
        ("http-exception", 410),
        ("crash", 500),
        ("unserialisable", 500),
        ("returned-404", 404),
        ("returned-500", 500),
        ("by-status", 404),
        ("redirect", 307),
        ("part", 206),
        ("cookie", 200),
        ("no-store", 200),
        ("marked-private", 200),
        ("stream", 200),
        ("file", 200),
        ("uncovered", 200),
        ("half-covered", 200),
        ("star", 200),
        ("large", 200),
    ],
)
async def test_what_is_not_to_be_stored_is_computed_each_time(
    unstorable: httpx2.AsyncClient, stored: Stored, routes: Routes, name: str, status: int
) -> None:
    answers = await twice(unstorable, f"{name}/7")

    assert [answer.status_code for answer in answers] == [status] * 2
    assert len(routes.calls) == 2
    assert not {"HIT", "MISS", "STALE"} & set(states(*answers))
    assert answers[0].content == answers[1].content or status >= 400  # A problem has the request's id.
    if f"{name}:7" in stored.all_keys():
        assert stored.values(f"{name}:7") == []


async def test_a_vary_that_the_route_declares_is_stored(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("covered", vary=["Accept-Language"])
    async def read(my_id: int, x_own: Annotated[str, Header()] = "") -> Any:
        return PlainTextResponse("x", headers={"Vary": "accept-language, X-OWN"})

    async with running(routes.router, cache_only) as client:
        assert states(*await twice(client, "covered/7")) == ["MISS", "HIT"]


async def test_a_secret_that_the_injected_response_carries_is_not_stored(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("cookie")
    async def with_cookie(my_id: int, response: Response) -> str:
        response.set_cookie("session", "secret")
        return "content"

    @routes.get("no-store")
    async def no_store(my_id: int, response: Response) -> str:
        response.headers["Cache-Control"] = "no-store"
        return "content"

    async with running(routes.router, cache_only) as client:
        for name in ("cookie", "no-store"):
            answers = await twice(client, f"{name}/7")
            assert states(*answers) == ["BYPASS", "BYPASS"]
            header = "Set-Cookie" if name == "cookie" else "Cache-Control"
            assert all(header in answer.headers for answer in answers)
            assert stored.values(f"{name}:7") == []


async def test_an_answer_that_a_dependency_wants_nobody_to_keep_is_not_kept(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    def no_store(response: Response) -> None:
        response.headers["Cache-Control"] = "no-store"

    @routes.get("one", route={"dependencies": [Depends(no_store)]})
    async def read(my_id: int) -> str:
        return "secret"

    async with running(routes.router, cache_only) as client:
        assert states(*await twice(client, "one/7")) == ["BYPASS", "BYPASS"]
        assert stored.values("one:7") == []


async def test_a_vary_of_a_dependency_that_nothing_covers_is_not_stored(
    cache_only: CacheSettings, routes: Routes
) -> None:
    def varying(response: Response) -> None:
        response.headers["Vary"] = "Accept-Language"

    @routes.get("one", route={"dependencies": [Depends(varying)]})
    async def read(my_id: int, request: Request) -> str:
        return request.headers["Accept-Language"]

    async with running(routes.router, cache_only) as client:
        answers = [await client.get("one/7", headers={"Accept-Language": language}) for language in ("de", "fr")]
    assert [answer.json() for answer in answers] == ["de", "fr"]


# ---- Headers and status on a hit ----


async def test_a_dependencys_headers_are_there_on_a_hit_and_of_this_very_answer(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    def limited(response: Response) -> None:
        routes.calls.append("asked")
        response.headers["X-RateLimit-Remaining"] = str(10 - len(routes.calls))
        response.set_cookie("seen", str(len(routes.calls)))

    @routes.get("one", route={"dependencies": [Depends(limited)]})
    async def read(my_id: int, response: Response) -> str:
        response.headers["X-Own"] = "the handler's"
        return "content"

    async with running(routes.router, cache_only) as client:
        answers = [await client.get("one/7") for _ in range(3)]
        unchanged = await client.get("one/7", headers={"If-None-Match": answers[0].headers["ETag"]})

    assert states(*answers) == ["MISS", "HIT", "HIT"]
    assert [answer.headers.get_list("X-RateLimit-Remaining") for answer in answers] == [["9"], ["8"], ["7"]]
    assert [answer.headers.get_list("X-Own") for answer in answers] == [["the handler's"]] * 3
    assert [answer.headers["Set-Cookie"][:6] for answer in answers] == ["seen=1", "seen=2", "seen=3"]
    assert unchanged.headers["X-RateLimit-Remaining"] == "6"
    assert b"seen=" not in b"".join(stored.values("one:7"))
    assert b"ratelimit" not in b"".join(stored.values("one:7"))


@pytest.mark.parametrize("status", [200, 404])
async def test_a_header_that_the_handler_sets_anew_replaces_the_dependencys(
    cache_only: CacheSettings, routes: Routes, status: int
) -> None:
    def given(response: Response) -> None:
        response.headers["X-Own"] = "the dependency's"

    @routes.get("one", route={"dependencies": [Depends(given)], "status_code": status})
    async def read(my_id: int, response: Response) -> str:
        response.headers["X-Own"] = "the handler's"
        return "content"

    async with running(routes.router, cache_only) as client:
        for answer in await twice(client, "one/7"):
            assert answer.headers.get_list("X-Own") == ["the handler's"]


async def test_a_request_id_is_the_requests_own(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        answers = [await client.get("one/7", headers={"X-Request-ID": f"request-{number}"}) for number in (1, 2)]

    assert [answer.headers.get_list("X-Request-ID") for answer in answers] == [["request-1"], ["request-2"]]


async def test_what_belongs_to_one_answer_alone_is_not_stored(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one")
    async def read(my_id: int) -> Response:
        return Response(b"content", headers={"X-Request-ID": "a-request-id", "Date": "yesterday", "X-Own": "kept"})

    async with running(routes.router, cache_only) as client:
        answers = await twice(client, "one/7")
    assert states(*answers) == ["MISS", "HIT"]
    (value,) = stored.values("one:7")
    assert b"x-own\0kept" in value
    assert b"a-request-id" not in value
    assert b"yesterday" not in value
    assert b"content-length" not in value


async def test_background_tasks_run_after_a_computed_answer(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("injected")
    async def injected(my_id: int, tasks: BackgroundTasks) -> str:
        tasks.add_task(routes.calls.append, "injected")
        return "content"

    @routes.get("own")
    async def own(my_id: int) -> Response:
        return PlainTextResponse("content", background=BackgroundTask(routes.calls.append, "own"))

    async with running(routes.router, cache_only) as client:
        for name in ("injected", "own"):
            await twice(client, f"{name}/7")
    assert routes.calls == ["injected", "own"]


# ---- What distinguishes answers ----


async def test_the_query_string_distinguishes(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    @routes.get("page")
    async def read(my_id: int, page: int = 1) -> int:
        return page

    async with running(routes.router, cache_only) as client:
        paths = ["page/7", "page/7?page=1", "page/7?page=2", "page/7?page=2&x=y"]
        answers = [await client.get(path) for path in paths * 2]
    assert [answer.json() for answer in answers] == [1, 1, 2, 2] * 2
    assert states(*answers) == ["MISS"] * 4 + ["HIT"] * 4
    assert stored.all_keys() == {"page:7"}


class SentHeaders(BaseModel):
    x_sent: str = ""


class SentCookies(BaseModel):
    sent: str = ""


def header_in_a_dependency(x_sent: Annotated[str, Header()] = "") -> str:
    return x_sent


def deeper_dependency(sent: Annotated[str, Depends(header_in_a_dependency)]) -> str:
    return sent


def header_routes(routes: Routes) -> None:
    """Routes that answer with the header `X-Sent`, which they declare in every way there is."""

    @routes.get("annotated")
    async def annotated(my_id: int, x_sent: Annotated[str, Header()] = "") -> str:
        return x_sent

    @routes.get("aliased")
    async def aliased(my_id: int, other: Annotated[str, Header(alias="X-Sent")] = "") -> str:
        return other

    @routes.get("validation-alias")
    async def validation_alias(my_id: int, other: Annotated[str, Header(validation_alias="X-Sent")] = "") -> str:
        return other

    @routes.get("choices")
    async def choices(
        my_id: int, other: Annotated[str, Header(validation_alias=AliasChoices("X-Unsent", "X-Sent"))] = ""
    ) -> str:
        return other

    @routes.get("modelled")
    async def modelled(my_id: int, sent: Annotated[SentHeaders, Header()]) -> str:
        return sent.x_sent

    @routes.get("dependency")
    async def dependency(my_id: int, sent: Annotated[str, Depends(deeper_dependency)]) -> str:
        return sent

    @routes.get("vary", vary=["X-SENT"])
    async def vary(my_id: int, request: Request) -> str:
        return request.headers.get("X-Sent", "")


@pytest.mark.parametrize(
    "name", ["annotated", "aliased", "validation-alias", "choices", "modelled", "dependency", "vary"]
)
async def test_a_declared_header_distinguishes(cache_only: CacheSettings, routes: Routes, name: str) -> None:
    header_routes(routes)
    async with running(routes.router, cache_only) as client:
        answers = [await client.get(f"{name}/7", headers={"X-Sent": sent}) for sent in ("a", "b", "a", "b")]
        answers.append(await client.get(f"{name}/7"))
    assert [answer.json() for answer in answers] == ["a", "b", "a", "b", ""]
    assert states(*answers) == ["MISS", "MISS", "HIT", "HIT", "MISS"]


async def test_a_header_in_vary_is_told_to_caches_in_between(cache_only: CacheSettings, routes: Routes) -> None:
    header_routes(routes)
    async with running(routes.router, cache_only) as client:
        assert [answer.headers["Vary"].lower() for answer in await twice(client, "vary/7")] == ["x-sent"] * 2


async def test_a_declared_cookie_distinguishes(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("annotated")
    async def annotated(my_id: int, sent: Annotated[str, Cookie()] = "") -> str:
        return sent

    @routes.get("modelled")
    async def modelled(my_id: int, cookies: Annotated[SentCookies, Cookie()]) -> str:
        return cookies.sent

    async with running(routes.router, cache_only) as client:
        for name in ("annotated", "modelled"):
            headers = [{"Cookie": f"sent={sent}"} for sent in ("a", "b", "a")]
            answers = [await client.get(f"{name}/7", headers=header) for header in headers]
            assert [answer.json() for answer in answers] == ["a", "b", "a"]
            assert states(*answers) == ["MISS", "MISS", "HIT"]


async def test_a_header_that_nobody_declares_does_not_distinguish(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        answers = [await client.get("one/7", headers={"User-Agent": agent, "Cookie": agent}) for agent in ("a", "b")]
    assert states(*answers) == ["MISS", "HIT"]


async def test_headers_do_not_run_into_each_other(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("one", vary=["X-A", "X-B"])
    async def read(my_id: int, request: Request) -> list[str]:
        return [request.headers.get("X-A", ""), request.headers.get("X-B", "")]

    async with running(routes.router, cache_only) as client:
        for a, b in [("1", "2"), ("2", "1"), ("1x-b=2", ""), ("", "1"), ("1", "")]:
            assert (await client.get("one/7", headers={"X-A": a, "X-B": b})).json() == [a, b]


async def test_a_route_that_reads_a_body_is_not_cached(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("search")
    async def read(my_id: int, wanted: Annotated[str, Body(embed=True)]) -> str:
        return wanted

    async with running(routes.router, cache_only) as client:
        answers = [await client.request("GET", "search/7", json={"wanted": wanted}) for wanted in ("a", "b")]
    assert [answer.json() for answer in answers] == ["a", "b"]
    assert states(*answers) == ["BYPASS", "BYPASS"]
    assert stored.all_keys() == set()


async def test_unless_neither_looks_up_nor_stores(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    def is_special(special: bool = False) -> bool:
        return special

    @routes.get("one", unless="special")
    async def read(my_id: int, special: Annotated[bool, Depends(is_special)]) -> int:
        routes.calls.append(special)
        return len(routes.calls)

    async with running(routes.router, cache_only) as client:
        special = await twice(client, "one/7?special=1")
        assert stored.all_keys() == set()
        others = await twice(client, "one/7")
        special += await twice(client, "one/7?special=1")

    assert states(*others) == ["MISS", "HIT"]
    assert states(*special) == ["BYPASS"] * 4
    assert [answer.json() for answer in special] == [1, 2, 4, 5]


# ---- Time ----


async def test_an_answer_expires(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    @routes.get("brief", expiration=0.2)
    async def brief(my_id: int) -> str:
        return "content"

    @routes.get("long", expiration=100)
    async def long(my_id: int) -> int:
        routes.calls.append(my_id)
        return len(routes.calls)

    async with running(routes.router, cache_only) as client:
        assert states(*await twice(client, "brief/7")) == ["MISS", "HIT"]
        await client.get("long/7")
        stored.make_older("long:7", 89)
        assert states(await client.get("long/7")) == ["HIT"]
        stored.make_older("long:7", 11.1)
        again = await client.get("long/7")
        assert (states(again), again.json()) == (["MISS"], 2)
        assert states(await client.get("long/7")) == ["HIT"]
        await asyncio.sleep(0.25)
        assert stored.all_keys() == {"long:7"}
        assert states(await client.get("brief/7")) == ["MISS"]


async def test_an_answer_is_fresh_for_exactly_its_expiration(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    lives: dict[str, float] = {"hour": 3600, "second": 1, "odd": 1.1, "odder": 0.57, "tiny": 0.001, "long": 1_000_000.5}
    for name, seconds in lives.items():

        @routes.get(name, expiration=seconds, stale_while_revalidate=0.29)
        async def read(my_id: int) -> int:
            return my_id

    async with running(routes.router, cache_only) as client:
        for name, seconds in lives.items():
            before = perf_counter()
            await client.get(f"{name}/7")
            left, passed = stored.seconds_left(f"{name}:7"), perf_counter() - before
            assert seconds + 0.29 - passed - 0.001 <= left <= seconds + 0.29, name
            (entry,) = map(Entry.load, stored.values(f"{name}:7"))
            assert entry is not None
            assert entry.soft - entry.created == round(seconds * 1000), name
            assert entry.hard - entry.soft == 290, name


async def test_a_second_is_a_second(cache_only: CacheSettings, stored: Stored, routes: Routes) -> None:
    """Of entries that are a hair younger, none has expired; of those that are as old, all have."""

    @routes.get("one", expiration=1)
    async def read(my_id: int) -> int:
        return my_id

    async with running(routes.router, cache_only) as client:
        for number in range(20):
            before = perf_counter()
            await client.get(f"one/{number}")
            stored.make_older(f"one:{number}", 0.9)
            answer = await client.get(f"one/{number}")
            if perf_counter() - before < 0.1:
                assert (*states(answer), answer.headers["Age"]) == ("HIT", "0")
            stored.make_older(f"one:{number}", 0.1)
            assert states(await client.get(f"one/{number}")) == ["MISS"]


async def test_with_jitter_what_is_stored_together_does_not_expire_together(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one", expiration=1000, jitter=0.1)
    async def read(my_id: int) -> int:
        return my_id

    async with running(routes.router, cache_only) as client:
        for number in range(50):
            await client.get(f"one/{number}")
    entries = [Entry.load(value) for key in stored.all_keys() for value in stored.values(key)]
    lives = sorted(entry.soft - entry.created for entry in entries if entry is not None)
    assert len(lives) == 50
    assert 900_000 <= lives[0] < 930_000
    assert 970_000 < lives[-1] <= 1_000_000


async def test_with_jitter_the_shortest_life_is_a_millisecond(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one", expiration=0.001, jitter=0.999, stale_while_revalidate=60)
    async def read(my_id: int) -> int:
        return my_id

    async with running(routes.router, cache_only) as client:
        for number in range(20):
            await client.get(f"one/{number}")
    entries = [Entry.load(value) for key in stored.all_keys() for value in stored.values(key)]
    assert [entry.soft - entry.created for entry in entries if entry is not None] == [1] * 20


async def test_while_one_computes_anew_the_others_get_what_was(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    go_on = asyncio.Event()

    @routes.get("one", expiration=10, stale_while_revalidate=50)
    async def read(my_id: int) -> int:
        routes.calls.append(my_id)
        if len(routes.calls) > 1:
            await go_on.wait()
        return len(routes.calls)

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        assert 59 - 1 < stored.seconds_left("one:7") <= 60
        stored.make_older("one:7", 15)

        computing = asyncio.create_task(client.get("one/7"))
        while len(routes.calls) < 2:  # noqa: ASYNC110 -- the event is in the handler
            await asyncio.sleep(0.001)
        async with asyncio.timeout(1):
            others = await asyncio.gather(*(client.get("one/7") for _ in range(20)))
        assert set(states(*others)) == {"STALE"}
        assert {(answer.json(), answer.headers["Age"]) for answer in others} == {(1, "15")}
        assert not computing.done()

        go_on.set()
        new = await computing
        assert (new.json(), *states(new)) == (2, "MISS")
        assert states(await client.get("one/7")) == ["HIT"]
        assert len(routes.calls) == 2


async def test_too_old_is_too_old_for_being_served_stale(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one", expiration=10, stale_while_revalidate=20)
    async def read(my_id: int) -> int:
        routes.calls.append(my_id)
        await asyncio.sleep(0.02)
        return len(routes.calls)

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        stored.make_older("one:7", 31)
        answers = await asyncio.gather(*(client.get("one/7") for _ in range(5)))
    assert {answer.json() for answer in answers} == {2}
    assert sorted(str(state) for state in states(*answers)) == ["HIT"] * 4 + ["MISS"]


async def test_when_computing_anew_fails_the_others_get_what_was(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one", expiration=10, stale_while_revalidate=50)
    async def read(my_id: int) -> int:
        routes.calls.append(my_id)
        if len(routes.calls) > 1:
            raise NotFound
        return 1

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        stored.make_older("one:7", 15)
        assert (await client.get("one/7")).status_code == 404
        after = await client.get("one/7")
    assert (after.json(), *states(after)) == (1, "STALE")


@pytest.mark.parametrize(("allowed", "expected"), [(True, "MISS"), (False, "HIT")])
async def test_a_caller_can_ask_for_a_new_answer_where_that_is_allowed(
    cache_only: CacheSettings, routes: Routes, allowed: bool, expected: str
) -> None:
    @routes.get("one", allow_no_cache=allowed)
    async def read(my_id: int) -> int:
        routes.calls.append(my_id)
        return len(routes.calls)

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        anew = await client.get("one/7", headers={"Cache-Control": "max-age=0, No-Cache"})
        after = await client.get("one/7")
    assert states(anew, after) == [expected, "HIT"]
    assert after.json() == anew.json() == len(routes.calls)


# ---- What somebody else has written there ----


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        b'{"id": 7}',
        b"\0" * 100,
        MAGIC,
        MAGIC + b"\xff" * 100,
        MAGIC[:-1] + b"\x02" + b"\0" * 40,
        MAGIC[:-1] + b"\x00" + b"from before",
    ],
    ids=repr,
)
async def test_bytes_that_are_no_answer_are_a_miss_and_replaced(
    cache_only: CacheSettings, stored: Stored, routes: Routes, value: bytes
) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        stored.overwrite("one:7", value)
        answers = await twice(client, "one/7")
    assert [answer.json() for answer in answers] == ["content"] * 2
    assert states(*answers) == ["MISS", "HIT"]


async def test_an_answer_of_another_version_or_cut_off_is_a_miss(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    async with running(routes.router, cache_only) as client:
        await client.get("one/7")
        (good,) = stored.values("one:7")
        next_version = good[: len(MAGIC) - 1] + bytes([good[len(MAGIC) - 1] + 1]) + good[len(MAGIC) :]
        for bad in (next_version, good[:-1], good + b"x", good[:20]):
            stored.overwrite("one:7", bad)
            assert states(*await twice(client, "one/7")) == ["MISS", "HIT"]


@pytest.mark.parametrize("write", ["set", "lpush", "sadd", "zadd"])
async def test_another_kind_of_value_is_a_miss_and_replaced(
    cache_only: CacheSettings, stored: Stored, routes: Routes, write: str
) -> None:
    @routes.get("one")
    async def read(my_id: int) -> str:
        return "content"

    stored.client.execute_command(write.upper(), "one:7", *([1] if write == "zadd" else []), "an older program's")
    async with running(routes.router, cache_only) as client:
        answers = await twice(client, "one/7")
    assert [answer.json() for answer in answers] == ["content"] * 2
    assert states(*answers) == ["MISS", "HIT"]


async def test_a_caller_cannot_fill_the_cache_with_query_strings(
    cache_only: CacheSettings, stored: Stored, routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.utils.cache.store.MOST_FIELDS", 20)

    @routes.get("one")
    async def read(my_id: int, request: Request) -> str:
        return str(request.url.query)

    async with running(routes.router, cache_only) as client:
        for number in range(50):
            assert (await client.get(f"one/7?{number}")).json() == str(number)
        assert len(stored.values("one:7")) <= 20
        assert states(*await twice(client, "one/7?again")) == ["MISS", "HIT"]


# ---- What is counted ----


async def test_what_happens_is_counted(
    cache_only: CacheSettings, stored: Stored, routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers() -> dict[str, float]:
        results = {
            result: metric("requests_total", prefix="counted", result=result)
            for result in ("hit", "miss", "stale", "bypass")
        }
        others = {name: metric(f"{name}_total", prefix="counted") for name in ("waits", "refused_fills")}
        return results | others | {"computed": metric("computation_seconds_count", prefix="counted")}

    def moved(before: dict[str, float]) -> dict[str, float]:
        return {name: after - before[name] for name, after in numbers().items() if after != before[name]}

    def is_special(special: bool = False) -> bool:
        return special

    release = asyncio.Event()

    @routes.get("counted", expiration=100, stale_while_revalidate=100, unless="special")
    async def read(my_id: int, special: Annotated[bool, Depends(is_special)]) -> str:
        routes.calls.append(my_id)
        await release.wait()
        return "content"

    @routes.router.delete("/counted/{my_id}")
    @cache("counted", "my_id")
    async def erase(my_id: int) -> None:
        return None

    async with running(routes.router, cache_only) as client:
        before = numbers()
        release.set()
        await client.get("counted/7")
        assert moved(before) == {"miss": 1, "computed": 1}

        before = numbers()
        await client.get("counted/7")
        await client.head("counted/7")
        assert moved(before) == {"hit": 2}

        before = numbers()
        await client.get("counted/7?special=1")
        assert moved(before) == {"bypass": 1, "computed": 1}

        release.clear()
        stored.make_older("counted:7", 150)
        before = numbers()
        computing = asyncio.create_task(client.get("counted/7"))
        while len(routes.calls) < 3:  # noqa: ASYNC110 -- the event is in the handler
            await asyncio.sleep(0.001)
        await client.get("counted/7")
        assert moved(before) == {"miss": 1, "stale": 1}
        release.set()
        await computing

        release.clear()
        before = numbers()
        waiting = [asyncio.create_task(client.get("counted/8")) for _ in range(3)]
        while metric("waits_total", prefix="counted") < before["waits"] + 2:  # noqa: ASYNC110 -- it is a metric
            await asyncio.sleep(0.001)
        release.set()
        await asyncio.gather(*waiting)
        assert moved(before) == {"miss": 1, "hit": 2, "waits": 2, "computed": 1}

        release.clear()
        before = numbers()
        overtaken = asyncio.create_task(client.get("counted/9"))
        while len(routes.calls) < 5:  # noqa: ASYNC110 -- the event is in the handler
            await asyncio.sleep(0.001)
        await client.delete("counted/9")
        release.set()
        await overtaken
        assert moved(before) == {"miss": 1, "refused_fills": 1, "computed": 1}
        assert stored.all_keys() >= {"counted:7", "counted:8"}
        assert "counted:9" not in stored.all_keys()


async def test_the_time_to_compute_and_what_was_dropped_are_counted(cache_only: CacheSettings, routes: Routes) -> None:
    @routes.get("slow")
    async def read(my_id: int) -> str:
        await asyncio.sleep(0.05)
        return "content"

    @routes.router.delete("/slow/{my_id}")
    @cache("slow", "my_id", to_invalidate_extra={"other": "all"}, pattern_to_invalidate_extra=["more:*"])
    async def erase(my_id: int) -> None:
        return None

    before = metric("computation_seconds_sum", prefix="slow"), metric("invalidations_total", outcome="done")
    async with running(routes.router, cache_only) as client:
        await twice(client, "slow/7")
        await client.delete("slow/7")
        assert metric("up") == 1
    assert 0.05 <= metric("computation_seconds_sum", prefix="slow") - before[0] < 0.5
    assert metric("invalidations_total", outcome="done") - before[1] == 3
    assert metric("up") == 0


async def test_a_request_that_began_before_a_change_stores_nothing(
    cache_only: CacheSettings, stored: Stored, routes: Routes
) -> None:
    loaded = asyncio.Event()
    go_on = asyncio.Event()
    row = {"value": "old"}

    async def load() -> str:
        value = row["value"]
        loaded.set()
        await go_on.wait()
        return value

    @routes.get("one")
    async def read(my_id: int, value: Annotated[str, Depends(load)]) -> str:
        return value

    @routes.router.patch("/one/{my_id}")
    @cache("one", "my_id")
    async def change(my_id: int) -> None:
        row["value"] = "new"

    async with running(routes.router, cache_only) as client:
        reading = asyncio.create_task(client.get("one/7"))
        await loaded.wait()
        await client.patch("one/7")
        go_on.set()
        assert (await reading).json() == "old"
        assert stored.values("one:7") == []
        assert (await client.get("one/7")).json() == "new"
