"""An app to try the cache on, for `uvicorn tests.cache_app:app`: counters in a table of its own.

Where a request waits is said by its headers `Wait-...`, in seconds. The routes do not declare them: variants of an
answer would be told apart by them.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Annotated, Any

import src  # noqa: F401  (makes `app` importable from the project's folder)
import structlog
from fastapi import APIRouter, Cookie, Depends, Header
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request

from app.api.dependencies import SessionDep
from app.api.v1 import health
from app.core.config import ClientSideCacheSettings, PostgresSettings, RedisCacheSettings
from app.core.db.database import around_commit, reading
from app.core.exceptions.http_exceptions import Conflict
from app.core.setup import create_application
from app.core.utils.cache import cache, invalidation
from tests.cache_app_values import LINGER, NEVER_COMMITTED, OWN, SLOW_LEASE

vars(invalidation).update(OWN=OWN, LINGER=LINGER)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

router = APIRouter(prefix="/api/v1")
router.include_router(health.router)

Counter = dict[str, int]


async def wait(request: Request, moment: str) -> None:
    await asyncio.sleep(float(request.headers.get(f"Wait-{moment}", 0)))


async def run(db: AsyncSession, statement: str, **values: Any) -> Any:
    """Executes SQL; returns the first column of what it returns."""
    return (await (await db.connection()).execute(text(statement), values)).scalars().all()


async def load(counter_id: int, request: Request, db: SessionDep) -> Counter:
    """The counter, with a wait before it is read, and one after."""
    await wait(request, "before-read")
    (value,) = await run(db, "SELECT value FROM counter WHERE id = :id", id=counter_id)
    await wait(request, "after-read")
    return {"id": counter_id, "value": value}


LoadedCounter = Annotated[Counter, Depends(load)]


# ---- Counters ----


@router.get("/uncached/{counter_id}")
async def read_uncached(counter: LoadedCounter) -> Counter:
    return counter


@router.get("/counter/{counter_id}")
@cache("counter")
async def read_counter(counter_id: int, request: Request, db: SessionDep) -> Counter:
    return await load(counter_id, request, db)


@router.get("/loaded/{counter_id}")
@cache("counter")
async def read_loaded_counter(counter_id: int, counter: LoadedCounter) -> Counter:
    """Reads it in a dependency: before the cache is asked, and so before there is a lease."""
    return counter


@router.get("/slow/{counter_id}")
@cache("counter", lease=SLOW_LEASE)
async def read_slowly(counter_id: int, request: Request, db: SessionDep) -> dict[str, int | str]:
    """Leaves a row for each computation, with the process that makes it, and something that no other answer has."""
    async with reading() as other:
        await run(other, "INSERT INTO computation VALUES (:id, :pid) RETURNING pid", id=counter_id, pid=os.getpid())
    return {**await load(counter_id, request, db), "computation": token_hex(8)}


INCREMENT = "UPDATE counter SET value = value + 1 WHERE id = :id RETURNING value"


@router.patch("/counter/{counter_id}")
@cache("counter")
async def increment(counter_id: int, request: Request, db: SessionDep) -> Counter:
    (value,) = await run(db, INCREMENT, id=counter_id)
    await wait(request, "before-commit")
    return {"id": counter_id, "value": value}


@router.patch("/counter/{counter_id}/in-vain")
@cache("counter")
async def change_in_vain(counter_id: int, request: Request, db: SessionDep) -> Counter:
    await run(db, "UPDATE counter SET value = :value WHERE id = :id RETURNING id", value=NEVER_COMMITTED, id=counter_id)
    await wait(request, "before-commit")
    raise Conflict


@router.patch("/counter/{counter_id}/and-die")
@cache("counter")
async def increment_and_die(counter_id: int, db: SessionDep) -> Counter:
    """The process is killed between the commit and what the cache does after it."""
    (value,) = await run(db, INCREMENT, id=counter_id)
    around_commit(db, _dying)
    return {"id": counter_id, "value": value}


@asynccontextmanager
async def _dying(_: AsyncSession) -> AsyncIterator[None]:
    yield
    os.kill(os.getpid(), signal.SIGKILL)


@router.get("/owner/{owner}/counter/{counter_id}")
@cache("{owner}_counters")
async def read_counter_of(owner: str, counter_id: int, request: Request, db: SessionDep) -> Counter:
    return await load(counter_id, request, db)


@router.get("/owner/{owner}/loaded/{counter_id}")
@cache("{owner}_counters")
async def read_loaded_counter_of(owner: str, counter_id: int, counter: LoadedCounter) -> Counter:
    return counter


@router.patch("/owner/{owner}")
@cache("owner", resource_id_name="owner", pattern_to_invalidate_extra=["{owner}_counters:*"])
async def increment_all(owner: str, request: Request, db: SessionDep) -> Counter:
    """Increments all counters of an owner. They have one value."""
    values = await run(db, "UPDATE counter SET value = value + 1 WHERE owner = :owner RETURNING value", owner=owner)
    await wait(request, "before-commit")
    return {"value": max(values)}


# ---- Who asks ----

_bearer, _cookie, _key = (
    HTTPBearer(auto_error=False),
    APIKeyCookie(name="session", auto_error=False),
    APIKeyHeader(name="X-API-Key", auto_error=False),
)


async def name_by_token(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str | None:
    return given.credentials if given else None


NameByToken = Annotated[str | None, Depends(name_by_token)]
NameByCookie = Annotated[str | None, Depends(_cookie)]
NameByKey = Annotated[str | None, Depends(_key)]


@router.get("/whoami/token")
@cache("whoami", resource_id="token")
async def whoami_by_token(name: NameByToken) -> str | None:
    return name


@router.get("/whoami/cookie")
@cache("whoami", resource_id="cookie")
async def whoami_by_cookie(name: NameByCookie) -> str | None:
    return name


@router.get("/whoami/key")
@cache("whoami", resource_id="key")
async def whoami_by_key(name: NameByKey) -> str | None:
    return name


async def is_own(username: str, name: NameByToken) -> bool:
    return username == name


@router.get("/profile/{username}")
@cache("profile", resource_id_name="username", private=False, unless="own")
async def read_profile(username: str, own: Annotated[bool, Depends(is_own)]) -> str:
    """A public route that shows its owner more."""
    return f"all of {username}" if own else f"{username} in public"


@router.get("/greeting")
@cache("greeting", resource_id="only")
async def greet(accept_language: Annotated[str, Header()] = "en") -> str:
    """A public route that depends on a header."""
    return accept_language


@router.get("/theme")
@cache("theme", resource_id="only")
async def read_theme(theme: Annotated[str, Cookie()] = "light") -> str:
    """A public route that depends on a cookie."""
    return theme


# ---- With what it runs ----


class CacheAppSettings(PostgresSettings, RedisCacheSettings):
    pass


class ClientCacheAppSettings(CacheAppSettings, ClientSideCacheSettings):
    pass


app = create_application(router, CacheAppSettings())
app_with_client_cache = create_application(router, ClientCacheAppSettings())
