"""Bad input gets a 4xx, as a problem document, and changes nothing."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.core.config import Settings, get_settings
from app.core.setup import create_application
from app.core.utils import queue
from app.crud.crud_users import crud_users
from app.models.user import User
from scripts.embedded import Valkey
from tests.conftest import Execute, client_of, cloned_database
from tests.helper import PASSWORD, all_rows, create_rate_limit, create_superuser, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"

# Every route that takes JSON, with a good body: what the tests below break is then what the answer is about.
ROUTES: dict[str, dict[str, Any]] = {
    "POST user": {"name": "Grace", "username": "grace", "email": "grace@example.com", "password": PASSWORD},
    "POST user/me/password": {"current_password": PASSWORD, "new_password": "analytical engine"},
    "POST password_reset": {"email": "ada@example.com"},
    "POST password_reset/confirm": {"token": "x" * 43, "new_password": "analytical engine"},
    "POST email_verification/confirm": {"token": "x" * 43},
    "PATCH user/ada": {
        "name": "Grace",
        "username": "grace",
        "email": "grace@example.com",
        "profile_image_url": "https://example.com/grace.png",
    },
    "PATCH user/ada/tier": {"tier_id": 1},
    "POST tier": {"name": "team"},
    "PATCH tier/pro": {"name": "team"},
    "POST tier/pro/rate_limit": {"name": "list", "path": "/api/v1/users", "limit": 5, "period": 60},
    "PATCH tier/pro/rate_limit/1": {"name": "list", "path": "/api/v1/users", "limit": 5, "period": 60},
}


@pytest.fixture(scope="module")
def database(execute: Execute, migrated_template: str) -> Iterator[str]:
    """One database for all: nothing here is ever to change it."""
    with pytest.MonkeyPatch.context() as monkeypatch, cloned_database(execute, monkeypatch, migrated_template) as name:
        yield name


@pytest.fixture(scope="module")
def settings(database: str, valkey: Valkey) -> Settings:
    return get_settings()


@pytest.fixture(scope="module")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI, db: AsyncSession, settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A superuser's client, which sees to it that a test leaves every row and the job queue as they were."""
    admin = await crud_users.get_by_username(db, "admin") or await build_world(db)
    before = await state_of(db)
    async with client_of(app) as client:
        client.headers.update(signed_in(admin, settings))
        yield client
    assert await state_of(db) == before, "bad input changed something"


async def state_of(db: AsyncSession) -> tuple[dict[str, set[str]], int]:
    """What bad input must not change. Failed logins are counted and noted: that is no change of anybody's things."""
    rows = await all_rows(db)
    return {name: rows[name] for name in rows.keys() - {"login_throttle", "security_event"}}, await queue.pool.zcard(
        "arq:queue"
    )


async def build_world(db: AsyncSession) -> User:
    await create_user(db, username="ada")
    await create_rate_limit(db, await create_tier(db, "pro"))
    return await create_superuser(db, username="admin")


async def ask(client: httpx2.AsyncClient, route: str, **kwargs: Any) -> httpx2.Response:
    method, _, path = route.partition(" ")
    return await client.request(method, path, **kwargs)


async def send(
    client: httpx2.AsyncClient, route: str, body: bytes | AsyncIterator[bytes], content_type: str | None = JSON
) -> httpx2.Response:
    return await ask(client, route, content=body, headers={"Content-Type": content_type} if content_type else {})


def assert_refused(answer: httpx2.Response, status: int) -> None:
    assert answer.status_code == status, f"{answer.request.method} {answer.request.url}: {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert document.keys() >= {"type", "title", "detail"}
    assert ("errors" in document) is (document["type"] == "urn:problem-type:invalid-request")


# ---- Bodies ----


def with_field(good: dict[str, Any], name: str, raw: bytes) -> bytes:
    """A good body with one more field, as JSON that `json.dumps` would not write."""
    comma = ", " if good else ""
    return f'{json.dumps(good)[:-1]}{comma}"{name}": '.encode() + raw + b"}"


Breaker = Callable[[dict[str, Any]], bytes]
BROKEN_BODIES: dict[str, tuple[Breaker, str | None, int]] = {
    "empty": (lambda _: b"", JSON, 422),
    "only spaces": (lambda _: b"  ", JSON, 422),
    "cut off": (lambda good: json.dumps(good).encode()[:-1], JSON, 422),
    "two documents": (lambda good: json.dumps(good).encode() * 2, JSON, 422),
    "an array": (lambda good: json.dumps([good]).encode(), JSON, 422),
    "an array of pairs": (lambda good: json.dumps(list(good.items())).encode(), JSON, 422),
    "an empty array": (lambda _: b"[]", JSON, 422),
    "a string": (lambda _: b'"x"', JSON, 422),
    "a number": (lambda _: b"1", JSON, 422),
    "null": (lambda _: b"null", JSON, 422),
    "true": (lambda _: b"true", JSON, 422),
    "NaN": (lambda _: b"NaN", JSON, 422),
    "a field NaN": (lambda good: with_field(good, "name", b"NaN"), JSON, 422),
    "a field -Infinity": (lambda good: with_field(good, "limit", b"-Infinity"), JSON, 422),
    "single quotes": (lambda good: str(good).encode(), JSON, 422),
    "100,000 deep": (lambda _: b"[" * 100_000 + b"]" * 100_000, JSON, 400),
    "objects 100,000 deep": (lambda _: b'{"name":' * 100_000 + b"1" + b"}" * 100_000, JSON, 400),
    "a field 100,000 deep": (lambda good: with_field(good, "name", b"[" * 100_000 + b"]" * 100_000), JSON, 400),
    "an integer of 5,000 digits": (lambda good: with_field(good, "limit", b"1" * 5_000), JSON, 400),
    "a number beyond all floats": (lambda good: with_field(good, "limit", b"1e999"), JSON, 422),
    "not UTF-8": (lambda good: with_field(good, "name", b'"\xff\xfe"'), JSON, 400),
    "a UTF-8 surrogate": (lambda good: with_field(good, "name", b'"\xed\xa0\x80"'), JSON, 422),
    "Latin-1": (lambda good: with_field(good, "name", '"Zo\u00eb"'.encode("latin-1")), JSON, 400),
    "an unknown field": (lambda good: json.dumps(good | {"colour": "red"}).encode(), JSON, 422),
    "an unknown field named by a lone surrogate": (lambda good: with_field(good, "\\ud800", b"1"), JSON, 422),
    "an unknown field named by NUL": (lambda good: with_field(good, "\\u0000", b"1"), JSON, 422),
    "an unknown field without a name": (lambda good: with_field(good, "", b"1"), JSON, 422),
    "an unknown field with a long name": (lambda good: with_field(good, "x" * 100_000, b"1"), JSON, 422),
    "a dunder": (lambda good: with_field(good, "__class__", b"1"), JSON, 422),
    "an id": (lambda good: json.dumps(good | {"id": 99}).encode(), JSON, 422),
    "as plain text": (lambda good: json.dumps(good).encode(), "text/plain", 422),
    "without a content type": (lambda good: json.dumps(good).encode(), None, 422),
    "with a broken content type": (lambda good: json.dumps(good).encode(), ";;;/", 422),
    "as a form": (lambda _: b"name=x", FORM, 422),
    "as multipart garbage": (lambda _: b"--x\r\ngarbage", MULTIPART, 422),
    "as XML": (lambda _: b"<name>x</name>", "application/xml", 422),
}


@pytest.mark.parametrize("fault", BROKEN_BODIES)
async def test_a_broken_body_is_refused(client: httpx2.AsyncClient, fault: str) -> None:
    break_it, content_type, status = BROKEN_BODIES[fault]
    for route, good in ROUTES.items():
        assert_refused(await send(client, route, break_it(good), content_type), status)


ANY_FIELD = {
    "a lone surrogate": r'"\ud800"',
    "a surrogate in the middle": r'"a\udfffb"',
    "a surrogate in a longer text": r'"a longer text \ud800 with one"',
    "overlong": json.dumps("https://example.com/" + "x" * 600),
    "far too long": json.dumps("x" * 500_000),
    "an array": '["x"]',
    "an object": '{"x": 1}',
    "a fraction": "1.5",
    "zero": "0",
    "a negative number": "-1",
    "more than 32 bits": "2147483648",
    "more than 64 bits": "9223372036854775808",
    "false": "false",
    "empty": '""',
}
# Every character counts in a password.
ANY_TEXT_BUT_A_PASSWORD = {
    "NUL": r'"\u0000"',
    "NUL at the end": r'"grace\u0000"',
    "a line break": r'"gra\nce"',
    "a line break at the end": r'"grace\n"',
    "a tab": r'"gra\tce"',
    "escape": r'"\u001b[31mgrace"',
    "delete": r'"gra\u007fce"',
    "a C1 control": r'"gra\u0085ce"',
    "only spaces": '"   "',
    "only wide spaces": r'"\u3000\u3000"',
}


@pytest.mark.parametrize(("route", "field"), [(route, field) for route, good in ROUTES.items() for field in good])
async def test_a_bad_value_is_refused(client: httpx2.AsyncClient, route: str, field: str) -> None:
    others = {name: value for name, value in ROUTES[route].items() if name != field}
    values = ANY_FIELD | ({} if "password" in field else ANY_TEXT_BUT_A_PASSWORD)

    for fault, raw in values.items():
        refused = await send(client, route, with_field(others, field, raw.encode()))
        assert_refused(refused, 422)
        assert [error["loc"] for error in refused.json()["errors"]] == [["body", field]], fault


# ---- Size ----


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 65_536):
        yield b" " * 65_536


@pytest.mark.parametrize("route", [*ROUTES, "POST login"])
async def test_a_body_over_the_limit_is_413(client: httpx2.AsyncClient, settings: Settings, route: str) -> None:
    content_type = FORM if route == "POST login" else JSON
    limit = settings.MAX_BODY_BYTES

    declared = await send(client, route, b" " * (limit + 1), content_type)
    assert_refused(declared, 413)
    undeclared = await send(client, route, in_chunks(limit + 1), content_type)
    assert_refused(undeclared, 413)
    assert declared.json()["type"] == undeclared.json()["type"] == "urn:problem-type:payload-too-large"

    for fitting in (b" " * limit, in_chunks(limit)):
        assert_refused(await send(client, route, fitting, content_type), 422)


@pytest.mark.parametrize("digits", [7, 20, 5_000])
async def test_a_declared_length_over_the_limit_is_refused_unread(client: httpx2.AsyncClient, digits: int) -> None:
    headers = {"Content-Length": "9" * digits, "Content-Type": JSON}
    assert_refused(await client.post("user", content=b"", headers=headers), 413)


# ---- The login form ----

GOOD_FORM = f"username=ada&password={PASSWORD.replace(' ', '+')}".encode()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (json.dumps({"username": "ada", "password": PASSWORD}).encode(), JSON, 422),
        (GOOD_FORM, "text/plain", 422),
        (GOOD_FORM, None, 422),
        (b"", FORM, 422),
        (b"&&&===", FORM, 422),
        (b"username=ada", FORM, 422),
        (b"password=x", FORM, 422),
        (b"username=&password=", FORM, 422),
        (b"username=a%00da&password=x", FORM, 422),
        (b"username=" + b"a" * 255 + b"&password=x", FORM, 422),
        (b"username=ada&password=" + b"x" * 129, FORM, 422),
        (GOOD_FORM + b"&grant_type=client_credentials", FORM, 422),
        (b"username=ada%0a&password=x", FORM, 401),
        (b"username=ada&password=%00", FORM, 401),
        (b"username=%FF%FE&password=%FF", FORM, 401),
        (b"username=%ED%A0%80&password=%ED%A0%80", FORM, 401),
        (b"username=%zz&password=%", FORM, 401),
        (b"username=\xff&password=\xff", FORM, 401),
        (b"username=%ED%A0%80%40example.com&password=x", FORM, 401),
        (b"a=b&" * 2_000 + b"username=ada&password=x", FORM, 400),
        (b"--x\r\ngarbage", MULTIPART, 422),
        (b"", MULTIPART, 422),
        (GOOD_FORM, "multipart/form-data", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="username"; filename="f"\r\n\r\nada\r\n--x--\r\n',
            MULTIPART,
            422,
        ),
    ],
    ids=repr,
)
async def test_a_bad_form_is_refused(
    client: httpx2.AsyncClient, body: bytes, content_type: str | None, status: int
) -> None:
    assert_refused(await send(client, "POST login", body, content_type), status)


# ---- Addresses ----


@pytest.mark.parametrize("path", ["users", "tiers", "tier/pro/rate_limits"])
async def test_pages_are_within_bounds(client: httpx2.AsyncClient, path: str) -> None:
    for query in (
        *(f"page={value}" for value in ("0", "-1", "1000000000", "1e3", "abc", "1.5", "", "%00", "1%0a2", "9" * 5_000)),
        *(f"items_per_page={value}" for value in ("0", "-1", "101", "abc", "%ED%A0%80", "NaN", "[]")),
        "page=1&page=0",
        "page=1&items_per_page=0",
    ):
        assert_refused(await client.get(f"{path}?{query}"), 422)


BAD_USERNAMES = ("%00", "ada%0a", "%0aada", "ada%00", "ADA", "a%20b", "a", "a" * 21, "%FF", "%C3%A4")
BAD_TIERS = ("%00", "pro%0a", "%20", "x" * 51, "%1b", "%C2%85")
BAD_IDS = ("0", "-1", "2147483648", "9" * 30, "9" * 5_000, "abc", "1.5", "1%0a2", "%00")
BAD_TASKS = ("%00", "0" * 129, "0%0a", "0%20", "%C3%A4")


async def test_a_bad_address_is_refused(client: httpx2.AsyncClient) -> None:
    for path in (
        *(f"user/{username}" for username in BAD_USERNAMES),
        *(f"tier/{name}" for name in BAD_TIERS),
        *(f"tier/pro/rate_limit/{number}" for number in BAD_IDS),
    ):
        for method in ("GET", "PATCH", "DELETE"):
            assert_refused(await client.request(method, path, json={} if method == "PATCH" else None), 422)
    for path in (
        *(f"db_user/{username}" for username in BAD_USERNAMES),
        *(f"tier/{name}/rate_limit/1" for name in BAD_TIERS),
    ):
        assert_refused(await client.delete(path), 422)
    for path in (
        *(f"user/{username}/{part}" for username in BAD_USERNAMES for part in ("tier", "rate_limits")),
        *(f"tier/{name}/rate_limits" for name in BAD_TIERS),
        *(f"tasks/task/{task_id}" for task_id in BAD_TASKS),
    ):
        assert_refused(await client.get(path), 422)


async def test_a_bad_message_is_refused(client: httpx2.AsyncClient) -> None:
    for query in ("", "message=", "message=%20", "message=%00", "message=a%0ab", "message=%7f", f"message={'x' * 501}"):
        assert_refused(await client.post(f"tasks/task?{query}"), 422)


async def test_the_frameworks_own_errors_are_problems_too(client: httpx2.AsyncClient) -> None:
    assert_refused(await client.get("nosuch"), 404)
    assert_refused(await client.get("user/ada/../../../etc"), 404)
    not_allowed = await client.put("user/ada")
    assert_refused(not_allowed, 405)
    assert not_allowed.headers["Allow"] == "DELETE, GET, HEAD, PATCH"


async def test_a_flood_of_unknown_fields_gets_a_short_answer(client: httpx2.AsyncClient) -> None:
    many = await client.post("user", json={f"field{number}": 1 for number in range(50_000)})
    assert many.status_code == 422
    assert [error["msg"] for error in many.json()["errors"]] == ["Value error, Object should have at most 50 fields"]

    long = await client.post("user", json={"x" * 900_000: 1})
    assert long.status_code == 422
    assert len(long.content) < 2_000
