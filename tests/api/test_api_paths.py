"""Where the API lives: under another prefix, and below the path under which a proxy has put the application."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin import add_console
from app.api import build_router
from app.api.dependencies import get_current_superuser
from app.core.config import Settings, SettingsError
from app.core.setup import create_application
from app.models.user import User
from tests.admin.operator import SAME_ORIGIN, token_in
from tests.conftest import second_session
from tests.helper import PASSWORD, create_rate_limit, create_superuser, create_tier, signed_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette_admin.contrib.sqla.view"),
]

ROOT = "/svc"
_ADDRESS = re.compile(r"""\b(?:href|src|action|url|openapi|spec-url)\s*[=:]\s*["'](/[^"']*)""")


def built(settings: Settings, **kwargs: Any) -> FastAPI:
    router = APIRouter()
    router.include_router(build_router(settings))

    @router.get("/where")
    async def where(request: Request) -> str:
        return str(request.url_for("where"))

    app = create_application(router, settings, docs_guard=[Depends(get_current_superuser)], **kwargs)
    add_console(app, settings)
    return app


@asynccontextmanager
async def asked(app: FastAPI, *, stripped: str = "", root_path: str = "") -> AsyncIterator[httpx2.AsyncClient]:
    """A client outside of a proxy, with the site as its base.

    Args:
        app: what is behind the proxy.
        stripped: what the proxy strips from paths.
        root_path: what the server was started with. It puts it before every path, as uvicorn does.
    """

    async def behind(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        path = root_path + scope["path"].removeprefix(stripped)
        raw_path = path.encode()
        await app({**scope, "path": path, "raw_path": raw_path, "root_path": root_path}, receive, send)

    transport = httpx2.ASGITransport(app=behind, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def use(client: httpx2.AsyncClient, api: str, root: str, settings: Settings) -> None:
    """Signs in, refreshes, is limited, reads the documentation, works in the console, and signs out.

    Args:
        client: asks the site.
        api: where the API is, as callers see it.
        root: where the application is.
        settings: the application's.
    """
    async with second_session() as db:
        user = await an_operator(db, api.removeprefix(root))
    await sign_in_and_out(client, api, user)
    await read_documentation(client, api, root, user, settings)
    await be_limited(client, api, root, user, settings)
    await work_in_the_console(client, root, user)


async def an_operator(db: AsyncSession, prefix: str) -> User:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, path=f"{prefix}/tiers", limit=2, period=60)
    user = await create_superuser(db, tier_id=tier.id)
    await db.commit()
    return user


async def sign_in_and_out(client: httpx2.AsyncClient, api: str, user: User) -> None:
    form = {"username": user.username, "password": PASSWORD}
    for path in ("login", "refresh", "logout"):
        answer = await client.post(f"{api}/{path}", data=form if path == "login" else None)
        assert answer.status_code == 200, (path, answer.text)
        cookie = SimpleCookie(answer.headers["Set-Cookie"])["refresh_token"]
        assert cookie["path"] == api
        assert (cookie["max-age"] == "0") is (path == "logout")
    assert (await client.post(f"{api}/refresh")).status_code == 401


async def read_documentation(client: httpx2.AsyncClient, api: str, root: str, user: User, settings: Settings) -> None:
    document = (await client.get(f"{root}/openapi.json")).json()
    [scheme] = [one for one in document["components"]["securitySchemes"].values() if one["type"] == "oauth2"]
    assert scheme["flows"]["password"]["tokenUrl"] == f"{api}/login"
    server = document.get("servers", [{"url": ""}])[0]["url"]
    assert server == root
    assert f"{api.removeprefix(root)}/login" in document["paths"]
    for page in ("docs", "redoc"):
        text = (await client.get(f"{root}/{page}")).text
        assert f"{root}/openapi.json" in text
        for address in _ADDRESS.findall(text):
            assert (await client.get(address)).status_code == 200, address
    where = await client.get(f"{root}/where")
    assert where.json() == f"http://test{root}/where"
    assert (await client.get(f"{root}/metrics")).status_code == 200


async def be_limited(client: httpx2.AsyncClient, api: str, root: str, user: User, settings: Settings) -> None:
    me = signed_in(user, settings)
    await client.post(f"{api}/login", data={"username": user.username, "password": PASSWORD})
    statuses = [(await client.get(f"{api}/tiers", headers=me)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    usage = (await client.get(f"{api}/user/me/usage", headers=me)).json()
    assert f"{api.removeprefix(root)}/tiers" in str(usage)


async def work_in_the_console(client: httpx2.AsyncClient, root: str, user: User) -> None:
    moved = await client.get(f"{root}/admin")
    assert (moved.status_code, moved.headers["Location"]) == (308, f"{root}/admin/")
    form = await client.get(moved.headers["Location"])
    assert form.headers["Location"].startswith(f"{root}/admin/login")
    page = await client.get(form.headers["Location"])
    values = {"username": user.username, "password": PASSWORD, "csrftoken": token_in(page)}
    opened = await client.post(str(page.url), data=values, headers=SAME_ORIGIN)
    assert (opened.status_code, opened.headers["Location"]) == (303, f"{root}/admin/")
    front = await client.get(opened.headers["Location"])
    assert user.username in front.text
    for text in (page.text, front.text, (await client.get(f"{root}/admin/tier/list")).text):
        addresses = set(_ADDRESS.findall(text))
        assert addresses
        for address in addresses:
            assert address.startswith(f"{root}/"), address
            if "logout" not in address:
                answer = await client.get(address)
                assert answer.status_code in {200, 303, 405}, (address, answer.status_code)
    out = await client.post(f"{root}/admin/logout", data={"csrftoken": token_in(front)}, headers=SAME_ORIGIN)
    assert (out.status_code, out.headers["Location"]) == (303, f"{root}/admin/login")


# ---- Another prefix ----


@pytest.mark.parametrize("prefix", ["/api/v2", "/v1", "/a/longer/one", ""])
async def test_the_prefix_is_said_once(settings: Settings, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setattr("app.api.PREFIX", prefix)
    async with asked(built(settings)) as client:
        if prefix:
            await use(client, prefix, "", settings)
        else:  # Whatever is below the site is below the API: a cookie of the whole site.
            async with second_session() as db:
                user = await an_operator(db, prefix)
            answer = await client.post("/login", data={"username": user.username, "password": PASSWORD})
            assert SimpleCookie(answer.headers["Set-Cookie"])["refresh_token"]["path"] == "/"


async def test_a_prefix_with_a_parameter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a cookie of its own, whatever is in the path."""
    monkeypatch.setattr("app.api.PREFIX", "/{tenant}/v1")
    async with asked(built(settings)) as client:
        async with second_session() as db:
            user = await create_superuser(db)
            await db.commit()
        form = {"username": user.username, "password": PASSWORD}
        for tenant in ("ada", "a;Domain=evil.example", "a b", "ä", "a%0d%0aX-Injected: 1"):
            answer = await client.post(f"/{tenant}/v1/login", data=form)
            assert answer.status_code == 200
            cookie = SimpleCookie(answer.headers["Set-Cookie"])["refresh_token"]
            assert re.fullmatch(r"/[^/;\s]+/v1", cookie["path"])
            assert cookie["domain"] == ""
            if ";" not in tenant:  # It cannot stand in a cookie's path: no browser would send this one.
                assert (await client.post(f"/{tenant}/v1/refresh")).status_code == 200, tenant


async def test_a_prefix_with_a_typed_parameter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.PREFIX", "/{tenant:int}/v1")
    async with asked(built(settings)) as client:
        async with second_session() as db:
            user = await create_superuser(db)
            await db.commit()
        answer = await client.post("/7/v1/login", data={"username": user.username, "password": PASSWORD})
        assert answer.status_code == 200
        assert SimpleCookie(answer.headers["Set-Cookie"])["refresh_token"]["path"] == "/7/v1"
        assert (await client.post("/7/v1/refresh")).status_code == 200


async def test_sign_in_apart_from_the_rest(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that includes the whole API below a prefix of its own."""
    app = create_application(APIRouter(), settings)
    app.include_router(build_router(settings), prefix="/outer")
    async with asked(app) as client:
        async with second_session() as db:
            user = await an_operator(db, "/outer/api/v1")
        await sign_in_and_out(client, "/outer/api/v1", user)


# ---- Below a root path ----


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "passed on"])
async def test_the_setting_root_path(settings: Settings, strips: bool) -> None:
    settings = settings.model_copy(update={"ROOT_PATH": ROOT})
    async with asked(built(settings), stripped=ROOT if strips else "") as client:
        await use(client, f"{ROOT}/api/v1", ROOT, settings)


async def test_the_servers_root_path(settings: Settings) -> None:
    """`uvicorn --root-path /svc` behind a proxy that strips it."""
    async with asked(built(settings), stripped=ROOT, root_path=ROOT) as client:
        await use(client, f"{ROOT}/api/v1", ROOT, settings)


async def test_server_and_setting_say_the_same(settings: Settings) -> None:
    settings = settings.model_copy(update={"ROOT_PATH": ROOT})
    async with asked(built(settings), stripped=ROOT, root_path=ROOT) as client:
        await use(client, f"{ROOT}/api/v1", ROOT, settings)


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "passed on"])
async def test_fastapis_own_root_path(settings: Settings, strips: bool) -> None:
    async with asked(built(settings, root_path=ROOT), stripped=ROOT if strips else "") as client:
        await use(client, f"{ROOT}/api/v1", ROOT, settings)


async def test_a_root_path_and_another_prefix(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.PREFIX", "/v1")
    settings = settings.model_copy(update={"ROOT_PATH": "/api/products"})
    async with asked(built(settings), stripped="/api/products") as client:
        await use(client, "/api/products/v1", "/api/products", settings)


async def test_health_is_found_with_and_without_the_proxy(settings: Settings) -> None:
    settings = settings.model_copy(update={"ROOT_PATH": ROOT})
    async with asked(built(settings)) as client:
        for path in ("/api/v1/health", f"{ROOT}/api/v1/health"):
            assert (await client.get(path)).status_code == 200
        for path in (f"{ROOT}api/v1/health", f"{ROOT}{ROOT}/api/v1/health"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("root_path", ["/api", "/api/v1", "/docs", "/admin", "/metrics"])
async def test_a_root_path_that_cannot_be_told_from_the_apps_own_paths(settings: Settings, root_path: str) -> None:
    app = built(settings.model_copy(update={"ROOT_PATH": root_path}))
    with pytest.raises(
        SettingsError, match=f"^ROOT_PATH must not be the beginning of a path .* begins with {root_path}"
    ):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    "broken", ["svc", "/", "/svc/", "//svc", "/svc;x", "/s vc", "/svc\r\nX: y", "/{x}", "http://a/b", "/ä"]
)
def test_what_is_no_root_path_is_refused(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setenv("ROOT_PATH", broken)
    with pytest.raises(SettingsError, match=r"^ROOT_PATH must be the path under which a proxy"):
        Settings()
