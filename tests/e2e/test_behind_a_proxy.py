"""uvicorn, gunicorn and nginx as they are: scheme and host of a trusted proxy, and the path that it strips."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import pytest

from app.core.config import Settings
from tests.conftest import opened_session
from tests.helper import PASSWORD, create_user
from tests.nginx import nginx_before
from tests.processes import running_api

pytestmark = pytest.mark.anyio

UVICORN = ("uvicorn", "src.app.main:app", "--port", "{port}", "--log-level", "warning")
GUNICORN = (
    *("gunicorn", "src.app.main:app", "-w", "1", "-k", "uvicorn.workers.UvicornWorker"),
    *("-b", "127.0.0.1:{port}", "--log-level", "warning"),
)
TLS = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com", "X-Forwarded-For": "192.0.2.7"}
STRIPPING = """
      rewrite ^/svc/(.*)$ /$1 break;
      proxy_set_header Host $http_host;
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn believes everybody, which is not to matter."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")


@contextmanager
def client_from(address: str, url: str) -> Iterator[httpx2.Client]:
    """Connects from one of this machine's addresses."""
    with httpx2.Client(base_url=url, transport=httpx2.HTTPTransport(local_address=address), timeout=30) as client:
        try:
            client.get("/")
        except httpx2.ConnectError:
            pytest.skip("only where all of 127.0.0.0/8 is this machine")
        yield client


async def a_form(settings: Settings) -> dict[str, str]:
    async with opened_session(settings) as db:
        user = await create_user(db)
        await db.commit()
        return {"username": user.username, "password": PASSWORD}


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
async def test_the_scheme_of_a_trusted_proxy_makes_the_cookie_secure(
    settings: Settings, command: tuple[str, ...]
) -> None:
    """In `local`, where only the scheme decides about it."""
    form = await a_form(settings)
    with running_api(*command) as url:
        with client_from("127.0.0.1", url) as proxy:
            secure = proxy.post("/api/v1/login", data=form, headers=TLS).headers["Set-Cookie"]
            plain = proxy.post("/api/v1/login", data=form).headers["Set-Cookie"]
        with client_from("127.0.0.2", url) as stranger:
            claimed = stranger.post("/api/v1/login", data=form, headers=TLS).headers["Set-Cookie"]
    assert "; Secure" in secure
    assert "Secure" not in plain
    assert "Secure" not in claimed


async def test_the_host_of_a_trusted_proxy_is_the_site_that_asks(settings: Settings) -> None:
    form = await a_form(settings)
    sent = TLS | {"Origin": "https://api.example.com"}
    with running_api(*UVICORN) as url:
        with client_from("127.0.0.1", url) as proxy:
            assert proxy.post("/api/v1/login", data=form, headers=sent).status_code == 200
            assert proxy.post("/api/v1/login", data=form, headers=sent | {"Origin": url}).status_code == 403
        with client_from("127.0.0.2", url) as stranger:
            assert stranger.post("/api/v1/login", data=form, headers=sent).status_code == 403


@pytest.mark.parametrize("by", ["command line", "setting"])
async def test_below_a_path_that_nginx_strips(settings: Settings, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    form = await a_form(settings)
    if by == "setting":
        monkeypatch.setenv("ROOT_PATH", "/svc")
    command = (*UVICORN, "--root-path", "/svc") if by == "command line" else GUNICORN
    with ExitStack() as stack:
        server = stack.enter_context(running_api(*command))
        nginx = stack.enter_context(nginx_before(server, location=STRIPPING))
        browser = stack.enter_context(httpx2.Client(base_url=f"{nginx}/svc"))
        login = browser.post("/api/v1/login", data=form)
        assert "Path=/svc/api/v1;" in login.headers["Set-Cookie"]
        assert browser.post("/api/v1/refresh").status_code == 200
        document = browser.get("/openapi.json").json()
        assert document["servers"] == [{"url": "/svc"}]
        assert '"/svc/api/v1/login"' in browser.get("/openapi.json").text
        assert browser.get("/admin").headers["Location"] == "/svc/admin/"
        assert browser.get("/docs/assets/swagger/swagger-ui.css").status_code == 200
        assert browser.post("/api/v1/logout").status_code == 200
