"""Users."""

from functools import partial

from fastapi import APIRouter
from starlette.status import HTTP_201_CREATED

from app.api.accounts import PROFILE, delete_account, discard_profile_image, move_to_tier, update_profile
from app.api.credentials import ask_to_verify
from app.api.dependencies import (
    ClientDep,
    CurrentSuperuser,
    CurrentUser,
    ManagedUser,
    OptionalUser,
    OwnUser,
    PagingDep,
    ReadingSessionDep,
    SeesAll,
    SessionDep,
    SettingsDep,
    StorageOrNone,
    UserDep,
    UsernameInPath,
    UserToErase,
)
from app.core.db.database import reading
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import SIGN_IN_OPTIONAL, problems
from app.core.passwords import HashingBusy, hash_password
from app.core.schemas import Message, Page
from app.core.security import InvalidToken
from app.core.utils.cache import cache
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_security_event import crud_security_events
from app.crud.crud_tier import TierNotFound, crud_tiers
from app.crud.crud_users import EmailTaken, UsernameTaken, UserNotFound, crud_users
from app.models.rate_limit import EffectiveRateLimit, effective_rate_limits
from app.models.security_event import EventKind
from app.models.tier import Tier, TierRead
from app.models.user import User, UserCreate, UserPublic, UserRead, UserTierUpdate, UserUpdate

router = APIRouter(tags=["users"])

# In this order: pydantic tries them one after the other, and most are public ones.
Shown = UserPublic | UserRead
UserPage = Page[Shown]


# What is cached about a user: the public profile, for all who see no more of it. `app.api.accounts` drops it.
public_profile = partial(cache, PROFILE, resource_id_name="username")


@router.post(
    "/user",
    response_model=UserRead,
    status_code=HTTP_201_CREATED,
    responses=problems(UsernameTaken, EmailTaken, HashingBusy),
)
async def create_user(values: UserCreate, db: SessionDep, settings: SettingsDep) -> User:
    """Sign up. Where mail can be sent, one goes out that asks to verify the address."""
    hashed = await hash_password(values.password.get_secret_value(), settings)
    user = await crud_users.register(db, values, hashed)
    await ask_to_verify(user, db, settings)
    return user


@router.get("/user/me", response_model=UserRead, include_in_schema=False)
@router.get("/user/me/", response_model=UserRead, responses=problems(Unauthorized))
async def read_me(user: CurrentUser) -> User:
    """Read your own profile."""
    return user


@router.get("/users", openapi_extra=SIGN_IN_OPTIONAL, responses=problems(InvalidToken))
async def read_users(viewer: OptionalUser, paging: PagingDep, db: ReadingSessionDep) -> UserPage:
    """List users. Superusers see all of each, others the public part."""
    page = await crud_users.page_of_users(db, paging)
    # In a list even your own entry is the public one, so that an entry's shape depends on the caller's rank alone.
    shape = UserRead if viewer and viewer.is_superuser else UserPublic
    return paging.made(UserPage, [shape.model_validate(user) for user in page.data], page.total_count)


@router.get("/user/{username}", openapi_extra=SIGN_IN_OPTIONAL, responses=problems(InvalidToken, UserNotFound))
@public_profile(private=False, unless="sees_all")
async def read_user(username: UsernameInPath, sees_all: SeesAll) -> Shown:
    """Read a profile: all of it for the user and superusers, the public part for others."""
    async with reading() as db:
        user = await crud_users.look_up(db, username)
    if user is None:
        raise UserNotFound
    return (UserRead if sees_all else UserPublic).model_validate(user)


@router.patch(
    "/user/{username}",
    response_model=UserRead,
    responses=problems(Unauthorized, Forbidden, UserNotFound, UsernameTaken, EmailTaken),
)
async def update_user(
    user: ManagedUser,
    values: UserUpdate,
    db: SessionDep,
    settings: SettingsDep,
    actor: CurrentUser,
    client: ClientDep,
    storage: StorageOrNone,
) -> User:
    """Change a profile: your own or, as a superuser, anybody's. Another e-mail address has to be verified anew."""
    return await update_profile(db, user, values, settings, client, actor, storage)


@router.delete("/user/{username}", responses=problems(Unauthorized, Forbidden, UserNotFound))
async def delete_user(user: OwnUser, db: SessionDep, settings: SettingsDep, client: ClientDep) -> Message:
    """Delete your account. Every token of it is refused from now on; the name stays taken."""
    await delete_account(db, user, settings, client, actor=user)
    return Message(message="User deleted.")


@router.delete("/db_user/{username}", responses=problems(Unauthorized, Forbidden, UserNotFound))
@public_profile()
async def erase_user(
    username: UsernameInPath,
    user: UserToErase,
    admin: CurrentSuperuser,
    db: SessionDep,
    client: ClientDep,
    storage: StorageOrNone,
) -> Message:
    """Remove a user from the database, deleted before or not. Superusers only."""
    await crud_users.delete(db, user)
    discard_profile_image(db, storage, user.id, user.profile_image_url)
    await crud_security_events.record(
        db, EventKind.USER_DELETED, client, actor_id=admin.id, uuid=str(user.uuid), erased=True
    )
    return Message(message="User removed from the database.")


@router.get(
    "/user/{username}/tier",
    response_model=TierRead | None,
    responses=problems(Unauthorized, Forbidden, UserNotFound),
)
async def read_user_tier(user: ManagedUser, db: SessionDep) -> Tier | None:
    """Read a user's tier; null without one."""
    return await crud_tiers.get(db, user.tier_id) if user.tier_id is not None else None


@router.patch(
    "/user/{username}/tier",
    response_model=UserRead,
    responses=problems(Unauthorized, Forbidden, UserNotFound, TierNotFound),
)
async def update_user_tier(
    admin: CurrentSuperuser,
    user: UserDep,
    values: UserTierUpdate,
    db: SessionDep,
    settings: SettingsDep,
    client: ClientDep,
) -> User:
    """Move a user to a tier, or with null out of any. Superusers only."""
    return await move_to_tier(db, user, values.tier_id, settings, client, admin)


@router.get("/user/{username}/rate_limits", responses=problems(Unauthorized, Forbidden, UserNotFound))
async def read_user_rate_limits(user: ManagedUser, db: SessionDep, settings: SettingsDep) -> list[EffectiveRateLimit]:
    """List the rate limits that apply to a user: their tier's and, where it has none for every path, the default."""
    return effective_rate_limits(await crud_rate_limits.list_of_tier(db, user.tier_id), settings)
