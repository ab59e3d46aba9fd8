"""What users and operators do to accounts, between HTTP and the tables.

Each of these locks the user first and goes by what is in the row then: of two who act at once, the second sees what
the first has done.
"""

from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.credentials import ask_to_verify
from app.core.config import RedisCacheSettings, Settings
from app.core.exceptions.http_exceptions import Conflict, Forbidden
from app.core.schemas import MAX_ID
from app.core.storage import ReceivedFile, Storage
from app.core.utils.cache import invalidate_on_commit
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_tier import TierNotFound
from app.crud.crud_users import crud_users
from app.models.security_event import EventKind
from app.models.user import User, UserTierUpdate, UserUpdate

PROFILE_IMAGES = "profile-images"  # the folder of their keys
PROFILE = "user_profile"  # what is cached about a user, by user name


class OwnRank(Conflict):
    text = "Nobody takes the rank of a superuser from themselves: another superuser has to."


async def update_profile(
    db: AsyncSession,
    user: User,
    values: UserUpdate,
    settings: Settings,
    client: Client,
    actor: User,
    storage: Storage | None = None,
) -> User:
    """Changes the fields that were given. Another e-mail address has to be verified anew.

    An uploaded profile image that is replaced by another URL or by none is deleted from the storage.

    Raises: UserNotFound, UsernameTaken, EmailTaken.
    """
    user = await crud_users.lock(db, user.id)
    username, email, image = user.username, user.email, user.profile_image_url
    user = await crud_users.update(db, user, values)
    if user.profile_image_url != image:
        discard_profile_image(db, storage, user.id, image)
    _forget_profile(db, settings, username, user.username)
    if user.email.lower() != email.lower():
        await crud_security_events.record(db, EventKind.EMAIL_CHANGED, client, user_id=user.id, actor_id=actor.id)
        await ask_to_verify(user, db, settings)
    return user


async def set_profile_image(
    db: AsyncSession, user: User, image: ReceivedFile, storage: Storage, settings: Settings
) -> User:
    """Stores a received image and makes it the user's. The uploaded one before it is deleted after the commit.

    Raises: UserNotFound for a user who was deleted meanwhile; StorageFull, StorageUnavailable.
    """
    key = await storage.keep(db, image, PROFILE_IMAGES, user.id)
    user = await crud_users.lock(db, user.id)
    replaced = user.profile_image_url
    user = await crud_users.update(db, user, UserUpdate(profile_image_url=storage.url_of(key)))
    discard_profile_image(db, storage, user.id, replaced)
    _forget_profile(db, settings, user.username)
    return user


def discard_profile_image(db: AsyncSession, storage: Storage | None, user_id: int, url: str | None) -> None:
    """Deletes a user's uploaded profile image after the commit. An image of another address is left alone."""
    if storage is not None and (key := storage.key_of(url, PROFILE_IMAGES, user_id)) is not None:
        storage.discard(db, key)


async def delete_account(db: AsyncSession, user: User, settings: Settings, client: Client, actor: User) -> User:
    """Deletes a user, softly, and ends their logins. The name and the address stay taken. Raises: UserNotFound."""
    user = await crud_users.lock(db, user.id)
    await crud_users.soft_delete(db, user)
    await crud_login_sessions.end_all_of_user(db, user.id)
    await crud_security_events.record(db, EventKind.USER_DELETED, client, user_id=user.id, actor_id=actor.id)
    _forget_profile(db, settings, user.username)
    return user


async def restore_account(db: AsyncSession, user: User, settings: Settings, client: Client, actor: User) -> User:
    """Takes a soft deletion back. The user has no tier and no login then, and the password and rank of before.

    Raises: UserNotFound for one who is not deleted, or erased.
    """
    user = await crud_users.lock(db, user.id, deleted=True)
    await crud_users.restore(db, user)
    await crud_security_events.record(db, EventKind.USER_RESTORED, client, user_id=user.id, actor_id=actor.id)
    _forget_profile(db, settings, user.username)
    return user


async def move_to_tier(
    db: AsyncSession, user: User, tier_id: int | None, settings: Settings, client: Client, actor: User
) -> User:
    """Moves a user to a tier, or with None out of any. Raises: UserNotFound, TierNotFound."""
    if tier_id is not None and not 1 <= tier_id <= MAX_ID:
        raise TierNotFound
    user = await crud_users.lock(db, user.id)
    user = await crud_users.update(db, user, UserTierUpdate(tier_id=tier_id))
    await crud_security_events.record(
        db, EventKind.RIGHTS_CHANGED, client, user_id=user.id, actor_id=actor.id, tier_id=tier_id
    )
    _forget_profile(db, settings, user.username)
    return user


async def end_logins(db: AsyncSession, user: User, client: Client, actor: User) -> int:
    """Ends all logins of a user: their tokens are refused from the next request on. Says how many."""
    ended = await crud_login_sessions.end_all_of_user(db, user.id)
    await crud_security_events.record(
        db, EventKind.SESSIONS_ENDED, client, user_id=user.id, actor_id=actor.id, ended=ended
    )
    return ended


async def set_superuser(
    db: AsyncSession, user: User, is_superuser: bool, settings: Settings, client: Client, actor: User | None
) -> bool:
    """Makes a user a superuser, or no longer one, which ends their logins. Says whether that was a change.

    Args:
        actor: the superuser who does it; None for a script.

    Raises: UserNotFound; OwnRank for a superuser's own; Forbidden for who is no superuser by then, so that of two who
    take each other's rank one keeps it.
    """
    ranks = {user.id} if actor is None else {user.id, actor.id}
    locked = {user_id: await crud_users.lock(db, user_id) for user_id in sorted(ranks)}  # One order: no deadlock.
    user = locked[user.id]
    if actor is not None and not locked[actor.id].is_superuser:
        raise Forbidden
    if user.is_superuser == is_superuser:
        return False
    if actor is not None and actor.id == user.id:
        raise OwnRank
    user.is_superuser = is_superuser
    if not is_superuser:
        await db.flush()  # The rank before the logins: one that begins meanwhile waits for it, or is ended.
        await crud_login_sessions.end_all_of_user(db, user.id)
    await crud_security_events.record(
        db,
        EventKind.RIGHTS_CHANGED,
        client,
        user_id=user.id,
        actor_id=actor.id if actor is not None else None,
        is_superuser=is_superuser,
    )
    _forget_profile(db, settings, user.username)
    return True


def _forget_profile(db: AsyncSession, settings: Settings, *usernames: str) -> None:
    if settings.inherits(RedisCacheSettings):  # Without a cache, nobody would ever do what is written down for it.
        for username in sorted(set(usernames)):
            invalidate_on_commit(db, PROFILE, username)
