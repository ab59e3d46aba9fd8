"""Behind a caching proxy whose operator thought of nothing, nobody gets what was meant for somebody else."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations

import httpx2
import pytest
from redis import Redis

from app.core.config import Settings
from scripts.embedded import Valkey
from tests.conftest import Execute, cloned_database, opened_session
from tests.helper import create_superuser, create_tier, create_user, signed_in
from tests.nginx import nginx_before
from tests.processes import running_api

pytestmark = pytest.mark.anyio

Headers = dict[str, str]


@contextmanager
def behind_nginx(*command: str) -> Iterator[httpx2.Client]:
    with (
        running_api(*command) as server,
        nginx_before(server) as url,
        httpx2.Client(base_url=f"{url}/api/v1/") as client,
    ):
        yield client


def state_of(answer: httpx2.Response) -> str:
    """What nginx says about its own cache."""
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Proxy-Cache"]


# ---- This app ----


async def test_this_app(settings: Settings) -> None:
    async with opened_session(settings) as db:
        ada, bob = await create_user(db, username="ada"), await create_user(db, username="bob")
        admin = await create_superuser(db, username="admin")
        await create_tier(db, "pro")
    ada_, bob_, admin_ = (signed_in(user, settings) for user in (ada, bob, admin))
    with behind_nginx() as client:
        anonymous_answers_are_kept(client, "tier/pro")
        anonymous_answers_are_kept(client, "tiers")
        not_modified_works(client, "tier/pro")

        for order in permutations(({}, ada_, bob_, admin_)):
            for headers in order:
                shown = client.get("user/ada", headers=headers).json()
                assert ("email" in shown) == (headers in (ada_, admin_))
                shown = client.get("users", headers=headers).json()["data"]
                assert all(("email" in user) == (headers == admin_) for user in shown)
        for callers in permutations((("ada", ada_), ("bob", bob_), (None, {}))):
            for name, headers in callers:
                answer = client.get("user/me/", headers=headers)
                assert answer.json().get("username") == name
                assert answer.status_code == (200 if name else 401)


def anonymous_answers_are_kept(client: httpx2.Client, path: str) -> None:
    first, second = client.get(path), client.get(path)
    assert (state_of(first), state_of(second)) == ("MISS", "HIT")
    assert first.content == second.content


def not_modified_works(client: httpx2.Client, path: str) -> None:
    etag = client.get(path).headers["ETag"]
    known = client.get(path, headers={"If-None-Match": etag})
    assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


# ---- An app with and without `ClientSideCacheSettings` ----


@pytest.fixture(params=["app", "app_with_client_cache"], scope="module")
def any_app(
    request: pytest.FixtureRequest, valkey: Valkey, execute: Execute, migrated_template: str
) -> Iterator[httpx2.Client]:
    """One start for all tests: each asks for something else."""
    command = ("uvicorn", f"tests.cache_app:{request.param}", "--port", "{port}", "--log-level", "warning")
    with Redis(port=valkey.port) as redis:
        redis.flushall()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        cloned_database(execute, monkeypatch, migrated_template),
        behind_nginx(*command) as client,
    ):
        yield client


def told_apart(client: httpx2.Client, path: str, callers: dict[str, Headers]) -> None:
    """Each caller gets their own answer, whoever came before. What they get is their name in `callers`."""
    for number, order in enumerate(permutations(callers)):
        for name in (*order, *order):
            # The query is one that no order before this had.
            answer = client.get(path, params={"order": number}, headers=callers[name])
            assert answer.json() == (None if name == "nobody" else name), f"{order}: {answer.headers}"


def test_a_bearer_token(any_app: httpx2.Client) -> None:
    callers = {name: {"Authorization": f"Bearer {name}"} for name in ("ada", "bob")}
    told_apart(any_app, "whoami/token", {"nobody": {}, **callers})


def test_a_session_cookie(any_app: httpx2.Client) -> None:
    callers = {name: {"Cookie": f"session={name}"} for name in ("ada", "bob")}
    told_apart(any_app, "whoami/cookie", {"nobody": {}, **callers})


def test_a_key_in_a_header_of_its_own(any_app: httpx2.Client) -> None:
    callers = {name: {"X-API-Key": name} for name in ("ada", "bob")}
    told_apart(any_app, "whoami/key", {"nobody": {}, **callers})


def test_a_public_route_that_shows_its_owner_more(any_app: httpx2.Client) -> None:
    callers = {"ada": "all of ada", "bob": "ada in public"}
    for number, order in enumerate(permutations(("ada", "bob", None))):
        for name in (*order, *order):
            headers = {"Authorization": f"Bearer {name}"} if name else {}
            answer = any_app.get("profile/ada", params={"order": number}, headers=headers)
            assert answer.json() == callers.get(name or "bob"), f"{order}: {answer.headers}"


def test_a_public_route_that_depends_on_a_header(any_app: httpx2.Client) -> None:
    told_apart(any_app, "greeting", {language: {"Accept-Language": language} for language in ("en", "de", "fr")})


def test_a_public_route_that_depends_on_a_cookie(any_app: httpx2.Client) -> None:
    told_apart(any_app, "theme", {"light": {}, "dark": {"Cookie": "theme=dark"}, "blue": {"Cookie": "theme=blue"}})


def test_what_nobody_needs_to_sign_in_for_is_kept(any_app: httpx2.Client) -> None:
    anonymous_answers_are_kept(any_app, "whoami/token?anonymous")
    anonymous_answers_are_kept(any_app, "profile/eve")
    not_modified_works(any_app, "profile/eve")
