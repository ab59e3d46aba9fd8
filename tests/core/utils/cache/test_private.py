"""What is answered to one caller is never answered to another."""

from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, HTTPException, Request, Response, Security
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPBasic,
    HTTPBearer,
    OAuth2PasswordBearer,
)
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import CurrentUser, OptionalUser
from app.core.config import AppSettings, ClientSideCacheSettings, RedisCacheSettings, Settings
from app.core.utils.cache import cache
from app.crud.crud_users import crud_users
from app.models.user import User
from tests.conftest import second_session
from tests.core.utils.cache.conftest import CacheSettings, Stored, running, states
from tests.helper import create_session, create_superuser, create_tier, create_user, signed_in

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice", "bob"


def by_header(name: str, template: str = "{}") -> Callable[[str], dict[str, Any]]:
    """How a caller says who they are."""
    return lambda who: {"headers": {name: template.format(who)}}


def by_basic(who: str) -> dict[str, Any]:
    return by_header("Authorization", "Basic {}")(b64encode(f"{who}:password".encode()).decode())


SCHEMES: dict[str, tuple[Any, Callable[[str], dict[str, Any]]]] = {
    "oauth2": (OAuth2PasswordBearer("token"), by_header("Authorization", "Bearer {}")),
    "bearer": (HTTPBearer(), by_header("Authorization", "Bearer {}")),
    "basic": (HTTPBasic(), by_basic),
    "key-header": (APIKeyHeader(name="X-API-Key"), by_header("X-API-Key")),
    "key-cookie": (APIKeyCookie(name="session"), by_header("Cookie", "session={}")),
    "key-query": (APIKeyQuery(name="key"), lambda who: {"params": {"key": who}}),
}


def named_by(credentials: Any) -> str:
    """The caller's name, in whatever a scheme makes of it."""
    return str(getattr(credentials, "username", None) or getattr(credentials, "credentials", None) or credentials)


async def check_everybody_gets_their_own(client: httpx2.AsyncClient, said: Callable[[str], dict[str, Any]]) -> None:
    """The owner warms the route; then others ask."""
    alices = [await client.get("mine/7", **said(ALICE)) for _ in range(2)]
    assert [answer.json() for answer in alices] == [ALICE] * 2
    assert states(*alices) == ["MISS", "HIT"]

    bobs = [await client.get("mine/7", **said(BOB)) for _ in range(2)]
    assert [answer.json() for answer in bobs] == [BOB] * 2
    assert states(*bobs) == ["MISS", "HIT"]

    nobodys = await client.get("mine/7")
    assert nobodys.status_code in {401, 403}
    assert "X-Cache" not in nobodys.headers

    known = alices[0].headers["ETag"]
    said_and_known = said(BOB)
    said_and_known["headers"] = {**said_and_known.get("headers", {}), "If-None-Match": known}
    assert (await client.get("mine/7", **said_and_known)).json() == BOB


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("declare", [Depends, Security])
async def test_a_route_with_a_security_scheme_is_private(
    cache_only: CacheSettings, stored: Stored, scheme: str, declare: Any
) -> None:
    router = APIRouter()
    dependency, said = SCHEMES[scheme]

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id")
    async def mine(my_id: int, credentials: Annotated[Any, declare(dependency)]) -> str:
        return named_by(credentials)

    async with running(router, cache_only) as client:
        await check_everybody_gets_their_own(client, said)
    assert stored.all_keys() == {"mine:7"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("place", ["deep", "route", "router", "including router"])
async def test_a_security_scheme_counts_wherever_it_stands(cache_only: CacheSettings, scheme: str, place: str) -> None:
    dependency, said = SCHEMES[scheme]

    async def note(request: Request, credentials: Annotated[Any, Depends(dependency)]) -> None:
        request.scope["who"] = named_by(credentials)

    def dependencies(where: str) -> list[Any]:
        return [Depends(note)] if place == where else []

    async def deep(request: Request, credentials: Annotated[Any, Depends(dependency)]) -> None:
        await note(request, credentials)

    inner, outer = APIRouter(dependencies=dependencies("router")), APIRouter()
    nested = [Depends(deep)] if place == "deep" else []

    @inner.get("/mine/{my_id}", dependencies=[*dependencies("route"), *nested])
    @cache("mine", "my_id")
    async def mine(my_id: int, request: Request) -> str:
        return str(request.scope["who"])

    outer.include_router(inner, dependencies=dependencies("including router"))
    async with running(outer, cache_only) as client:
        await check_everybody_gets_their_own(client, said)


@pytest.mark.parametrize("scheme", ["bearer", "key-cookie"])
async def test_private_without_a_scheme_goes_by_what_could_tell_callers_apart(
    cache_only: CacheSettings, scheme: str
) -> None:
    router = APIRouter()
    _, said = SCHEMES[scheme]

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id", private=True)
    async def mine(my_id: int, request: Request) -> str:
        told = request.headers.get("Authorization") or request.headers.get("Cookie")
        if told is None:
            raise HTTPException(401)
        return told.replace("=", " ").split()[-1]

    async with running(router, cache_only) as client:
        await check_everybody_gets_their_own(client, said)


async def test_nobodys_answer_is_nobodys(cache_only: CacheSettings) -> None:
    router = APIRouter()
    scheme = OAuth2PasswordBearer("token", auto_error=False)

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id")
    async def mine(my_id: int, token: Annotated[str | None, Depends(scheme)]) -> str | None:
        return token

    async with running(router, cache_only) as client:
        for _ in range(2):
            assert (await client.get("mine/7", headers={"Authorization": "Bearer alice"})).json() == ALICE
            assert (await client.get("mine/7")).json() is None
            assert (await client.get("mine/7", headers={"Authorization": ""})).json() is None
            assert (await client.get("mine/7", headers={"Authorization": "Bearer bob"})).json() == BOB


async def test_a_route_that_is_said_to_be_shared_is_shared(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    scheme = OAuth2PasswordBearer("token", auto_error=False)

    @router.get("/ours/{my_id}")
    @cache("ours", "my_id", private=False)
    async def ours(my_id: int, token: Annotated[str | None, Depends(scheme)]) -> str:
        return "everybody's"

    async with running(router, cache_only) as client:
        answers = [await client.get("ours/7")]
        answers += [await client.get("ours/7", headers={"Authorization": f"Bearer {who}"}) for who in (ALICE, BOB)]
    assert states(*answers) == ["MISS", "HIT", "HIT"]
    assert len(stored.values("ours:7")) == 1


async def test_one_change_drops_everybodys_answer(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    dependency, said = SCHEMES["oauth2"]

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id")
    async def mine(my_id: int, token: Annotated[str, Depends(dependency)]) -> str:
        return token

    @router.delete("/mine/{my_id}")
    @cache("mine", "my_id")
    async def erase(my_id: int) -> None:
        return None

    async with running(router, cache_only) as client:
        for who in (ALICE, BOB):
            await client.get("mine/7", **said(who))
        assert len(stored.values("mine:7")) == 2
        await client.delete("mine/7")
    assert stored.all_keys() == set()


# ---- Who asks, as authentication has it ----


@pytest.mark.parametrize("change", ["is_superuser", "tier_id"])
async def test_who_has_other_rights_than_before_is_somebody_else(settings: Settings, change: str) -> None:
    router = APIRouter()

    @router.get("/rights/{my_id}")
    @cache("rights", "my_id")
    async def rights(my_id: int, user: CurrentUser) -> list[object]:
        return [user.is_superuser, user.tier_id]

    async with running(router, settings) as client:
        async with second_session() as db:
            tier = await create_tier(db)
            user = await create_user(db, is_superuser=change == "is_superuser")
        headers = signed_in(user, settings)
        before = [await client.get("rights/7", headers=headers) for _ in range(2)]
        assert states(*before) == ["MISS", "HIT"]

        async with second_session() as db:
            again = await crud_users.get(db, user.id)
            assert again is not None
            setattr(again, change, tier.id if change == "tier_id" else False)
            await db.commit()
        after = await client.get("rights/7", headers=headers)

    assert states(after) == ["MISS"]
    assert after.json() != before[0].json()
    assert after.json() == [False, tier.id if change == "tier_id" else None]


async def test_another_login_of_the_same_user_is_another_caller(settings: Settings) -> None:
    router = APIRouter()

    @router.get("/name/{my_id}")
    @cache("name", "my_id")
    async def name(my_id: int, user: CurrentUser) -> str:
        return user.username

    async with running(router, settings) as client:
        async with second_session() as db:
            user, other = await create_user(db), await create_user(db)
            session = await create_session(db, user)
        first = await client.get("name/7", headers=signed_in(user, settings))
        second = await client.get("name/7", headers=signed_in(user, settings, session.id))
        others = await client.get("name/7", headers=signed_in(other, settings))

    assert states(first, second, others) == ["MISS", "MISS", "MISS"]
    assert [answer.json() for answer in (first, second, others)] == [user.username, user.username, other.username]


async def test_who_is_signed_out_gets_nothing_from_the_cache(settings: Settings) -> None:
    router = APIRouter()

    @router.get("/name/{my_id}")
    @cache("name", "my_id")
    async def name(my_id: int, user: CurrentUser) -> str:
        return user.username

    async with running(router, settings) as client:
        async with second_session() as db:
            user = await create_user(db)
        headers = signed_in(user, settings)
        assert states(*[await client.get("name/7", headers=headers) for _ in range(2)]) == ["MISS", "HIT"]
        async with second_session() as db:
            gone = await crud_users.get(db, user.id)
            assert gone is not None
            await crud_users.soft_delete(db, gone)
            await db.commit()
        assert (await client.get("name/7", headers=headers)).status_code == 401
        assert (await client.get("name/7")).status_code == 401
        assert (await client.get("name/7", headers={"Authorization": "Bearer forged"})).status_code == 401


# ---- What caches in between are told ----


class ClientSideToo(AppSettings, RedisCacheSettings, ClientSideCacheSettings):
    """A cache here, and advice for those elsewhere."""


@pytest.mark.parametrize("settings_class", [CacheSettings, ClientSideToo])
async def test_a_private_answer_says_so(stored: Stored, settings_class: type[CacheSettings | ClientSideToo]) -> None:
    router = APIRouter()
    scheme = OAuth2PasswordBearer("token", auto_error=False)

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id", vary=["Accept-Language"])
    async def mine(my_id: int, token: Annotated[str | None, Depends(scheme)]) -> str | None:
        return token

    headers = {"Authorization": "Bearer alice"}
    async with running(router, settings_class()) as client:
        answers = [await client.get("mine/7", headers=headers) for _ in range(2)]
        known = {"If-None-Match": answers[0].headers["ETag"]}
        answers.append(await client.get("mine/7", headers=headers | known))
        nobodys = [await client.get("mine/7") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200, 304]
    for answer in answers:
        assert answer.headers.get_list("Cache-Control") == ["private, no-store"]
        assert varies_by(answer) == {"authorization", "cookie", "accept-language"}
    for answer in nobodys:
        assert varies_by(answer) == {"authorization", "cookie", "accept-language"}
        assert answer.headers.get("Cache-Control") == (
            "public, max-age=60" if settings_class is ClientSideToo else None
        )


def varies_by(answer: httpx2.Response) -> set[str]:
    """The names in `Vary`."""
    return {name.strip().lower() for line in answer.headers.get_list("Vary") for name in line.split(",")}


async def test_a_private_answer_that_is_not_stored_says_so_too(cache_only: CacheSettings, stored: Stored) -> None:
    router = APIRouter()
    scheme = OAuth2PasswordBearer("token")

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id", unless="fresh")
    async def mine(my_id: int, token: Annotated[str, Depends(scheme)], fresh: bool = True) -> str:
        return token

    async with running(router, cache_only) as client:
        answer = await client.get("mine/7", headers={"Authorization": "Bearer alice"})
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert varies_by(answer) == {"authorization", "cookie"}


async def test_a_handlers_own_policy_stays(stored: Stored) -> None:
    router = APIRouter()
    scheme = OAuth2PasswordBearer("token")

    @router.get("/mine/{my_id}")
    @cache("mine", "my_id")
    async def mine(my_id: int, token: Annotated[str, Depends(scheme)], response: Response) -> str:
        response.headers["Cache-Control"] = "private, max-age=5"
        return token

    async with running(router, ClientSideToo()) as client:
        for _ in range(2):
            answer = await client.get("mine/7", headers={"Authorization": "Bearer alice"})
            assert answer.headers.get_list("Cache-Control") == ["private, max-age=5"]


async def test_a_shared_answer_may_be_kept_by_anybody(stored: Stored) -> None:
    router = APIRouter()

    @router.get("/ours/{my_id}")
    @cache("ours", "my_id")
    async def ours(my_id: int) -> str:
        return "everybody's"

    async with running(router, ClientSideToo()) as client:
        await client.get("ours/7")
        stored.make_older("ours:7", 100)
        answer = await client.get("ours/7")
    assert answer.headers["Age"] == "100"
    assert answer.headers["Cache-Control"] == "public, max-age=160"


# ---- The app's own profiles ----


PUBLIC = {"id", "name", "username", "profile_image_url", "tier_id"}


async def test_a_profile_is_shared_by_those_who_see_the_public_part(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, stored: Stored
) -> None:
    ada, other = await create_user(db, username="ada"), await create_user(db)
    admin = await create_superuser(db)

    strangers = [await client.get("user/ada"), await client.get("user/ada", headers=signed_in(other, settings))]
    assert states(*strangers) == ["MISS", "HIT"]
    for answer in strangers:
        assert set(answer.json()) == PUBLIC

    for user in (ada, admin):
        for answer in [await client.get("user/ada", headers=signed_in(user, settings)) for _ in range(2)]:
            assert states(answer) == ["BYPASS"]
            assert answer.json()["email"] == "ada@example.com"
            assert answer.headers["Cache-Control"] == "private, no-store"

    assert stored.all_keys() == {"user_profile:ada"}
    assert b"example.com" not in b"".join(stored.values("user_profile:ada"))
    assert set((await client.get("user/ada")).json()) == PUBLIC
    assert states(await client.get("user/ada")) == ["HIT"]


async def test_an_owner_who_comes_first_stores_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, stored: Stored
) -> None:
    ada = await create_user(db, username="ada")
    for user in (ada, await create_superuser(db)):
        await client.get("user/ada", headers=signed_in(user, settings))
    assert stored.all_keys() == set()
    assert set((await client.get("user/ada")).json()) == PUBLIC


async def read_by_all(client: httpx2.AsyncClient, settings: Settings, *users: User) -> list[Any]:
    """What a stranger, and then each of these, get to read of ada."""
    asked: list[dict[str, str]] = [{}, *(signed_in(user, settings) for user in users)]
    return [(await client.get("user/ada", headers=headers)).json() for headers in asked]


async def test_a_changed_profile_is_read_by_all_at_once(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    ada, other = await create_user(db, username="ada", name="Ada"), await create_user(db)
    readers = (ada, other, await create_superuser(db))

    for name in ("Ada L.", "Ada Lovelace", "A. L."):
        await read_by_all(client, settings, *readers)
        changed = await client.patch("user/ada", json={"name": name}, headers=signed_in(ada, settings))
        assert changed.status_code == 200
        assert [read["name"] for read in await read_by_all(client, settings, *readers)] == [name] * 4


async def test_a_renamed_user_is_read_under_the_new_name_only(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    ada = await create_user(db, username="ada")
    assert (await client.get("user/countess")).status_code == 404
    for _ in range(2):
        assert (await client.get("user/ada")).status_code == 200

    await client.patch("user/ada", json={"username": "countess"}, headers=signed_in(ada, settings))

    assert (await client.get("user/ada")).status_code == 404
    assert (await client.get("user/countess")).json()["username"] == "countess"

    await client.patch("user/countess", json={"username": "ada"}, headers=signed_in(ada, settings))
    assert (await client.get("user/countess")).status_code == 404
    assert (await client.get("user/ada")).json()["username"] == "ada"


async def test_a_moved_users_tier_is_read_at_once(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    tier = await create_tier(db)
    await create_user(db, username="ada")
    admin = signed_in(await create_superuser(db), settings)

    for tier_id in (tier.id, None):
        await client.get("user/ada")
        assert (await client.patch("user/ada/tier", json={"tier_id": tier_id}, headers=admin)).status_code == 200
        assert (await client.get("user/ada")).json()["tier_id"] == tier_id


@pytest.mark.parametrize("path", ["user/ada", "db_user/ada"])
async def test_a_user_who_is_gone_is_404_at_once(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings, path: str
) -> None:
    ada = await create_user(db, username="ada")
    admin = await create_superuser(db)
    for _ in range(2):
        assert (await client.get("user/ada")).status_code == 200

    headers = signed_in(ada if path == "user/ada" else admin, settings)
    assert (await client.delete(path, headers=headers)).status_code == 200

    assert (await client.get("user/ada")).status_code == 404
    assert (await client.get("user/ada", headers=signed_in(admin, settings))).status_code == 404


async def test_a_profile_that_could_not_be_changed_stays_cached(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    ada, other = await create_user(db, username="ada"), await create_user(db)
    await client.get("user/ada")

    for user, values, status in [(other, {"name": "X"}, 403), (ada, {"username": other.username}, 409)]:
        refused = await client.patch("user/ada", json=values, headers=signed_in(user, settings))
        assert refused.status_code == status
    assert states(await client.get("user/ada")) == ["HIT"]


async def test_an_anonymous_profile_is_no_answer_for_its_owner(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    ada = await create_user(db, username="ada")
    anonymous = await client.get("user/ada")
    assert {"authorization", "cookie"} <= varies_by(anonymous)

    headers = signed_in(ada, settings) | {"If-None-Match": anonymous.headers["ETag"]}
    assert "email" in (await client.get("user/ada", headers=headers)).json()


async def test_an_optional_user_makes_a_route_private(settings: Settings) -> None:
    router = APIRouter()

    @router.get("/greeting/{my_id}")
    @cache("greeting", "my_id")
    async def greeting(my_id: int, viewer: OptionalUser) -> str:
        return f"Hello {viewer.username if viewer else 'stranger'}"

    async with running(router, settings) as client:
        async with second_session() as db:
            ada = await create_user(db, username="ada")
        for _ in range(2):
            assert (await client.get("greeting/7", headers=signed_in(ada, settings))).json() == "Hello ada"
            assert (await client.get("greeting/7")).json() == "Hello stranger"
