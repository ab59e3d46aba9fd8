"""Whose count a request is, behind nginx and without it: what callers say of themselves is worth nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import httpx2
import pytest

from app.core.config import Settings
from tests.conftest import opened_session
from tests.helper import create_rate_limit, create_tier, create_user, signed_in
from tests.nginx import FORWARDING, nginx_before
from tests.processes import running_api

pytestmark = pytest.mark.anyio

LIMIT = 10
PERIOD = 600  # seconds, so that nothing that is used is free again before a test is over
API = "/api/v1"

UVICORN = ("uvicorn", "src.app.main:app", "--port", "{port}", "--log-level", "warning")
GUNICORN = (
    *("gunicorn", "src.app.main:app", "-w", "2", "-k", "uvicorn.workers.UvicornWorker"),
    *("-b", "127.0.0.1:{port}", "--log-level", "warning"),
)

Headers = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers'. uvicorn believes everybody, which is not to matter."""
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", str(LIMIT))
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_PERIOD", str(PERIOD))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.delenv("TRUSTED_PROXIES", raising=False)


def said(*values: str) -> Headers:
    return [("X-Forwarded-For", value) for value in values]


def invented() -> list[Headers]:
    """A hundred ways to say that one is somebody else."""
    headers: list[Headers] = []
    for number in range(10):
        four, six = f"203.0.113.{number}", f"2001:db8:{number}::1"
        headers += [
            said(four),
            said(f"{four}:{4000 + number}"),
            said(six),
            said(f"[{six}]:{4000 + number}"),
            said(f"::ffff:{four}"),
            said(f"{four}, {six} ,127.0.0.1"),
            said(four, six, "127.0.0.1"),
            said(f"127.0.0.{number}"),
            said(f"unknown, _{number}, ,,"),
            [*said(four), ("X-Real-IP", four), ("Forwarded", f"for={four}"), ("X-Forwarded-Host", f"{number}.test")],
        ]
    return headers


@asynccontextmanager
async def client_from(address: str, url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Connects from one of this machine's addresses."""
    transport = httpx2.AsyncHTTPTransport(local_address=address)
    async with httpx2.AsyncClient(base_url=url, transport=transport, timeout=30) as client:
        try:
            await client.get(f"{API}/health")
        except httpx2.ConnectError:
            pytest.skip("only where all of 127.0.0.0/8 is this machine")
        yield client


async def how_many_pass(address: str, url: str, requests: list[Headers]) -> int:
    async with client_from(address, url) as client:
        answers = await asyncio.gather(*(client.get(f"{API}/tiers", headers=headers) for headers in requests))
    assert {answer.status_code for answer in answers} <= {200, 429}
    return sum(answer.status_code == 200 for answer in answers)


# ---- Behind nginx ----


@pytest.mark.parametrize(
    "commands", [[UVICORN, UVICORN], [GUNICORN]], ids=["two uvicorns", "gunicorn with two workers"]
)
async def test_behind_nginx(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests, commands: list[tuple[str, ...]]
) -> None:
    """One test for all of it: the servers take seconds to start."""
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")
    ada = await a_caller(settings)
    with ExitStack() as stack:
        starting = (asyncio.to_thread(stack.enter_context, running_api(*command)) for command in commands)
        servers = await asyncio.gather(*starting)
        nginx = stack.enter_context(nginx_before(*servers, location=FORWARDING))
        with subtests.test("two addresses have two counts, whatever they say"):
            assert await how_many_pass("127.0.0.1", nginx, invented()) == LIMIT
            assert await how_many_pass("127.0.0.2", nginx, invented()) == LIMIT
            for address in ("127.0.0.1", "127.0.0.2"):
                assert await how_many_pass(address, nginx, [[], *invented()]) == 0
        with subtests.test("past nginx, an address is the same"):
            assert await how_many_pass("127.0.0.2", servers[0], [[], *invented()]) == 0
            assert await how_many_pass("127.0.0.3", servers[-1], invented()) == LIMIT
            assert await how_many_pass("127.0.0.3", nginx, invented()) == 0
        with subtests.test("what the proxy itself says is believed"):
            for address in ("198.51.100.1", "198.51.100.2"):
                assert await how_many_pass("127.0.0.1", servers[0], [said(address)] * 2 * LIMIT) == LIMIT
        async with client_from("127.0.0.4", nginx) as client:
            with subtests.test("however a path is written, it is one template"):
                await each_counts(client, ada, PROFILES)
                await each_counts(client, ada, ME)
            with subtests.test("another path is none, and answered without any work"):
                for path in ("user/ada/", "/user/ada", "user//ada", "USER/ada", "user/ada%2F"):
                    answer = await client.get(f"{API}/{path}", headers=ada)
                    assert answer.status_code == 404
                    assert "RateLimit" not in answer.headers
            with subtests.test("both processes have let somebody through"):
                assert 0 < await allowed_by_one_process(client) < 5 * LIMIT


PROFILES = (
    *("/api/v1/user/ada", "/api/v1/user/bob", "/api/v1/user/nobody", "/api/v1/user/%61da", "/api/v1/user/%61%64%61"),
    *("/api/v1/us%65r/ada", "/api/v1/%75ser/%62ob", "/api/%761/user/ada", "/%61pi/v1/user/ada", "/api%2Fv1/user/ada"),
    *("/api/v1/user/ada?x=1", "/api/v1/user/ada?x=2&x=3", "/api/v1/user/ada?", "/api/v1/user/ada;x=1"),
    *("/api/v1/user/ADA", "/api/v1/user/%41DA", "/api/v1/user/x", "/api/v1/user/%C3%A4da", "/api/v1/user/ada%20"),
)
ME = (
    *("/api/v1/user/me/", "/api/v1/user/me", "/api/v1/user/m%65", "/api/v1/user/%6De/?x", "/api/v1/us%65r/me/"),
    *("/api/v1/user/me?y=1", "/api/%761/user/me/"),
)


async def a_caller(settings: Settings) -> dict[str, str]:
    """Ada, who has rules for two templates, with a request for each way to write them."""
    async with opened_session(settings) as db:
        tier = await create_tier(db)
        for path, ways in (("/api/v1/user/{username}", PROFILES), ("/api/v1/user/me/", ME)):
            await create_rate_limit(db, tier, name="one", path=path, limit=len(ways), period=PERIOD)
        ada = await create_user(db, username="ada", tier_id=tier.id)
        await create_user(db, username="bob")
    return signed_in(ada, settings)


async def each_counts(client: httpx2.AsyncClient, caller: dict[str, str], paths: tuple[str, ...]) -> None:
    """Each is counted with the others, whatever its answer is; and then refused."""
    for number, path in enumerate(paths, start=1):
        answer = await client.get(path, headers=caller)
        assert answer.status_code in {200, 404, 422}, path
        assert f'"one";r={len(paths) - number};' in answer.headers.get("RateLimit", ""), path
    for path in paths:
        assert (await client.get(path, headers=caller)).status_code == 429, path


async def allowed_by_one_process(client: httpx2.AsyncClient) -> int:
    """How many requests whichever process now answers has let through by the default rule."""
    metrics = (await client.get("/metrics")).text
    start = 'slipway_rate_limit_requests_total{counted_in="redis",path="*",result="allowed"}'
    return sum(int(float(line.split()[1])) for line in metrics.splitlines() if line.startswith(start))


# ---- Without a proxy ----


@pytest.mark.parametrize(
    ("command", "believed"),
    [(UVICORN, "*"), (UVICORN, None), (GUNICORN, "*")],
    ids=["uvicorn believes everybody", "uvicorn", "gunicorn"],
)
async def test_without_trusted_proxies(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], believed: str | None
) -> None:
    if believed is None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    with running_api(*command) as url:
        for address in ("127.0.0.1", "127.0.0.2"):
            assert await how_many_pass(address, url, invented()) == LIMIT
            assert await how_many_pass(address, url, [[]]) == 0
