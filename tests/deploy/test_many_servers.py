"""`default.conf`'s second form before two servers: what one has done holds on the other, and events are not held up."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx2
import pytest

from app.core.config import Settings
from scripts.embedded import Valkey
from tests.conftest import opened_session
from tests.deploy.files import DEFAULT_CONF, many_servers
from tests.deploy.image import Image
from tests.helper import PASSWORD, create_superuser, create_tier, create_user, signed_in
from tests.nginx import Nginx, nginx_with
from tests.processes import process, running_api, wait_for_worker

pytestmark = pytest.mark.anyio

LIMIT = 40
SERVERS = (
    ("uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
    ("gunicorn", "app.main:app", "-w", "1", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"),
)
WORKER = ("arq", "src.app.core.worker.settings.WorkerSettings")


@dataclass(frozen=True, slots=True)
class Deployment:
    """nginx, and what is behind it.

    Attributes:
        nginx: before both servers.
        public: asks nginx.
        each: ask a server each, past nginx.
    """

    nginx: Nginx
    public: httpx2.AsyncClient
    each: tuple[httpx2.AsyncClient, ...]

    def used(self) -> set[str]:
        """The addresses of the servers that have answered through nginx."""
        return {line["upstream"] for line in self.nginx.log()}


@contextmanager
def deployed(image: Image, valkey: Valkey) -> Iterator[Deployment]:
    with ExitStack() as stack:
        servers = [stack.enter_context(running_api(*command, cwd=image.workdir)) for command in SERVERS]
        worker = stack.enter_context(process(*WORKER, cwd=image.workdir))
        names = dict(zip(("fastapi1:8000", "fastapi2:8000"), servers, strict=True))
        nginx = stack.enter_context(nginx_with(many_servers(DEFAULT_CONF.read_text()), names))
        wait_for_worker(worker, valkey.port)
        clients = [httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30) for url in (nginx.url, *servers)]
        yield Deployment(nginx, clients[0], tuple(clients[1:]))


async def test_two_servers_are_one(
    settings: Settings,
    image: Image,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """One test for all of it: the servers take seconds to start."""
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1")
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", str(LIMIT))
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_PERIOD", "600")
    async with opened_session(settings) as db:
        await create_user(db, username="ada")
        admin = signed_in(await create_superuser(db, username="admin"), settings)
        await create_tier(db, "pro")
    with deployed(image, valkey) as deployment:
        try:
            with subtests.test("a login and its end"):
                await login_and_logout(deployment)
            with subtests.test("the cache"):
                await invalidation(deployment, admin)
            with subtests.test("a job, whose events come as they happen"):
                await job(deployment, admin)
            with subtests.test("limits"):
                await limits(deployment)
            with subtests.test("both have answered"):
                assert len(deployment.used()) == 2
        finally:
            for client in (deployment.public, *deployment.each):
                await client.aclose()


async def login_and_logout(deployment: Deployment) -> None:
    first, second = deployment.each
    answer = await first.post("login", data={"username": "ada", "password": PASSWORD})
    caller = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    for client in (deployment.public, deployment.public, *deployment.each):
        assert (await client.get("user/me/", headers=caller)).json()["username"] == "ada"
    assert (await second.post("logout", headers=caller)).status_code == 200
    for client in (deployment.public, deployment.public, *deployment.each):
        assert (await client.get("user/me/", headers=caller)).status_code == 401


async def invalidation(deployment: Deployment, admin: dict[str, str]) -> None:
    for client in (*deployment.each, *deployment.each):
        answer = await client.get("tier/pro", headers=admin)
    assert answer.headers["X-Cache"] == "HIT"
    for name, other in (("pro", "better"), ("better", "best"), ("best", "pro")):
        changed = await deployment.public.patch(f"tier/{name}", json={"name": other}, headers=admin)
        assert changed.status_code == 200
        for client in deployment.each:
            assert (await client.get(f"tier/{name}", headers=admin)).status_code == 404
            assert (await client.get(f"tier/{other}", headers=admin)).json()["name"] == other


async def job(deployment: Deployment, admin: dict[str, str]) -> None:
    """Its first event is there while it runs, a second before the last one."""
    first, second = deployment.each
    task = (await first.post("tasks/task", params={"message": "hello"}, headers=admin)).json()["id"]
    kinds: list[tuple[str, float]] = []
    clock = asyncio.get_running_loop().time
    async with deployment.public.stream("GET", f"tasks/task/{task}/events", headers=admin) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kinds.append((line.removeprefix("event: "), clock()))
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    assert kinds[0][0] == "progress"
    assert kinds[-1][0] == "end"
    assert kinds[-1][1] - kinds[0][1] > 0.2
    assert last["status"] == "complete"
    for client in (deployment.public, first, second):
        assert (await client.get(f"tasks/task/{task}", headers=admin)).json()["result"] == last["result"]


async def limits(deployment: Deployment) -> None:
    """Of one caller, whatever they say of themselves."""
    requests = (
        deployment.public.get("users", headers={"X-Forwarded-For": f"203.0.113.{number}"})
        for number in range(2 * LIMIT)
    )
    answers = await asyncio.gather(*requests)
    refused = [answer for answer in answers if answer.status_code == 429]
    passed = [answer for answer in answers if answer.status_code == 200]
    assert len(passed) + len(refused) == 2 * LIMIT
    # One rule for all routes: the few requests above that nobody was signed in for have counted too.
    before = LIMIT - len(passed)
    assert 0 <= before <= 6
    assert all("Retry-After" in answer.headers for answer in refused)
    for client in deployment.each:
        assert (await client.get("users")).status_code == 429
