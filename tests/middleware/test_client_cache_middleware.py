"""What browsers and shared caches may keep: `public` only where nothing can tell callers apart."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Query, Request, Response, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBasic, HTTPBearer, SecurityScopes
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ConfigDict
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import AppSettings, ClientSideCacheSettings, ProxySettings, SettingsError
from app.core.harmless_headers import HARMLESS
from app.core.route_inputs import same_for_all_callers
from app.core.setup import create_application
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

PUBLIC, PRIVATE = "public, max-age=60", "private, no-store"
BROWSER = {
    "Accept": "text/html",
    "Accept-Encoding": "gzip, br",
    "Accept-Language": "de",
    "Cache-Control": "max-age=0",
    "DNT": "1",
    "Origin": "http://test",
    "Priority": "u=0, i",
    "Referer": "http://test/",
    "Sec-CH-UA": '"Chromium";v="140"',
    "Sec-Fetch-Site": "none",
    "Upgrade-Insecure-Requests": "1",
    "User-Agent": "Mozilla/5.0",
}


class SmallSettings(AppSettings, ClientSideCacheSettings, ProxySettings):
    """An app of middleware alone."""


Handler = Callable[..., Awaitable[Any]]


def app_of(handler: Handler, **kwargs: Any) -> FastAPI:
    router = APIRouter()
    router.add_api_route("/it", handler, **kwargs)
    return create_application(router, SmallSettings())


async def policy_of(app: FastAPI, path: str = "/it", method: str = "GET", **kwargs: Any) -> str:
    async with client_of(app) as client:
        answer = await client.request(method, f"http://test{path}", **kwargs)
    assert answer.status_code == 200, answer.text
    return answer.headers["Cache-Control"]


async def nothing() -> str:
    return "nothing"


# ---- What a route declares ----


class Identity(BaseModel):
    x_user: str = ""
    x_team: str = ""


class AnyHeader(BaseModel):
    model_config = ConfigDict(extra="allow")


async def by_header(x_user_token: Annotated[str, Header()] = "") -> str:
    return x_user_token


async def by_alias(token: Annotated[str, Header(alias="X-User-Token")] = "") -> str:
    return token


async def by_dependency(token: Annotated[str, Depends(by_header)]) -> str:
    return token


async def by_security(token: Annotated[str, Security(by_header, scopes=["read"])]) -> str:
    return token


async def by_model(identity: Annotated[Identity, Header()]) -> str:
    return identity.x_user


async def by_key(key: Annotated[str | None, Security(APIKeyHeader(name="X-User-Token", auto_error=False))]) -> str:
    return key or ""


async def by_key_in_a_usual_header(
    key: Annotated[str | None, Security(APIKeyHeader(name="User-Agent", auto_error=False))],
) -> str:
    return key or ""


async def by_cookie(session: Annotated[str, Cookie()] = "") -> str:
    return session


async def by_cookie_key(key: Annotated[str | None, Security(APIKeyCookie(name="key", auto_error=False))]) -> str:
    return key or ""


async def by_query_key(key: Annotated[str | None, Security(APIKeyQuery(name="key", auto_error=False))]) -> str:
    return key or ""


async def by_basic(credentials: Annotated[Any, Security(HTTPBasic(auto_error=False))]) -> str:
    return str(credentials)


@pytest.mark.parametrize(
    ("handler", "sent"),
    [
        (by_header, {"headers": {"X-User-Token": "a"}}),
        (by_alias, {"headers": {"X-User-Token": "a"}}),
        (by_dependency, {"headers": {"X-User-Token": "a"}}),
        (by_security, {"headers": {"X-User-Token": "a"}}),
        (by_model, {"headers": {"X-User": "a"}}),
        (by_model, {"headers": {"X-Team": "a"}}),
        (by_key, {"headers": {"X-User-Token": "a"}}),
        (by_cookie, {"headers": {"Cookie": "session=a"}}),
        (by_cookie_key, {"headers": {"Cookie": "key=a"}}),
        (by_query_key, {"params": {"key": "a"}}),
        (by_query_key, {"params": {"key": ""}}),
        (by_basic, {"auth": ("a", "b")}),
    ],
)
async def test_a_credential_that_was_declared_and_sent(handler: Handler, sent: dict[str, Any]) -> None:
    app = app_of(handler)
    assert await policy_of(app, **sent) == PRIVATE
    assert await policy_of(app) == PUBLIC  # Nobody in particular has asked, and `Vary` says what else there can be.
    assert await policy_of(app, headers=BROWSER) == PUBLIC


async def test_a_key_in_a_header_that_everybody_sends() -> None:
    app = app_of(by_key_in_a_usual_header)
    assert await policy_of(app, headers={"User-Agent": "secret"}) == PRIVATE


@pytest.mark.parametrize(
    ("handler", "vary"),
    [
        (nothing, "Authorization, Cookie"),
        (by_header, "Authorization, Cookie, X-User-Token"),
        (by_alias, "Authorization, Cookie, Token, X-User-Token"),
        (by_model, "Authorization, Cookie, X-Team, X-User"),
        (by_cookie, "Authorization, Cookie"),
        (by_query_key, "Authorization, Cookie"),
    ],
)
async def test_vary_names_what_is_declared(handler: Handler, vary: str) -> None:
    async with client_of(app_of(handler)) as client:
        assert (await client.get("http://test/it")).headers["Vary"] == vary


async def test_a_language_is_nobody() -> None:
    async def greet(accept_language: Annotated[str, Header()] = "en") -> str:
        return accept_language

    async with client_of(app_of(greet)) as client:
        answer = await client.get("http://test/it", headers={"Accept-Language": "de"})
    assert answer.headers["Cache-Control"] == PUBLIC
    assert answer.headers["Vary"] == "Accept-Language, Authorization, Cookie"


async def test_declared_by_the_router_or_the_app() -> None:
    inner = APIRouter(dependencies=[Depends(by_header)])
    inner.add_api_route("/it", nothing)
    outer = APIRouter()
    outer.include_router(inner)
    for app in (
        create_application(outer, SmallSettings()),
        create_application(inner, SmallSettings()),
        create_application(APIRouter(), SmallSettings(), dependencies=[Depends(by_header)]),
    ):
        if not any(getattr(route, "path", "") == "/it" for route in app.routes):
            app.include_router(inner)
        assert await policy_of(app, headers={"X-User-Token": "a"}) == PRIVATE
        async with client_of(app) as client:
            assert "X-User-Token" in (await client.get("http://test/it")).headers["Vary"]


# ---- What a route reads by hand ----


async def read_header(request: Request) -> str:
    return request.headers.get("X-User-Token", "")


async def read_cookie(request: Request) -> str:
    return request.cookies.get("session", "")


async def read_address(request: Request) -> str:
    return request.client.host if request.client else ""


async def read_connection(connection: HTTPConnection) -> str:
    return connection.headers.get("X-User-Token", "")


class Finder:
    """A dependency that is an object."""

    async def __call__(self, request: Request) -> str:
        return request.headers.get("X-User-Token", "")


class OwnScheme(SecurityBase):
    """A security scheme that FastAPI does not know."""

    def __init__(self) -> None:
        self.scheme_name = "own"

    async def __call__(self, request: Request) -> str:
        return request.headers.get("X-User-Token", "")


class OtherBearer(HTTPBearer):
    """One of FastAPI's that looks elsewhere."""

    async def __call__(self, request: HTTPConnection) -> Any:
        return request.headers.get("X-User-Token", "")


async def with_scopes(request: Request, scopes: SecurityScopes) -> str:
    return f"{request.headers.get('X-User-Token')} {scopes.scopes}"


def reading_by(dependency: Any) -> Handler:
    async def handler(found: Annotated[str, dependency]) -> str:
        return found

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        read_header,
        read_cookie,
        read_address,
        read_connection,
        reading_by(Depends(read_header)),
        reading_by(Depends(read_address)),
        reading_by(Depends(Finder())),
        reading_by(Security(OwnScheme())),
        reading_by(Security(OtherBearer())),
        reading_by(Security(with_scopes, scopes=["read"])),
    ],
)
async def test_a_route_that_takes_the_whole_request(handler: Handler) -> None:
    """It could read anything of it, and nobody sees what."""
    app = app_of(handler, openapi_extra={})
    for headers in ({}, BROWSER, {"X-User-Token": "a"}, {"Cookie": "session=a"}):
        assert await policy_of(app, headers=headers) == PRIVATE


async def test_one_that_says_that_it_is_the_same_for_all() -> None:
    @same_for_all_callers
    async def find_site(request: Request) -> str:
        return str(request.app.title)

    assert await policy_of(app_of(reading_by(Depends(find_site)))) == PUBLIC
    assert await policy_of(app_of(reading_by(Depends(find_site))), headers={"X-User-Token": "a"}) == PRIVATE


async def test_a_model_of_whatever_headers_there_are() -> None:
    async def anything(headers: Annotated[AnyHeader, Header()]) -> dict[str, Any]:
        return headers.model_dump()

    assert await policy_of(app_of(anything)) == PRIVATE


async def test_a_query_parameter_is_part_of_the_address() -> None:
    async def search(token: Annotated[str, Query()] = "") -> str:
        return token

    assert await policy_of(app_of(search), params={"token": "a"}) == PUBLIC


async def test_any_header_that_is_not_known_to_be_harmless() -> None:
    """A middleware, or a proxy before us, can have gone by it."""
    app = app_of(nothing)
    for name in ("X-Api-Key", "X-User", "X-Forwarded-User", "X-Amzn-Oidc-Data", "Cf-Access-Jwt-Assertion", "Sec-Token"):
        assert await policy_of(app, headers={name: "a"}) == PRIVATE, name
        assert await policy_of(app, headers={name: ""}) == PRIVATE, name
    assert await policy_of(app, headers=BROWSER) == PUBLIC
    assert await policy_of(app, headers={name.decode(): "1" for name in HARMLESS - {b"host"}}) == PUBLIC
    assert not {b"authorization", b"cookie", b"proxy-authorization", b"from"} & HARMLESS


async def test_a_header_that_the_settings_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_CACHE_IGNORED_HEADERS", "X-Client-Version, x-edge")
    app = app_of(nothing)
    assert await policy_of(app, headers={"X-Client-Version": "3", "X-Edge": "fra"}) == PUBLIC
    assert await policy_of(app, headers={"X-Client-Version": "3", "X-User": "a"}) == PRIVATE
    for broken in ("Authorization", "X-Edge,Cookie", "X Edge", "a:b"):
        monkeypatch.setenv("CLIENT_CACHE_IGNORED_HEADERS", broken)
        with pytest.raises(SettingsError, match=r"^CLIENT_CACHE_IGNORED_HEADERS must be a comma-separated list"):
            SmallSettings()


# ---- What an answer says ----


@pytest.mark.parametrize("status", [200, 304])
@pytest.mark.parametrize(
    "headers",
    [{"Set-Cookie": "a=b"}, {"WWW-Authenticate": "Negotiate abc"}, {"Authentication-Info": "x"}, {"Vary": "Accept, *"}],
)
async def test_an_answer_for_one_caller(headers: dict[str, str], status: int) -> None:
    async def answer() -> Response:
        return Response(status_code=status, headers=headers)

    async with client_of(app_of(answer)) as client:
        for method in ("GET", "HEAD"):
            assert (await client.request(method, "http://test/it")).headers["Cache-Control"] == PRIVATE


@pytest.mark.parametrize(
    "policies", [["max-age=100"], ["no-cache"], ["no-cache", "public, max-age=5"], ["max-age=5", "s-maxage=9"]]
)
async def test_what_a_shared_cache_may_store_sets_no_cookie(policies: list[str]) -> None:
    """RFC 9111, section 3: without `private` or `no-store`, a shared cache stores an answer and its `Set-Cookie`."""

    async def handler(response: Response) -> str:
        response.set_cookie("a", "b")
        for policy in policies:
            response.headers.append("Cache-Control", policy)
        return "mine"

    assert await policy_of(app_of(handler)) == "private, no-store"


@pytest.mark.parametrize("policy", ["private, max-age=60", "no-store", "Private"])
async def test_a_cookie_and_a_private_policy_of_ones_own(policy: str) -> None:
    async def handler(response: Response) -> str:
        response.set_cookie("a", "b")
        response.headers["Cache-Control"] = policy
        return "mine"

    assert await policy_of(app_of(handler)) == policy


async def test_a_cookie_and_public_exclude_each_other() -> None:
    for own in ("public, max-age=3600", "s-maxage=5", "Public"):

        async def answer(response: Response, own: str = own) -> str:
            response.headers["Cache-Control"] = own
            response.set_cookie("a", "b")
            return "it"

        assert await policy_of(app_of(answer, response_model=None)) == PRIVATE


async def test_what_a_route_says_itself_stays() -> None:
    for own in ("public, max-age=3600", "private, max-age=5", "no-store", "max-age=1"):

        async def answer(request: Request, response: Response, own: str = own) -> str:
            response.headers["Cache-Control"] = own
            return "it"

        assert await policy_of(app_of(answer), headers={"X-User": "a"}) == own


# ---- The application's own middleware ----


class Cookies:
    """Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", b"a=b")]
            await send(message)

        await self.app(scope, receive, send_with_cookie)


class Gate:
    """Lets in those who have a key, and says nothing of it in the answer. It passes a copy of the scope on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not any(name == b"x-user-token" for name, _ in scope["headers"]):
            await PlainTextResponse("Who?", 401)(scope, receive, send)
        else:
            await self.app({**scope}, receive, send)


async def test_a_cookie_of_a_middleware() -> None:
    app = app_of(nothing)
    app.add_middleware(Cookies)
    assert await policy_of(app) == PRIVATE


async def test_a_cookie_of_a_decorated_middleware() -> None:
    app = app_of(nothing)

    @app.middleware("http")
    async def visitor(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        if "visitor" not in request.cookies:
            response.set_cookie("visitor", "1")
        return response

    assert await policy_of(app) == PRIVATE


async def test_a_session_of_a_middleware() -> None:
    app = app_of(nothing)

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        request.session["seen"] = True
        return await call_next(request)

    app.add_middleware(SessionMiddleware, secret_key="x" * 32)
    assert await policy_of(app) == PRIVATE


async def test_a_middleware_that_says_public_and_sets_a_cookie() -> None:
    async def answer(response: Response) -> str:
        response.headers["Cache-Control"] = "public, max-age=3600"
        return "it"

    app = app_of(answer)
    app.add_middleware(Cookies)
    assert await policy_of(app) == PRIVATE


async def test_a_middleware_that_goes_by_a_header() -> None:
    app = app_of(nothing)
    app.add_middleware(Gate)
    assert await policy_of(app, headers={"X-User-Token": "a"}) == PRIVATE


async def test_a_middleware_that_adds_to_vary() -> None:
    app = app_of(nothing)

    @app.middleware("http")
    async def tenant(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Vary"] = "X-Tenant"
        return response

    assert await policy_of(app, headers={"X-Tenant": "a"}) == PRIVATE
    async with client_of(app) as client:
        answer = await client.get("http://test/it")
    assert (answer.headers["Cache-Control"], answer.headers["Vary"]) == (PUBLIC, "X-Tenant, Authorization, Cookie")


# ---- What FastAPI does not route ----


async def test_mounted_applications(tmp_path: Any) -> None:
    (tmp_path / "file.txt").write_text("file")
    app, inner = app_of(nothing), FastAPI()
    inner.add_api_route("/it", nothing)
    inner.add_api_route("/key", by_key)
    inner.add_api_route("/request", read_address)
    app.mount("/sub", inner)
    app.mount("/files", StaticFiles(directory=tmp_path))
    app.mount("/other", PlainTextResponse("whatever it goes by"))
    app.router.routes.append(Route("/starlette", lambda request: PlainTextResponse(str(request.client))))
    assert await policy_of(app, "/sub/it") == PUBLIC
    assert await policy_of(app, "/sub/it", method="HEAD") == PUBLIC
    assert await policy_of(app, "/sub/key") == PUBLIC
    assert await policy_of(app, "/sub/key", headers={"X-User-Token": "a"}) == PRIVATE
    assert await policy_of(app, "/sub/request") == PRIVATE
    assert await policy_of(app, "/files/file.txt") == PUBLIC
    assert await policy_of(app, "/other/it") == PRIVATE
    assert await policy_of(app, "/starlette") == PRIVATE


async def test_head_says_what_get_says() -> None:
    for handler, policy in ((nothing, PUBLIC), (read_address, PRIVATE), (by_header, PUBLIC)):
        assert await policy_of(app_of(handler), method="HEAD") == policy


async def test_a_route_that_was_added_later() -> None:
    app = app_of(nothing)
    app.add_api_route("/later", by_key)
    async with client_of(app) as client:
        answer = await client.get("http://test/later")
        assert answer.headers["Vary"] == "Authorization, Cookie, X-User-Token"
        mine = await client.get("http://test/later", headers={"X-User-Token": "a"})
    assert mine.headers["Cache-Control"] == PRIVATE


@pytest.mark.parametrize("client", [httpx2.AsyncClient])
async def test_every_client_is_anonymous_by_default(client: type[httpx2.AsyncClient]) -> None:
    transport = httpx2.ASGITransport(app=app_of(nothing))
    async with client(transport=transport, base_url="http://test") as asking:
        assert (await asking.get("/it")).headers["Cache-Control"] == PUBLIC
