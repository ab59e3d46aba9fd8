"""Every dependency, named once: signatures in `api/v1/` are made of these.

All are coroutines, even those that wait for nothing: FastAPI runs plain functions in threads, at 60 microseconds each.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request, Response
from fastapi.security import OAuth2PasswordBearer
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import HTTPConnection

from app.api.job_events import JobFollower, TooManyStreams
from app.api.refresh_cookie import refresh_cookie
from app.core.config import CryptSettings, PostgresSettings, Settings
from app.core.connection import application_of, state_of
from app.core.db.database import async_get_db, reading
from app.core.db.engine import DatabaseUnavailable
from app.core.db.replica import Replica, lagging
from app.core.draining import Drain
from app.core.exceptions.http_exceptions import Forbidden, Problem, Unauthorized, Unprocessable
from app.core.exceptions.problem_response import request_id_of
from app.core.logger import note_user
from app.core.readiness import Dependency
from app.core.route_inputs import same_for_all_callers
from app.core.schemas import Id, VisibleText
from app.core.security import AccessToken, InvalidToken, decode_access_token
from app.core.storage import Storage
from app.core.utils import queue
from app.core.utils.cache import identify_caller
from app.core.utils.queue import LONGEST_NAME, Feed, Job, JobStatus
from app.core.utils.rate_limit import EVERY_PATH, Limiter, limit, limited_paths, limits_routes
from app.crud.crud_rate_limit import RateLimitNotFound, crud_rate_limits
from app.crud.crud_security_event import Client
from app.crud.crud_tier import TierNotFound, crud_tiers
from app.crud.crud_users import UserNotFound, crud_users
from app.crud.helper import Paging
from app.middleware.replica_middleware import subjects_of
from app.middleware.websocket_edge import end_at_handshake
from app.models.job import JobNotFound, may_see
from app.models.rate_limit import RateLimit, RateLimitCreate, RateLimitUpdate
from app.models.security_event import EventKind
from app.models.tier import Tier, TierName
from app.models.user import ExistingUsername, User

# ---- Settings and database ----

SessionDep = Annotated[AsyncSession, Depends(async_get_db, scope="function")]


@same_for_all_callers
async def get_app_settings(request: HTTPConnection) -> Settings:
    """The settings this app was built with."""
    settings: Settings = state_of(request).settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_app_settings)]


@same_for_all_callers
async def get_app_dependencies(request: HTTPConnection) -> list[Dependency]:
    """The services this app talks to."""
    dependencies: list[Dependency] = state_of(request).dependencies
    return dependencies


DependenciesDep = Annotated[list[Dependency], Depends(get_app_dependencies)]


@same_for_all_callers
async def get_drain(request: HTTPConnection) -> Drain:
    """Whether the server was told to stop."""
    drain: Drain = state_of(request).drain
    return drain


DrainDep = Annotated[Drain, Depends(get_drain)]


async def get_storage(request: HTTPConnection) -> Storage:
    """Where uploaded files are stored."""
    storage: Storage = state_of(request).storage
    return storage


StorageDep = Annotated[Storage, Depends(get_storage)]


async def get_storage_or_none(request: HTTPConnection) -> Storage | None:
    """Where uploaded files are stored, or None where they are not."""
    return getattr(state_of(request), "storage", None)


StorageOrNone = Annotated[Storage | None, Depends(get_storage_or_none)]


async def get_paging(
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    items_per_page: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Paging:
    """Which page is asked for."""
    return Paging(page, items_per_page)


PagingDep = Annotated[Paging, Depends(get_paging)]


async def never_cached(response: Response) -> None:
    """For answers about this moment, or with a token in them: they are of no use, or a danger, later."""
    response.headers["Cache-Control"] = "no-store"


# ---- Who is asking ----

LONGEST_USER_AGENT = 255

_bearer = OAuth2PasswordBearer("login", auto_error=False)  # `add_openapi` completes the path.

BearerToken = Annotated[str | None, Depends(_bearer)]
RefreshCookie = Annotated[str | None, Depends(refresh_cookie)]


async def get_client(request: HTTPConnection) -> Client:
    """Where the request comes from."""
    agent = request.headers.get("User-Agent", "")[:LONGEST_USER_AGENT]
    visible = agent.encode("ascii", "replace").decode() if agent.isprintable() else None
    return Client(request.client.host if request.client else None, visible or None, request_id_of(request))


ClientDep = Annotated[Client, Depends(get_client)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as their `Authorization` header tells.

    Attributes:
        token: the verified access token.
        user: whose it is.
        problem: why it could not be verified. Routes that go by it say so; to others, nobody has signed in.
    """

    token: AccessToken | None = None
    user: User | None = None
    problem: Problem | None = None


NOBODY = Caller()
_CALLER = "slipway.caller"  # in a request's state


async def caller_of(request: HTTPConnection) -> Caller:
    """Who asks. One statement, before the request's own transaction and once per request; none for nobody.

    Not a dependency, each of which takes FastAPI some 10 microseconds. And it declares no security scheme, since every
    limited route asks for it, and most of them are open to all.
    """
    state = request.scope.setdefault("state", {})
    caller: Caller | None = state.get(_CALLER)
    if caller is None:
        caller = state[_CALLER] = await _look_up_caller(request)
        if caller.user is not None:
            note_user(state, caller.user.id)
    return caller


async def _look_up_caller(request: HTTPConnection) -> Caller:
    # Not by `headers`, which decodes all of them.
    sent = [value.decode("latin-1") for name, value in request.scope["headers"] if name == b"authorization"]
    if not sent or not state_of(request).settings.inherits(PostgresSettings, CryptSettings):
        return NOBODY  # Without these groups, nobody can sign in.
    try:
        return await _signed_in(request, sent)
    except (InvalidToken, DatabaseUnavailable) as problem:
        return Caller(problem=problem)


async def _signed_in(request: HTTPConnection, sent: list[str]) -> Caller:
    scheme, _, credentials = sent[0].partition(" ")
    if scheme.lower() != "bearer" or len(sent) > 1:
        raise InvalidToken  # Another scheme, no scheme, or a second header that nobody would have looked at.
    token = decode_access_token(credentials.strip(), state_of(request).settings)
    async with reading() as db:
        user = await crud_users.get_signed_in(db, token.user_uuid, token.session_id, token.jti)
    if user is None:
        raise InvalidToken
    return Caller(token, user)


async def is_still_signed_in(connection: HTTPConnection) -> bool:
    """Whether the credentials of this request or WebSocket are good at this moment: one statement each time.

    For what lasts, such as a WebSocket, after whose start a token can expire and a login can be ended.
    """
    caller = await _look_up_caller(connection)
    return caller.problem is None and caller.user is not None


@same_for_all_callers
async def get_access_token(request: HTTPConnection, _: BearerToken) -> AccessToken | None:
    """The verified access token, if there is one. A broken one is an error, never an anonymous caller."""
    caller = await caller_of(request)
    if caller.problem is not None:
        raise caller.problem
    return caller.token


OptionalToken = Annotated[AccessToken | None, Depends(get_access_token)]


@same_for_all_callers
async def get_optional_user(request: HTTPConnection, token: OptionalToken) -> User | None:
    """The signed-in user, or nobody."""
    user = (await caller_of(request)).user
    if token is not None and user is not None:
        identify_caller(request, user.uuid, token.session_id, user.is_superuser, user.tier_id)
    return user


OptionalUser = Annotated[User | None, Depends(get_optional_user)]


async def get_current_token(token: OptionalToken) -> AccessToken:
    """The access token of the caller, who has to have one."""
    if token is None:
        raise Unauthorized
    return token


CurrentToken = Annotated[AccessToken, Depends(get_current_token)]


async def get_current_user(user: OptionalUser) -> User:
    """The signed-in user."""
    if user is None:
        raise Unauthorized
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]


async def get_current_superuser(user: CurrentUser) -> User:
    """The signed-in user, who is a superuser."""
    if not user.is_superuser:
        raise Forbidden
    return user


CurrentSuperuser = Annotated[User, Depends(get_current_superuser)]


@lagging
@same_for_all_callers
async def get_reading_session(request: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """A session that only reads: on the replica where there is one, once it has what this caller has written."""
    replica: Replica | None = state_of(request).replica
    if replica is None:
        async with reading() as db:
            end_at_handshake(request.scope, db)
            yield db
        return
    await caller_of(request)
    async with replica.reading(subjects_of(request)) as db:
        end_at_handshake(request.scope, db)
        yield db


ReadingSessionDep = Annotated[AsyncSession, Depends(get_reading_session, scope="function")]


@limits_routes
async def limit_rate(request: HTTPConnection) -> None:
    """Counts the request: under its user, or else under the address it comes from."""
    if (user := (await caller_of(request)).user) is not None:
        await limit(request, user.id, user.tier_id)
    else:
        await limit(request)


@same_for_all_callers
async def get_rate_limiter(request: HTTPConnection) -> Limiter:
    """What counts requests."""
    limiter: Limiter = state_of(request).rate_limiter
    return limiter


RateLimiterDep = Annotated[Limiter, Depends(get_rate_limiter)]


class CrossSiteRequest(Forbidden):
    text = "This may not be asked from another site's page."


async def require_same_site(request: HTTPConnection, settings: SettingsDep) -> None:
    """For what a browser's cookie alone can do: refuses what another site's page makes the browser ask.

    Goes by `Sec-Fetch-Site`, and by `Origin` where a browser is too old to send it. Neither means no browser.
    Origins that CORS allows are no strangers.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if origin is not None and origin in getattr(settings, "CORS_ORIGINS", ()):
        return
    if site is None and (origin is None or _host_of(origin) == request.url.hostname):
        return
    if site not in {"same-origin", "same-site", "none"}:
        raise CrossSiteRequest


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


# ---- What is asked for: loaded, or 404 ----


UsernameInPath = Annotated[ExistingUsername, Path(alias="username")]
ExistingTierName = Annotated[TierName, Path(alias="name")]
ParentTierName = Annotated[TierName, Path(alias="tier_name")]
RateLimitId = Annotated[Id, Path(alias="id")]


async def get_user(username: UsernameInPath, db: SessionDep) -> User:
    """The user in the path."""
    user = await crud_users.get_by_username(db, username)
    if user is None:
        raise UserNotFound
    return user


UserDep = Annotated[User, Depends(get_user)]


async def sees_all(viewer: OptionalUser, username: UsernameInPath) -> bool:
    """Whether the caller sees all of the user in the path, and not only the public part."""
    return viewer is not None and (viewer.is_superuser or viewer.username == username)


SeesAll = Annotated[bool, Depends(sees_all)]


async def get_own_user(current: CurrentUser, user: UserDep) -> User:
    """The user in the path, who is the caller."""
    if user.id != current.id:
        raise Forbidden
    return user


OwnUser = Annotated[User, Depends(get_own_user)]


async def get_managed_user(current: CurrentUser, user: UserDep) -> User:
    """The user in the path, who is the caller, unless the caller is a superuser."""
    if user.id != current.id and not current.is_superuser:
        raise Forbidden
    return user


ManagedUser = Annotated[User, Depends(get_managed_user)]


async def get_managed_profile(current: CurrentUser, username: UsernameInPath) -> User:
    """The user in the path as `ManagedUser`, read past the transaction.

    For routes that wait for the caller before they write: they hold no connection of the pool meanwhile.
    """
    async with reading() as db:
        user = await crud_users.look_up(db, username)
    if user is None:
        raise UserNotFound
    if user.id != current.id and not current.is_superuser:
        raise Forbidden
    return user


ManagedProfile = Annotated[User, Depends(get_managed_profile)]


async def get_user_to_erase(_: CurrentSuperuser, username: UsernameInPath, db: SessionDep) -> User:
    """The user in the path, even when soft-deleted; for superusers."""
    user = await crud_users.get_by_username_with_deleted(db, username)
    if user is None:
        raise UserNotFound
    return user


UserToErase = Annotated[User, Depends(get_user_to_erase)]


async def get_tier(name: ExistingTierName, db: SessionDep) -> Tier:
    """The tier in the path."""
    tier = await crud_tiers.get_by_name(db, name)
    if tier is None:
        raise TierNotFound
    return tier


TierDep = Annotated[Tier, Depends(get_tier)]


async def get_parent_tier(tier_name: ParentTierName, db: SessionDep) -> Tier:
    """The tier in the path of something that belongs to it."""
    return await get_tier(tier_name, db)


ParentTier = Annotated[Tier, Depends(get_parent_tier)]


async def get_rate_limit(tier: ParentTier, rate_limit_id: RateLimitId, db: SessionDep) -> RateLimit:
    """The rate limit in the path."""
    rate_limit = await crud_rate_limits.get_of_tier(db, tier.id, rate_limit_id)
    if rate_limit is None:
        raise RateLimitNotFound
    return rate_limit


RateLimitDep = Annotated[RateLimit, Depends(get_rate_limit)]


async def get_job(viewer: OptionalUser, task_id: Annotated[str, Path(pattern=r"^[!-.0-~]{1,128}$")]) -> Job:
    """The job in the path. Somebody else's looks the same as one that does not exist."""
    job = await queue.find(task_id)
    if job is None or not may_see(viewer, job):
        raise JobNotFound
    return job


JobDep = Annotated[Job, Depends(get_job)]


async def get_managed_job(current: CurrentUser, job: JobDep) -> Job:
    """The job in the path, which is the caller's, unless the caller is a superuser."""
    if job.owner_id != current.id and not current.is_superuser:
        raise Forbidden
    return job


ManagedJob = Annotated[Job, Depends(get_managed_job)]


async def get_job_to_replay(_: CurrentSuperuser, job: JobDep) -> Job:
    """The job in the path; for superusers."""
    return job


JobToReplay = Annotated[Job, Depends(get_job_to_replay)]


async def get_job_follower(
    request: Request, job: JobDep, token: OptionalToken, user: OptionalUser, client: ClientDep
) -> JobFollower:
    """The caller, as one who follows the job in the path."""

    async def may_go_on() -> bool:
        caller = await _look_up_caller(request)
        return caller.problem is None and may_see(caller.user, job)

    feed: Feed = state_of(request).job_feed
    who = f"user {user.id}" if user is not None else f"address {client.address}"
    if not feed.has_room_for(who):
        raise TooManyStreams
    return JobFollower(feed, job.id, who, token.expires_at if token is not None else None, may_go_on)


JobFollowerDep = Annotated[JobFollower, Depends(get_job_follower)]

SessionId = Annotated[UUID, Path(alias="id")]

# ---- What is sent ----


@dataclass(frozen=True, slots=True)
class WantedEvents:
    """Which security events are asked for."""

    kind: EventKind | None
    user_id: int | None


async def get_wanted_events(
    kind: EventKind | None = None, user_id: Annotated[Id | None, Query()] = None
) -> WantedEvents:
    """Which security events are asked for: all, or of one kind, or about one user."""
    return WantedEvents(kind, user_id)


EventFilter = Annotated[WantedEvents, Depends(get_wanted_events)]


@dataclass(frozen=True, slots=True)
class WantedJobs:
    """Which jobs are asked for."""

    status: JobStatus | None
    function: str | None


async def get_wanted_jobs(
    status: JobStatus | None = None, function: Annotated[str | None, VisibleText(LONGEST_NAME), Query()] = None
) -> WantedJobs:
    """Which jobs are asked for: all, or in one status, or of one function."""
    return WantedJobs(status, function)


JobFilter = Annotated[WantedJobs, Depends(get_wanted_jobs)]


async def get_idempotency_key(
    user: OptionalUser,
    client: ClientDep,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=r"^[!-~]{1,200}$",
            description="Another request of the same caller with the same key gets the same task.",
        ),
    ] = None,
) -> str | None:
    """The key that was sent, made the caller's own: two who choose the same one have two tasks.

    Whoever is not signed in is told apart by their address, of which only a hash is kept.
    """
    if key is None:
        return None
    if user is not None:
        return f"http:{user.id}:{key}"
    return f"http:{sha256(f'{client.address} {key}'.encode()).hexdigest()}"


IdempotencyKey = Annotated[str | None, Depends(get_idempotency_key)]

TaskMessage = Annotated[str, VisibleText(500), Query(description="What the task is to say.")]


class UnknownPath(Unprocessable):
    text = "The path is not one of this API's."


def require_known_path(app_paths: list[str], path: str) -> None:
    """Raises: UnknownPath that names the nearest paths, when no limited route has this template and method.

    Args:
        app_paths: what rules can name, from `limited_paths`.
        path: what a rule is to name, as `as_documented` spells it.
    """
    if path != EVERY_PATH and path not in app_paths:
        alike = [known for known in app_paths if (" " in known) is (" " in path)]
        nearest = get_close_matches(path, alike, n=3, cutoff=0.3)
        hint = "Use `*`, a route's template, or a method and a template."
        raise UnknownPath(f"{UnknownPath.text} {hint}", nearest=nearest)


async def get_rate_limit_create(request: Request, _: CurrentSuperuser, values: RateLimitCreate) -> RateLimitCreate:
    """A new rule, for a path that exists."""
    require_known_path(limited_paths(application_of(request.scope)), values.path)
    return values


async def get_rate_limit_update(request: Request, _: CurrentSuperuser, values: RateLimitUpdate) -> RateLimitUpdate:
    """A changed rule, for a path that exists."""
    if "path" in values.model_fields_set:
        require_known_path(limited_paths(application_of(request.scope)), values.path)
    return values


NewRateLimit = Annotated[RateLimitCreate, Depends(get_rate_limit_create)]
ChangedRateLimit = Annotated[RateLimitUpdate, Depends(get_rate_limit_update)]
