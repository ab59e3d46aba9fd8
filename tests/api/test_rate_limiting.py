"""What the limiter does to requests, over HTTP: who is counted, by which rule, and what the caller is told."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from itertools import count, takewhile
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client import REGISTRY
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request
from structlog.testing import capture_logs

from app.api import build_router
from app.api.dependencies import limit_rate
from app.core.config import (
    AppSettings,
    DefaultRateLimitSettings,
    RateLimitMode,
    RedisCacheSettings,
    RedisRateLimiterSettings,
    Settings,
    get_settings,
)
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils.cache import cache, invalidation
from app.core.utils.rate_limit import keeper, limit, limits_routes, rate_limit_cost
from app.core.utils.redis_link import Link
from app.models.user import User
from scripts.embedded import Valkey, free_port, scratch_folder
from tests.conftest import client_of
from tests.helper import (
    PASSWORD,
    all_rows,
    counted_statements,
    create_rate_limit,
    create_session,
    create_superuser,
    create_tier,
    create_user,
    signed_in,
)

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
PROFILE = "/api/v1/user/{username}"
OUTSIDE = {"/api/v1/health", "/api/v1/ready", "/api/v1/media/{folder}/{owner}/{name}"}
PLENTY = 1_000
PATIENT = 5.0  # seconds
_number = count(1)
FIRST_ADDRESS = IPv4Address("10.0.0.0")


@pytest.fixture
def default_limit() -> int:
    """Requests of the default rule; a test says another number as a parameter."""
    return 3


@pytest.fixture
def mode() -> RateLimitMode:
    return RateLimitMode.ENFORCE


@pytest.fixture
def settings(settings: Settings, default_limit: int, mode: RateLimitMode, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # A busy machine answers late, and what is then counted in process is counted apart.
    monkeypatch.setitem(Link.__init__.__kwdefaults__ or {}, "answer_timeout", PATIENT)
    monkeypatch.setenv("DEFAULT_RATE_LIMIT_LIMIT", str(default_limit))
    monkeypatch.setenv("RATE_LIMIT_MODE", mode)
    get_settings.cache_clear()
    return get_settings()


@pytest.fixture
def stored(settings: Settings, valkey: Valkey) -> Iterator[Any]:
    """A look into Valkey past everything of ours."""
    with Redis(host="127.0.0.1", port=valkey.port, decode_responses=True, single_connection_client=True) as client:
        yield client


From = Callable[..., httpx2.AsyncClient]


@pytest.fixture
async def calling(app: FastAPI) -> AsyncIterator[From]:
    """Makes a client at an address: the one given, or one that nobody else has."""
    clients: list[httpx2.AsyncClient] = []

    def make(address: str | None = None, app: FastAPI = app) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=app, client=(address or str(FIRST_ADDRESS + next(_number)), 4711))
        clients.append(httpx2.AsyncClient(transport=transport, base_url="http://test/api/v1/"))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


STRING = r'"([ !#-\[\]-~]*)"'
ITEM = rf"{STRING}((?:;[a-z]+=[0-9]+)+)"


def parsed(header: str) -> list[dict[str, Any]]:
    """A list of strings with whole numbers as parameters, as RFC 9651 writes it. Fails for anything else."""
    assert re.fullmatch(rf"{ITEM}(?:, {ITEM})*", header), header
    return [
        {"name": name} | {key: int(value) for key, value in (pair.split("=") for pair in pairs[1:].split(";"))}
        for name, pairs in re.findall(ITEM, header)
    ]


def told(answer: httpx2.Response) -> list[tuple[str, int, int, int]]:
    """Name, limit, period and what is left of each window that an answer names, whose headers have to be in order."""
    policies, left = parsed(answer.headers["RateLimit-Policy"]), parsed(answer.headers["RateLimit"])
    assert [set(policy) for policy in policies] == [{"name", "q", "w"}] * len(policies)
    assert [set(item) for item in left] == [{"name", "r", "t"}] * len(policies)
    assert [policy["name"] for policy in policies] == [item["name"] for item in left]
    for policy, item in zip(policies, left, strict=True):
        assert 0 <= item["r"] <= policy["q"]
        assert 0 < item["t"] <= policy["w"]
    return [(one["name"], one["q"], one["w"], two["r"]) for one, two in zip(policies, left, strict=True)]


def left_of(answer: httpx2.Response) -> int:
    """What is left of the only window that an answer names."""
    ((*_, left),) = told(answer)
    return left


def says_nothing(answer: httpx2.Response) -> bool:
    """Whether an answer has no word about limits."""
    return not {"ratelimit", "ratelimit-policy", "retry-after"} & set(answer.headers)


async def statuses(ask: Callable[[], Awaitable[httpx2.Response]], times: int) -> list[int]:
    return [(await ask()).status_code for _ in range(times)]


async def create_admin(db: AsyncSession, settings: Settings) -> dict[str, str]:
    """The headers of a superuser who can ask as often as they like."""
    staff = await create_tier(db, f"staff {next(_number)}")
    await create_rate_limit(db, staff, name="staff", limit=1_000_000)
    return signed_in(await create_superuser(db, tier_id=staff.id), settings)


def metric(path: str, result: str, counted_in: str = "redis") -> float:
    """Requests of this kind, as Prometheus would read it now."""
    labels = {"path": path, "result": result, "counted_in": counted_in}
    return REGISTRY.get_sample_value("slipway_rate_limit_requests_total", labels) or 0


# ---- Every route ----


def all_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path under the prefix, documented or not."""
    return [
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute) and context.path and context.path.startswith("/api/v1/")
        for method in sorted(context.methods or ())
    ]


def filled(template: str) -> str:
    """A path of this template, as a whole address."""
    return "http://test" + re.sub(r"\{\w+\}", "1", template)


async def test_every_route_but_health_is_limited(app: FastAPI, calling: From, db: AsyncSession) -> None:
    routes = [route for route in all_routes(app) if route[1] not in OUTSIDE]
    assert len(routes) >= 38
    for method, path in routes:
        client = calling()
        for _ in range(3):
            answer = await client.request(method, filled(path))
            assert answer.status_code not in {405, 429, 500}, (method, path)
            if answer.status_code in {401, 403}:
                assert says_nothing(answer), (method, path)
            else:
                assert told(answer)[0][:3] == ("default", 3, 60), (method, path)
        assert (await client.request(method, filled(path))).status_code == 429, (method, path)


async def test_every_route_of_a_user_is_limited(
    app: FastAPI, calling: From, db: AsyncSession, settings: Settings
) -> None:
    for method, path in all_routes(app):
        if path in OUTSIDE:
            continue
        user = signed_in(await create_superuser(db), settings)
        spent = [(await calling().get("tiers", headers=user)).status_code for _ in range(3)]
        assert spent == [200] * 3
        refused = await calling().request(method, filled(path), headers=user)
        assert refused.status_code == 429, (method, path)


async def test_health_is_never_limited(calling: From) -> None:
    client = calling()
    for path in ("health", "ready"):
        for method in ("GET", "HEAD"):
            answers = [await client.request(method, path) for _ in range(5)]
            assert all(answer.status_code == 200 and says_nothing(answer) for answer in answers)
    assert left_of(await client.get("tiers")) == 2


async def chunks(size: int = 20) -> AsyncIterator[bytes]:
    for _ in range(size):
        yield b" " * 65_536


UNREAD: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "user", {"content": b"{", "headers": JSON}, 422),
    ("POST", "user", {"content": b"\xff\xfe", "headers": JSON}, 422),
    ("POST", "user", {"content": b'{"name": "a", "n', "headers": JSON}, 422),
    ("POST", "user", {"content": b"[" * 100_000, "headers": JSON}, 400),
    ("POST", "user", {"content": chunks, "headers": JSON}, 413),
    (
        "POST",
        "login",
        {"content": b"--y\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
    ),
    ("POST", "login", {"content": chunks, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 413),
    ("PATCH", "tier/pro", {"content": b"{", "headers": JSON}, 422),
    ("PATCH", "user/ada/tier", {"content": b"nonsense", "headers": JSON}, 422),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), UNREAD)
async def test_bodies_that_cannot_be_read_are_counted(
    calling: From, method: str, path: str, body: dict[str, Any], status: int
) -> None:
    client = calling()

    async def ask() -> httpx2.Response:
        content = body["content"]() if callable(body["content"]) else body["content"]
        return await client.request(method, path, content=content, headers=body["headers"])

    for left in (2, 1, 0):
        answer = await ask()
        assert answer.status_code == status
        assert left_of(answer) == left
    refused = await ask()
    assert refused.status_code == 429
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["type"] == "urn:problem-type:rate-limited"
    assert int(refused.headers["Retry-After"]) > 0
    assert left_of(refused) == 0
    assert int(refused.headers["Content-Length"]) == len(refused.content)
    assert (await client.get("tiers")).status_code == 429
    assert (await calling().get("tiers")).status_code == 200


async def test_a_body_that_cannot_be_read_is_nobodys(calling: From, db: AsyncSession, settings: Settings) -> None:
    user, client = signed_in(await create_user(db), settings), calling()
    for left in (2, 1, 0):
        assert left_of(await client.post("user", content=b"{", headers=user | JSON)) == left
    assert (await client.post("user", content=b"{", headers=user | JSON)).status_code == 429
    assert left_of(await client.get("tiers", headers=user)) == 2


async def test_what_is_refused_with_422_by_a_read_body_counts_once(calling: From) -> None:
    client = calling()
    for left in (2, 1, 0):
        answer = await client.post("user", json={})
        assert answer.status_code == 422
        assert left_of(answer) == left


# ---- What the caller is told ----


@pytest.mark.parametrize("default_limit", [PLENTY])
async def test_every_answer_says_what_is_left(calling: From, db: AsyncSession, settings: Settings) -> None:
    await create_tier(db, "pro")
    await create_user(db, username="ada")
    client = calling()
    new = {"name": "N", "username": "grace", "email": "grace@example.com", "password": PASSWORD}
    first = await client.get("tiers")
    tag = {"If-None-Match": first.headers["ETag"]}
    answers = [
        first,
        await client.get("tiers"),
        await client.get("tiers", headers=tag),
        await client.head("tiers"),
        await client.head("users"),
        await client.head("user/nosuch"),
        await client.post("user", json=new),
        await client.post("user", json=new),
        await client.post("tasks/task?message=hello"),
        await client.get("user/nosuch"),
        await client.get("user/ada"),
        await client.get("users?page=0"),
        await client.post("user", json={}),
        await client.post("user", content=b"{", headers=JSON),
    ]
    found = [200, 200, 304, 200, 200, 404, 201, 409, 201, 404, 200, 422, 422, 422]
    assert [answer.status_code for answer in answers] == found
    assert [answer.headers.get("X-Cache") for answer in answers[:2]] == ["MISS", "HIT"]
    assert [told(answer) for answer in answers] == [
        [("default", PLENTY, 60, PLENTY - asked)] for asked in range(1, len(answers) + 1)
    ]
    assert not [answer for answer in answers if "Retry-After" in answer.headers]
    assert all(answer.headers["RateLimit-Policy"] == f'"default";q={PLENTY};w=60' for answer in answers)


@pytest.mark.parametrize("default_limit", [PLENTY])
async def test_what_is_cached_has_no_word_about_limits(calling: From, db: AsyncSession, settings: Settings) -> None:
    await create_tier(db, "pro")
    ada, bob = [signed_in(await create_user(db), settings) for _ in range(2)]
    here, there = calling(), calling()
    for path in ("tiers", "tier/pro"):
        assert (await here.get(path)).headers["X-Cache"] == "MISS"
    hits = [
        await here.get("tiers"),
        await there.get("tier/pro"),
        await there.get("tiers", headers=ada),
        await here.get("tiers", headers=bob),
        await here.head("tiers", headers=bob),
    ]
    assert [hit.headers["X-Cache"] for hit in hits] == ["HIT"] * 5
    assert [left_of(hit) for hit in hits] == [PLENTY - 3, PLENTY - 1, PLENTY - 1, PLENTY - 1, PLENTY - 2]
    assert [hit.headers.get_list("RateLimit") for hit in hits] == [[hit.headers["RateLimit"]] for hit in hits]


async def test_a_refusal_says_when_to_come_back(calling: From) -> None:
    client = calling()
    assert await statuses(lambda: client.get("tiers"), 3) == [200] * 3
    for method in ("GET", "HEAD"):
        refused = await client.request(method, "tiers")
        assert refused.status_code == 429
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert told(refused) == [("default", 3, 60, 0)]
        assert "no-store" in refused.headers["Cache-Control"]
        assert refused.headers["X-Request-ID"]
        assert "X-Cache" not in refused.headers
        wait = int(refused.headers["Retry-After"])
        assert 0 < wait <= 60
        if method == "GET":
            problem = refused.json()
            assert (problem["type"], problem["title"]) == ("urn:problem-type:rate-limited", "Too Many Requests")
            assert (problem["status"], problem["request_id"]) == (429, refused.headers["X-Request-ID"])
            assert problem["violated_policies"] == ["default"]
            assert f"{wait} s" in problem["detail"]


async def test_whoever_waits_as_told_is_let_through(calling: From, db: AsyncSession, settings: Settings) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, limit=2, period=1)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    for _ in range(2):
        answers = await asyncio.gather(*(client.get("tiers", headers=user) for _ in range(6)))
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 4
        await asyncio.sleep(max(int(answer.headers.get("Retry-After", 0)) for answer in answers))


async def test_what_is_refused_is_not_counted(calling: From, stored: Any) -> None:
    client = calling("203.0.113.200")
    await statuses(lambda: client.get("tiers"), 20)
    (key,) = stored.keys("rate:{address:203.0.113.200}:*:log")
    assert stored.zcard(key) == 3
    assert 0 < stored.pttl(key) <= 60_000


async def test_of_simultaneous_requests_as_many_as_the_limit_pass(calling: From) -> None:
    client = calling()
    answers = await asyncio.gather(*(client.get("tiers") for _ in range(30)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 27


async def test_a_refused_request_changes_nothing(calling: From, db: AsyncSession, stored: Any) -> None:
    client = calling()
    assert await statuses(lambda: client.get("tiers"), 3) == [200] * 3
    before, queued = await all_rows(db), stored.zcard("arq:queue")
    new = {"name": "N", "username": "grace", "email": "grace@example.com", "password": PASSWORD}
    for refused in (
        await client.post("user", json=new),
        await client.post("tasks/task?message=hello"),
        await client.post("login", data={"username": "grace", "password": "wrong password"}),
        await client.post("password_reset", json={"email": "grace@example.com"}),
    ):
        assert refused.status_code == 429
        assert "Set-Cookie" not in refused.headers
    assert await all_rows(db) == before
    assert stored.zcard("arq:queue") == queued == 0
    assert (await calling().post("tasks/task?message=hello")).status_code == 201
    assert stored.zcard("arq:queue") == 1


async def test_401_and_403_say_nothing_but_count(calling: From, db: AsyncSession, settings: Settings) -> None:
    user, client = signed_in(await create_user(db), settings), calling()
    for asked in (
        client.get("user/me/"),
        client.post("logout"),
        client.post("login", data={"username": "x", "password": "y"}),
    ):
        answer = await asked
        assert answer.status_code == 401
        assert says_nothing(answer)
    assert (await client.get("user/me/")).status_code == 429
    for _ in range(3):
        answer = await client.post("tier", json={"name": "mine"}, headers=user)
        assert answer.status_code == 403
        assert says_nothing(answer)
    assert (await client.post("tier", json={"name": "mine"}, headers=user)).status_code == 429


# ---- Who is counted ----


async def test_users_and_addresses_are_counted_apart(calling: From, db: AsyncSession, settings: Settings) -> None:
    ada, bob = [signed_in(await create_user(db), settings) for _ in range(2)]
    client = calling()
    for headers in (ada, bob, {}):
        for left in (2, 1, 0):
            assert left_of(await client.get("tiers", headers=headers)) == left
        assert (await client.get("tiers", headers=headers)).status_code == 429
    assert left_of(await calling().get("tiers")) == 2


async def test_a_user_is_one_wherever_they_are_and_however_often_they_sign_in(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    second = await create_session(db, user)
    here, there = calling(), calling()
    assert left_of(await here.get("tiers", headers=signed_in(user, settings))) == 2
    assert left_of(await there.get("tiers", headers=signed_in(user, settings))) == 1
    assert left_of(await there.get("tiers", headers=signed_in(user, settings, second.id))) == 0
    assert (await calling().get("tiers", headers=signed_in(user, settings, second.id))).status_code == 429


async def test_addresses_are_counted_by_what_one_customer_has(calling: From) -> None:
    asked = [
        ("2001:db8:1:2::1", 2),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", 1),
        ("2001:db8:1:3::1", 2),
        ("192.0.2.1", 2),
        ("::ffff:192.0.2.1", 1),
        ("::ffff:c000:201", 0),
        ("192.0.2.2", 2),
    ]
    assert [(address, left_of(await calling(address).get("tiers"))) for address, _ in asked] == asked


async def tokens_that_are_refused(user: User, db: AsyncSession, settings: Settings) -> dict[str, dict[str, str]]:
    session = await create_session(db, user)
    revoked = signed_in(user, settings, session.id)
    await db.delete(session)
    await db.commit()
    good = signed_in(user, settings)["Authorization"]
    expired = settings.model_copy(update={"ACCESS_TOKEN_EXPIRE_MINUTES": -10})
    header, claims, signature = good.split(".")
    return {
        "broken": {"Authorization": f"{header}.{claims}.{signature[::-1]}"},
        "expired": signed_in(user, expired),
        "revoked": revoked,
        "of another scheme": {"Authorization": good.replace("Bearer", "Basic")},
        "empty": {"Authorization": ""},
    }


async def test_a_token_that_is_refused_is_nobodys(calling: From, db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)
    good = signed_in(user, settings)
    assert left_of(await calling().get("tiers", headers=good)) == 2
    for kind, headers in (await tokens_that_are_refused(user, db, settings)).items():
        client = calling()
        public = await client.get("tiers", headers=headers)
        assert public.status_code == 200, kind
        assert left_of(public) == 2, kind
        refused = await client.get("users", headers=headers)
        assert refused.status_code == 401, kind
        assert says_nothing(refused), kind
        assert left_of(await client.get("tiers")) == 0, kind
        assert (await client.get("users", headers=headers)).status_code == 429, kind
    assert left_of(await calling().get("tiers", headers=good)) == 1


async def test_a_token_that_is_refused_gets_nothing_of_its_users_tier(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, limit=PLENTY)
    user = await create_user(db, tier_id=tier.id)
    assert told(await calling().get("tiers", headers=signed_in(user, settings)))[0][:2] == ("all", PLENTY)
    for headers in (await tokens_that_are_refused(user, db, settings)).values():
        assert told(await calling().get("tiers", headers=headers)) == [("default", 3, 60, 2)]


async def test_two_tokens_at_once_are_nobodys(calling: From, db: AsyncSession, settings: Settings) -> None:
    both = [signed_in(await create_user(db), settings) for _ in range(2)]
    client = calling()
    answer = await client.get("tiers", headers=[pair for headers in both for pair in headers.items()])
    assert (answer.status_code, left_of(answer)) == (200, 2)
    assert left_of(await client.get("tiers")) == 1
    assert [left_of(await client.get("tiers", headers=headers)) for headers in both] == [2, 2]


async def test_a_deleted_user_is_nobody_at_once(calling: From, db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)
    headers, client = signed_in(user, settings), calling()
    assert (await client.delete(f"user/{user.username}", headers=headers)).status_code == 200
    assert left_of(await client.get("tiers", headers=headers)) == 2


async def test_invented_addresses_do_not_help(calling: From, settings: Settings) -> None:
    client = calling()
    answers = [
        await client.get("tiers", headers={name: f"198.51.100.{n}"})
        for n in range(25)
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "CF-Connecting-IP")
    ]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 97


@pytest.fixture
def app_behind_a_proxy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8")
    get_settings.cache_clear()
    return create_application(build_router(get_settings()), get_settings())


async def test_behind_a_proxy_the_address_is_what_the_proxy_adds(calling: From, app_behind_a_proxy: FastAPI) -> None:
    def forwarded(n: int, client: str) -> dict[str, str]:
        return {"X-Forwarded-For": f"198.51.100.{n}, {client}"}

    async with app_behind_a_proxy.router.lifespan_context(app_behind_a_proxy):
        proxy, stranger = calling("10.0.0.1", app_behind_a_proxy), calling("203.0.113.99", app_behind_a_proxy)
        for client in ("192.0.2.1", "192.0.2.2"):
            answers = [await proxy.get("tiers", headers=forwarded(n, client)) for n in range(100)]
            assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 97
        assert left_of(await proxy.get("tiers")) == 2
        with capture_logs():
            answers = [await stranger.get("tiers", headers=forwarded(n, f"192.0.3.{n}")) for n in range(100)]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 97


# ---- What shares a count ----


@pytest.mark.parametrize("default_limit", [PLENTY])
async def test_a_template_is_one_count_however_its_path_is_written(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, name="profiles", path=PROFILE, limit=10)
    user, client = signed_in(await create_user(db, tier_id=tier.id, username="ada"), settings), calling()
    paths = ["user/ada", "user/bob", "user/%61da", "user/%62%6fb", "user/ada?x=1", "user/ada?x=2&y=%20", "user/ADA"]
    answers = [await client.get(path, headers=user) for path in paths]
    assert [told(answer) for answer in answers] == [
        [("profiles", 10, 60, 10 - asked)] for asked in range(1, len(paths) + 1)
    ]
    # Another method of the same template is the same route to a rule, and so is HEAD.
    assert left_of(await client.head("user/ada", headers=user)) == 2
    assert left_of(await client.patch("user/ada", json={"name": "Ada"}, headers=user)) == 1
    # What is no route at all is found by nobody, and costs nothing.
    for path in ("USER/ada", "user/ada/", "user//ada", "user/ada/tier/"):
        assert (await client.get(path, headers=user)).status_code == 404
    assert left_of(await client.get("user/ada", headers=user)) == 0
    assert (await client.get("user/%61da", headers=user)).status_code == 429
    # The others go by the default, whose count is their own.
    assert told(await client.get("users", headers=user)) == [("default", PLENTY, 60, PLENTY - 1)]
    assert left_of(await client.get("user/ada/tier", headers=user)) == PLENTY - 2


async def test_a_slash_at_the_end_makes_no_other_route(calling: From, db: AsyncSession, settings: Settings) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, name="me", path="/api/v1/user/me/", limit=2)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    assert told(await client.get("user/me", headers=user)) == [("me", 2, 60, 1)]
    assert told(await client.get("user/me/", headers=user)) == [("me", 2, 60, 0)]
    assert await statuses(lambda: client.get("user/me", headers=user), 1) == [429]
    assert await statuses(lambda: client.get("user/me/", headers=user), 1) == [429]


async def test_every_route_without_a_rule_of_its_own_shares_one_count(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, name="all", path="*", limit=3)
    await create_rate_limit(db, tier, name="list", path="/api/v1/users", limit=1)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    asked = ["tiers", "users", "user/me/", "user/nosuch"]
    found = [told(await client.get(path, headers=user))[0][:2] for path in asked]
    assert found == [("all", 3), ("list", 1), ("all", 3), ("all", 3)]
    for path in ("tiers", "users", "tasks/task/x"):
        assert (await client.get(path, headers=user)).status_code == 429
    # The same for addresses, by the default.
    assert [left_of(await client.get(path)) for path in ("tiers", "users", "user/nosuch")] == [2, 1, 0]


# ---- Which rule ----


@pytest.mark.parametrize("default_limit", [70])
async def test_the_rule_is_the_nearest(calling: From, db: AsyncSession, settings: Settings) -> None:
    pro, free = await create_tier(db, "pro"), await create_tier(db, "free")
    await create_rate_limit(db, pro, name="list", path="/api/v1/users", limit=50)
    await create_rate_limit(db, pro, name="all", path="*", limit=60)
    await create_rate_limit(db, free, name="free list", path="/api/v1/users", limit=40)
    client = calling()
    for tier, path, rule in (
        (pro, "users", ("list", 50)),
        (pro, "tiers", ("all", 60)),
        (free, "users", ("free list", 40)),
        (free, "tiers", ("default", 70)),
        (None, "users", ("default", 70)),
    ):
        user = await create_user(db, tier_id=tier.id if tier else None)
        assert told(await client.get(path, headers=signed_in(user, settings)))[0][:2] == rule
    assert told(await client.get("users"))[0][:2] == ("default", 70)


@pytest.mark.parametrize("default_limit", [70])
async def test_a_rule_for_a_method_comes_before_one_for_the_template(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db, "pro")
    await create_rate_limit(db, tier, name="create", path="PATCH /api/v1/user/{username}", limit=2)
    await create_rate_limit(db, tier, name="profile", path="/api/v1/user/{username}", limit=50)
    await create_rate_limit(db, tier, name="read", path="GET /api/v1/tiers", limit=5)
    await create_user(db, username="ada", tier_id=tier.id)
    user, client = signed_in(await create_user(db, username="bob", tier_id=tier.id), settings), calling()

    # Two reads take nothing of the limit for changes.
    for left in (49, 48):
        assert told(await client.get("user/ada", headers=user)) == [("profile", 50, 60, left)]
    changed = {"name": "Bob"}
    assert told(await client.patch("user/bob", json=changed, headers=user)) == [("create", 2, 60, 1)]
    assert told(await client.patch("user/bob", json=changed, headers=user)) == [("create", 2, 60, 0)]
    assert (await client.patch("user/bob", json=changed, headers=user)).status_code == 429
    assert (await client.delete("user/ada", headers=user)).status_code == 403  # It counts as the template's.
    assert told(await client.get("user/ada", headers=user)) == [("profile", 50, 60, 46)]
    # HEAD is a GET, and a method without a rule of its own goes by the others.
    assert told(await client.head("tiers", headers=user)) == [("read", 5, 60, 4)]
    assert told(await client.get("tiers", headers=user)) == [("read", 5, 60, 3)]
    assert told(await client.get("users", headers=user)) == [("default", 70, 60, 69)]

    usage = (await client.get("user/me/usage", headers=user)).json()
    assert {window["path"]: window["used"] for window in usage} == {
        "PATCH /api/v1/user/{username}": 2,
        "/api/v1/user/{username}": 4,
        "GET /api/v1/tiers": 2,
        "*": 2,
    }
    effective = (await client.get("user/bob/rate_limits", headers=user)).json()
    assert "PATCH /api/v1/user/{username}" in {rule["path"] for rule in effective}


CONVERTORS = {
    "/file/{path:path}": ("/file/{path}", "file/a/b/c"),
    "/number/{n:int}": ("/number/{n}", "number/7"),
    "/share/{x:float}/of": ("/share/{x}/of", "share/0.5/of"),
    "/thing/{id:uuid}": ("/thing/{id}", "thing/6f1c2a34-0000-4000-8000-000000000000"),
}


@pytest.mark.parametrize("default_limit", [70])
@pytest.mark.parametrize("method", ["", "GET "])
@pytest.mark.parametrize("template", CONVERTORS)
async def test_a_template_with_a_convertor_is_spelled_as_documented(
    db: AsyncSession, settings: Settings, calling: From, template: str, method: str
) -> None:
    """In rules, in OpenAPI, in `nearest` and in what callers are told. A rule takes the route's spelling as well."""

    async def read() -> bool:
        return True

    inner = APIRouter(prefix="/api/v1", dependencies=[Depends(limit_rate)])
    inner.add_api_route(template, read)
    router = APIRouter()
    router.include_router(build_router(settings))
    router.include_router(inner)
    app = create_application(router, settings)
    documented, path = CONVERTORS[template]
    documented = f"/api/v1{documented}"
    assert documented in app.openapi()["paths"]
    tier = await create_tier(db, "pro")
    admin = await create_admin(db, settings)
    user = signed_in(await create_user(db, tier_id=tier.id), settings)
    async with app.router.lifespan_context(app):
        client = calling(app=app)
        for spelled, status in ((documented, 201), (f"/api/v1{template}", 409)):
            body = {"name": "mine", "path": f"{method}{spelled}", "limit": 5, "period": 60}
            created = await client.post("tier/pro/rate_limit", json=body, headers=admin)
            assert created.status_code == status
        assert (await client.get("tier/pro/rate_limits")).json()["data"][0]["path"] == f"{method}{documented}"
        assert told(await client.get(path, headers=user)) == [("mine", 5, 60, 4)]
        wrong = await client.post("tier/pro/rate_limit", json=body | {"path": f"{method}{documented}x"}, headers=admin)
        assert wrong.json()["nearest"][0] == f"{method}{documented}"


@pytest.mark.parametrize("default_limit", [70])
async def test_a_stored_rule_with_a_convertor_keeps_its_meaning(
    db: AsyncSession, settings: Settings, calling: From
) -> None:
    """Rules of before hold templates as the code spells them."""
    tier = await create_tier(db, "pro")
    await create_rate_limit(db, tier, name="old", path="/api/v1/user/{username:str}", limit=5)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    assert told(await client.get("user/nosuch", headers=user)) == [("old", 5, 60, 4)]


@pytest.mark.parametrize("default_limit", [70])
async def test_a_rule_whose_period_changes_goes_on_counting(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    rule = await create_rate_limit(db, tier, name="list", path="/api/v1/users", limit=100, period=30)
    user = signed_in(await create_user(db, tier_id=tier.id), settings)
    for _ in range(3):
        await client.get("users", headers=user)
    changed = await client.patch(f"tier/pro/rate_limit/{rule.id}", json={"limit": 3, "period": 60}, headers=admin)
    assert changed.status_code == 200
    assert (await client.get("users", headers=user)).status_code == 429


@pytest.mark.parametrize("default_limit", [70])
async def test_a_user_who_is_moved_has_the_rules_of_the_new_tier_at_once(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    admin = await create_admin(db, settings)
    for number, name in enumerate(("pro", "free")):
        await create_rate_limit(db, await create_tier(db, name), name=name, limit=40 + number)
    user, client = await create_user(db), calling()
    headers = signed_in(user, settings)
    tiers = {tier["name"]: tier["id"] for tier in (await client.get("tiers")).json()["data"]}
    for left, (tier_id, rule) in enumerate(
        [(tiers["pro"], ("pro", 40)), (tiers["free"], ("free", 41)), (None, ("default", 70))], start=1
    ):
        body = {"tier_id": tier_id}
        assert (await client.patch(f"user/{user.username}/tier", json=body, headers=admin)).status_code == 200
        ((name, most, _, rest),) = told(await client.get("users", headers=headers))
        assert (name, most) == rule
        # What was used is used: moving gives nobody a new start.
        assert rest == most - left


@pytest.mark.parametrize("default_limit", [70])
async def test_a_changed_rule_is_in_force_with_the_very_next_request(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    user = signed_in(await create_user(db, tier_id=tier.id), settings)

    async def rule() -> tuple[str, int, int]:
        return told(await client.get("users", headers=user))[0][:3]

    async def create(**values: Any) -> str:
        body = {"name": "list", "path": "/api/v1/users", "limit": 50, "period": 60} | values
        created = await client.post("tier/pro/rate_limit", json=body, headers=admin)
        assert created.status_code == 201
        return f"tier/pro/rate_limit/{created.json()['id']}"

    assert await rule() == ("default", 70, 60)
    everything = await create(name="all", path="*", limit=60)
    assert await rule() == ("all", 60, 60)
    own = await create()
    assert await rule() == ("list", 50, 60)
    for values, expected in (
        ({"limit": 51}, ("list", 51, 60)),
        ({"period": 30}, ("list", 51, 30)),
        ({"name": "new"}, ("new", 51, 30)),
        ({"path": "/api/v1/tiers"}, ("all", 60, 60)),
        ({"path": "/api/v1/users"}, ("new", 51, 30)),
    ):
        assert (await client.patch(own, json=values, headers=admin)).status_code == 200
        assert await rule() == expected
    assert (await client.delete(own, headers=admin)).status_code == 200
    assert await rule() == ("all", 60, 60)
    assert (await client.delete(everything, headers=admin)).status_code == 200
    assert await rule() == ("default", 70, 60)


@pytest.mark.parametrize("default_limit", [70])
async def test_without_its_tier_a_rule_is_gone(calling: From, db: AsyncSession, settings: Settings) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    await create_rate_limit(db, tier, limit=50)
    user = await create_user(db, tier_id=tier.id)
    headers = signed_in(user, settings)
    assert told(await client.get("users", headers=headers))[0][:2] == ("all", 50)
    body = {"tier_id": None}
    assert (await client.patch(f"user/{user.username}/tier", json=body, headers=admin)).status_code == 200
    assert (await client.delete("tier/pro", headers=admin)).status_code == 200
    assert told(await client.get("users", headers=headers))[0][:2] == ("default", 70)


async def test_a_change_that_is_refused_changes_no_rule(calling: From, db: AsyncSession, settings: Settings) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    one = await create_rate_limit(db, tier, name="all", limit=50)
    await create_rate_limit(db, tier, name="list", path="/api/v1/users", limit=40)
    user = signed_in(await create_user(db, tier_id=tier.id), settings)
    for values, status in (({"path": "/api/v1/users", "limit": 1}, 409), ({"limit": 0}, 422), ({"path": "/x"}, 422)):
        answer = await client.patch(f"tier/pro/rate_limit/{one.id}", json=values, headers=admin)
        assert answer.status_code == status
        assert told(await client.get("users", headers=user))[0][:2] == ("list", 40)
        assert told(await client.get("tiers", headers=user))[0][:2] == ("all", 50)


@pytest.mark.parametrize("high", [10, 500], ids=["log", "sub-windows"])
async def test_a_limit_lowered_below_what_is_used_refuses_at_once(
    calling: From, db: AsyncSession, settings: Settings, high: int
) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    rule = await create_rate_limit(db, tier, limit=high)
    user = signed_in(await create_user(db, tier_id=tier.id), settings)

    async def set_to(number: int) -> None:
        answer = await client.patch(f"tier/pro/rate_limit/{rule.id}", json={"limit": number}, headers=admin)
        assert answer.status_code == 200

    assert await statuses(lambda: client.get("tiers", headers=user), 5) == [200] * 5
    await set_to(4)
    refused = await client.get("tiers", headers=user)
    assert refused.status_code == 429
    assert told(refused) == [("all", 4, 60, 0)]
    await set_to(6)
    assert left_of(await client.get("tiers", headers=user)) == 0
    await set_to(high)
    assert left_of(await client.get("tiers", headers=user)) == high - 7


NAMES = ["plain", 'a "quoted" one', "back\\slash", "Größe ∞", "per%20cent", "comma, semicolon; =", "?0"]


@pytest.mark.parametrize("name", NAMES)
async def test_whatever_a_rule_is_called_the_headers_are_well_formed(
    calling: From, db: AsyncSession, settings: Settings, name: str
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(
        db, tier, name=name, limit=1, additional_windows=[{"limit": 1, "period": 3600}, {"limit": 9, "period": 86400}]
    )
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    assert [window[1:] for window in told(await client.get("tiers", headers=user))] == [
        (1, 60, 0),
        (1, 3600, 0),
        (9, 86400, 8),
    ]
    refused = await client.get("tiers", headers=user)
    assert refused.status_code == 429
    names = [window[0] for window in told(refused)]
    assert len(set(names)) == 3
    assert set(refused.json()["violated_policies"]) <= set(names)


# ---- Several windows ----


async def test_either_window_refuses_and_both_are_told(calling: From, db: AsyncSession, settings: Settings) -> None:
    tier = await create_tier(db)
    rule = await create_rate_limit(db, tier, limit=2, period=1, additional_windows=[{"limit": 3, "period": 86_400}])
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()

    first, second, burst = [await client.get("tiers", headers=user) for _ in range(3)]
    assert told(first) == [("all", 2, 1, 1), ("all-86400s", 3, 86_400, 2)]
    assert told(second) == [("all", 2, 1, 0), ("all-86400s", 3, 86_400, 1)]
    assert burst.status_code == 429
    assert burst.headers["Retry-After"] == "1"
    assert told(burst) == told(second)

    await asyncio.sleep(1)
    third, day = [await client.get("tiers", headers=user) for _ in range(2)]
    assert told(third) == [("all", 2, 1, 1), ("all-86400s", 3, 86_400, 0)]
    assert day.status_code == 429
    assert 80_000 < int(day.headers["Retry-After"]) <= 86_400
    # What one window refuses counts in none.
    assert told(day) == told(third)
    assert rule.limit == 2


async def test_a_refusal_names_the_policies_that_are_violated(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    client = calling()
    for windows, violated in (
        ((1, 60, 5, 3600), ["all"]),
        ((5, 60, 1, 3600), ["all-3600s"]),
        ((1, 60, 1, 3600), ["all", "all-3600s"]),
    ):
        tier = await create_tier(db, f"tier {next(_number)}")
        more = [{"limit": windows[2], "period": windows[3]}]
        await create_rate_limit(db, tier, limit=windows[0], period=windows[1], additional_windows=more)
        user = signed_in(await create_user(db, tier_id=tier.id), settings)
        assert (await client.get("tiers", headers=user)).status_code == 200
        refused = await client.get("tiers", headers=user)
        assert refused.status_code == 429
        assert refused.json()["violated_policies"] == violated


async def test_of_windows_with_one_period_the_smaller_limit_holds(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    more = [{"limit": 2, "period": 60}, {"limit": 4, "period": 60}]
    await create_rate_limit(db, tier, limit=3, period=60, additional_windows=more)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    answers = [await client.get("tiers", headers=user) for _ in range(3)]
    assert [told(answer) for answer in answers] == [[("all", 2, 60, left)] for left in (1, 0, 0)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_windows_that_are_changed_over_the_api_are_in_force_at_once(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    admin, client = await create_admin(db, settings), calling()
    tier = await create_tier(db, "pro")
    user = signed_in(await create_user(db, tier_id=tier.id), settings)
    day, hour = {"limit": 500, "period": 86_400}, {"limit": 100, "period": 3_600}
    body = {"name": "all", "path": "*", "limit": 50, "period": 60, "additional_windows": [day]}
    created = await client.post("tier/pro/rate_limit", json=body, headers=admin)
    assert created.status_code == 201
    assert [window[1:3] for window in told(await client.get("tiers", headers=user))] == [(50, 60), (500, 86_400)]
    path = f"tier/pro/rate_limit/{created.json()['id']}"
    for more in ([hour], [hour, day], []):
        changed = await client.patch(path, json={"additional_windows": more}, headers=admin)
        assert changed.status_code == 200
        found = [window[1:3] for window in told(await client.get("tiers", headers=user))]
        assert found == [(50, 60), *((window["limit"], window["period"]) for window in more)]


# ---- Modes and metrics ----


@pytest.mark.parametrize("mode", [RateLimitMode.OFF])
async def test_switched_off_nothing_is_counted_and_nothing_said(
    calling: From, db: AsyncSession, settings: Settings, stored: Any
) -> None:
    user, client = signed_in(await create_user(db), settings), calling()
    before = metric("*", "allowed")
    for headers in ({}, user):
        answers = [await client.get("tiers", headers=headers) for _ in range(6)]
        answers += [await client.post("user", content=b"{", headers=headers | JSON) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [422] * 6
        assert all(says_nothing(answer) for answer in answers)
    assert stored.keys("rate:{*") == []
    assert metric("*", "allowed") == before


@pytest.mark.parametrize("mode", [RateLimitMode.SHADOW])
async def test_in_shadow_nobody_is_refused_but_all_is_counted_and_told(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    client = calling()
    before = {result: metric("*", result) for result in ("allowed", "would_refuse", "refused")}
    answers = [await client.get("tiers") for _ in range(5)]
    answers.append(await client.post("user", content=b"{", headers=JSON))
    assert [answer.status_code for answer in answers] == [200] * 5 + [422]
    assert [left_of(answer) for answer in answers] == [2, 1, 0, 0, 0, 0]
    assert not [answer for answer in answers if "Retry-After" in answer.headers]
    found = {result: metric("*", result) - number for result, number in before.items()}
    assert found == {"allowed": 3, "would_refuse": 3, "refused": 0}


async def test_requests_are_counted_by_the_path_of_their_rule(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    await create_rate_limit(db, tier, name="profiles", path=PROFILE, limit=2)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    kinds = [(path, result) for path in ("*", PROFILE) for result in ("allowed", "refused", "would_refuse")]
    before = {kind: metric(*kind) for kind in kinds}
    for n in range(5):
        await client.get(f"user/nosuch{n}", headers=user)
    for _ in range(4):
        await client.get("tiers", headers=user)
    found = {kind: metric(*kind) - number for kind, number in before.items()}
    assert found == {
        ("*", "allowed"): 3,
        ("*", "refused"): 1,
        ("*", "would_refuse"): 0,
        (PROFILE, "allowed"): 2,
        (PROFILE, "refused"): 3,
        (PROFILE, "would_refuse"): 0,
    }
    line = f'slipway_rate_limit_requests_total{{counted_in="redis",path="{PROFILE}",result="refused"}}'
    assert line in (await client.get("http://test/metrics")).text


# ---- A route's weight ----


class Small(AppSettings, RedisCacheSettings, RedisRateLimiterSettings, DefaultRateLimitSettings):
    """Settings of an app of the test's own, without a database."""


@limits_routes
async def counted(request: Request) -> None:
    await limit(request)


def weighted_app(mode: RateLimitMode = RateLimitMode.ENFORCE) -> FastAPI:
    router = APIRouter(dependencies=[Depends(counted)])

    @router.get("/light")
    async def light() -> str:
        return "light"

    @router.get("/above/{name}")
    @rate_limit_cost(3)
    @cache("above", resource_id_name="name", resource_id_type=str)
    async def above(name: str) -> str:
        return name

    @router.get("/below/{name}")
    @cache("below", resource_id_name="name", resource_id_type=str)
    @rate_limit_cost(3)
    async def below(name: str) -> str:
        return name

    @router.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError

    @router.get("/whole")
    @rate_limit_cost(99)
    async def whole() -> str:
        return "whole"

    @router.post("/free")
    @rate_limit_cost(0)
    async def free(body: dict[str, str]) -> str:
        if body:
            raise Conflict
        return "free"

    return create_application(router, Small(DEFAULT_RATE_LIMIT_LIMIT=10, RATE_LIMIT_MODE=mode))


@pytest.fixture
async def weighted(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    app = weighted_app()
    async with app.router.lifespan_context(app), client_of(app) as client:
        client.base_url = httpx2.URL("http://test/")
        yield client


@pytest.mark.parametrize("path", ["above/x", "below/x"])
async def test_a_route_can_weigh_more_cached_or_not(weighted: httpx2.AsyncClient, path: str) -> None:
    answers = [await weighted.get(path) for _ in range(3)]
    assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "HIT", "HIT"]
    assert [left_of(answer) for answer in answers] == [7, 4, 1]
    refused = await weighted.get(path)
    assert refused.status_code == 429
    assert left_of(refused) == 1
    assert refused.json()["violated_policies"] == ["default"]
    assert left_of(await weighted.get("light")) == 0
    assert (await weighted.get("light")).status_code == 429


async def test_a_weight_above_the_limit_is_all_of_it(weighted: httpx2.AsyncClient) -> None:
    first, second = await weighted.get("whole"), await weighted.get("whole")
    assert (first.status_code, left_of(first)) == (200, 0)
    assert (second.status_code, left_of(second)) == (429, 0)
    assert (await weighted.get("light")).status_code == 429


async def test_a_weight_above_the_limit_needs_all_of_it(weighted: httpx2.AsyncClient) -> None:
    assert left_of(await weighted.get("light")) == 9
    refused = await weighted.get("whole")
    assert (refused.status_code, left_of(refused)) == (429, 9)
    assert left_of(await weighted.get("light")) == 8


async def test_a_route_without_weight_is_not_limited(weighted: httpx2.AsyncClient) -> None:
    bodies: list[dict[str, Any]] = [{"json": {}}, {"json": {"a": "b"}}, {"json": 5}, {"content": b"{", "headers": JSON}]
    for body, status in zip(bodies, (200, 409, 422, 422), strict=True):
        answers = [await weighted.post("free", **body) for _ in range(12)]
        assert {answer.status_code for answer in answers} == {status}
        assert all(says_nothing(answer) for answer in answers)
    assert left_of(await weighted.get("light")) == 9


async def test_an_answer_that_is_our_own_fault_counts_and_says_so(weighted: httpx2.AsyncClient) -> None:
    answers = [await weighted.get("crash") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [500] * 10 + [429]
    assert [left_of(answer) for answer in answers] == [*range(9, -1, -1), 0]


def test_a_weight_is_not_negative() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        rate_limit_cost(-1)


# ---- What it costs ----


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked but by requests."""
    monkeypatch.setattr(invalidation, "TICK", 1_000)
    monkeypatch.setattr(keeper, "LOOK", 1_000)


@pytest.mark.parametrize("default_limit", [PLENTY])
async def test_a_limit_costs_no_statement(app: FastAPI, calling: From, db: AsyncSession, settings: Settings) -> None:
    tier = await create_tier(db, "pro")
    await create_rate_limit(db, tier, limit=PLENTY)
    user = await create_user(db, tier_id=tier.id)
    headers, client = signed_in(user, settings), calling()
    paths = ("tiers", "tier/pro", "users", "user/me/", f"user/{user.username}", "user/nosuch", "user/me/sessions")
    found: dict[RateLimitMode, list[int]] = {}
    for path in paths:
        await client.get(path)  # What can be cached is by now.
    for found_mode in (RateLimitMode.OFF, RateLimitMode.SHADOW, RateLimitMode.ENFORCE):
        app.state.rate_limiter.mode = found_mode
        found[found_mode] = []
        for path in paths:
            for who in ({}, headers):
                with counted_statements() as statements:
                    answer = await client.get(path, headers=who)
                assert ("RateLimit" in answer.headers) is (
                    found_mode is not RateLimitMode.OFF and answer.status_code != 401
                )
                found[found_mode].append(len(statements))
    assert found[RateLimitMode.ENFORCE] == found[RateLimitMode.SHADOW] == found[RateLimitMode.OFF]
    # What is cached costs an anonymous caller nothing at all, and a user the one statement that signs them in.
    assert found[RateLimitMode.ENFORCE][:4] == [0, 1, 0, 1]


@pytest.mark.parametrize("default_limit", [3])
async def test_a_refusal_costs_no_statement_but_the_one_that_signs_in(
    calling: From, db: AsyncSession, settings: Settings
) -> None:
    headers, client = signed_in(await create_user(db), settings), calling()
    for who, statements_expected in (({}, 0), (headers, 1)):
        await statuses(lambda who=who: client.get("users", headers=who), 3)  # type: ignore[misc]
        with counted_statements() as statements:
            assert (await client.get("users", headers=who)).status_code == 429
        assert len(statements) == statements_expected


@pytest.mark.parametrize("default_limit", [PLENTY])
async def test_a_limit_costs_one_command(
    quiet: None, app: FastAPI, calling: From, db: AsyncSession, settings: Settings, stored: Any
) -> None:
    tier = await create_tier(db, "pro")
    more = [{"limit": PLENTY, "period": 3_600}, {"limit": 5, "period": 86_400}]
    await create_rate_limit(db, tier, limit=PLENTY, additional_windows=more)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()

    async def cost(path: str, headers: dict[str, str]) -> tuple[list[int], int]:
        """The answers to ten requests, and how many commands were sent for them."""
        with stored.monitor() as monitor:
            found = await statuses(lambda: client.get(path, headers=headers), 10)
            stored.echo("the end")
            sent = takewhile(lambda one: one["command"] != "ECHO the end", monitor.listen())
            # What the script does in the server is told as well.
            return found, sum(one["client_type"] != "lua" for one in sent)

    await client.get("users")  # The script is there by now.
    assert await cost("users", {}) == ([200] * 10, 10)
    assert await cost("users", user) == ([200] * 5 + [429] * 5, 10)
    assert await cost("user/me/", {}) == ([401] * 10, 10)
    app.state.rate_limiter.mode = RateLimitMode.OFF
    assert await cost("users", {}) == ([200] * 10, 0)


# ---- When Valkey cannot ----


@pytest.fixture
def own_valkey(monkeypatch: pytest.MonkeyPatch, valkey: Valkey) -> Iterator[Valkey]:
    """A server for the limiter alone. To be asked for before the app."""
    with scratch_folder() as folder, Valkey(folder / "valkey", port=free_port(), durable=False) as server:
        monkeypatch.setenv("REDIS_RATE_LIMIT_PORT", str(server.port))
        yield server


async def limited_in(client: httpx2.AsyncClient, counted_in: str, path: str = "users") -> bool:
    """Whether, of a caller who has not asked yet, three are let through and a fourth is not, all counted there."""
    kinds = [(result, where) for result in ("allowed", "refused") for where in ("redis", "process")]
    before = {kind: metric("*", *kind) for kind in kinds}
    answers = [await client.get(path) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429]
    assert [left_of(answer) for answer in answers] == [2, 1, 0, 0]
    assert int(answers[-1].headers["Retry-After"]) > 0
    found = {kind: metric("*", *kind) - number for kind, number in before.items() if metric("*", *kind) != number}
    return found == {("allowed", counted_in): 3, ("refused", counted_in): 1}


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
    ids=["full", "a replica"],
)
async def test_a_server_that_refuses_leaves_the_limit_to_this_process(
    own_valkey: Valkey, settings: Settings, calling: From, refuse: str, allow: str
) -> None:
    assert await limited_in(calling(), "redis")
    with Redis(host="127.0.0.1", port=own_valkey.port) as control:
        control.execute_command(*refuse.split())
        one, other = calling(), calling()
        assert await limited_in(one, "process")
        assert await limited_in(other, "process")
        control.execute_command(*allow.split())
        assert await limited_in(calling(), "redis")


async def test_without_its_server_the_limit_is_counted_in_this_process(
    own_valkey: Valkey, calling: From, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    more = [{"limit": 3, "period": 86_400}]
    await create_rate_limit(db, tier, limit=2, period=1, additional_windows=more)
    user, client = signed_in(await create_user(db, tier_id=tier.id), settings), calling()
    assert await limited_in(calling(), "redis")
    own_valkey.stop()
    assert await limited_in(calling(), "process")
    assert await limited_in(calling(), "process", "tiers")
    answers = [await client.get("tiers", headers=user) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert told(answers[1]) == told(answers[2]) == [("all", 2, 1, 0), ("all-86400s", 3, 86_400, 1)]
    unread = [await client.post("user", content=b"{", headers=JSON) for _ in range(4)]
    assert [answer.status_code for answer in unread] == [422] * 3 + [429]
    usage = (await client.get("user/me/usage", headers=signed_in(await create_user(db), settings))).json()
    assert [(window["used"], window["remaining"]) for window in usage] == [(1, 2)]
