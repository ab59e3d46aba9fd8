"""What the console changes of users: with the functions of the API's routes, and written down."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request

from app.admin.views.base import app_of, audit, client_of, operator_of, session_of
from app.admin.views.fields import load_tiers
from app.admin.views.search import SearchedView, number_in
from app.api.accounts import delete_account, end_logins, move_to_tier, restore_account, set_superuser
from app.api.credentials import set_temporary_password
from app.core.exceptions.http_exceptions import Conflict
from app.crud.crud_login_session import LoginSessionNotFound, crud_login_sessions
from app.crud.crud_security_event import crud_security_events
from app.crud.crud_tier import TierNotFound
from app.crud.crud_users import UserNotFound, crud_users
from app.models.security_event import EventKind
from app.models.user import User

NO_TIER: Final = "none"


class OwnAccount(Conflict):
    text = "Nobody deletes their own account here."


class PasswordChangedMeanwhile(Conflict):
    text = "The password was changed since you loaded the page, maybe by the same button. Load the user's page again."


def seen_password(user: User) -> str:
    """Says which password a user has, without saying anything of it."""
    return user.password_changed_at.isoformat() if user.password_changed_at is not None else "never changed"


class UserChanges(SearchedView[User]):
    """What the actions of `UserView` do."""

    async def _user(self, request: Request, pk: Any) -> User:
        user: User | None = await self.find_by_pk(request, pk)
        if user is None:
            raise UserNotFound
        return user

    async def _with(self, function: Callable[..., Awaitable[Any]], request: Request, *given: Any) -> Any:
        settings, client = app_of(request).state.settings, await client_of(request)
        return await function(session_of(request), *given, settings, client, operator_of(request).user)

    async def _chosen_tier(self, request: Request) -> int | None:
        async with request.form() as form:
            value = str(form.get("tier", ""))
        tier_id = number_in(value)
        if value != NO_TIER and tier_id not in await load_tiers(request):
            raise TierNotFound
        return tier_id

    async def _move(self, request: Request, user: User, tier_id: int | None) -> None:
        before = (await crud_users.lock(session_of(request), user.id)).tier_id
        await self._with(move_to_tier, request, user, tier_id)
        await audit(request, "user.move_to_tier", self.target(user), {"tier_id": before}, {"tier_id": tier_id})

    async def _end_logins(self, request: Request, user: User) -> int:
        ended = await end_logins(session_of(request), user, await client_of(request), operator_of(request).user)
        await audit(request, "user.end_logins", self.target(user), {}, {"ended": ended})
        return ended

    async def _end_login(self, request: Request, user: User) -> None:
        async with request.form() as form:
            named = str(form.get("session", ""))
        try:
            session_id = UUID(named)
        except ValueError:
            raise LoginSessionNotFound from None
        db, client, actor = session_of(request), await client_of(request), operator_of(request).user
        if not await crud_login_sessions.end(db, session_id, user.id):
            raise LoginSessionNotFound
        await crud_security_events.record(
            db, EventKind.SESSIONS_ENDED, client, user_id=user.id, actor_id=actor.id, session_id=session_id
        )
        await audit(request, "user.end_login", self.target(user), {}, {"login": session_id})

    async def _rank(self, request: Request, user: User, *, is_superuser: bool) -> None:
        if await self._with(set_superuser, request, user, is_superuser):
            before, after = {"is_superuser": not is_superuser}, {"is_superuser": is_superuser}
            await audit(request, "user.set_superuser", self.target(user), before, after)

    async def _delete(self, request: Request, user: User) -> None:
        if user.id == operator_of(request).user.id:
            raise OwnAccount
        before = {"is_deleted": False, "tier_id": (await crud_users.lock(session_of(request), user.id)).tier_id}
        await self._with(delete_account, request, user)
        await audit(request, "user.delete", self.target(user), before, {"is_deleted": True, "tier_id": None})

    async def _restore(self, request: Request, user: User) -> None:
        await self._with(restore_account, request, user)
        await audit(request, "user.restore", self.target(user), {"is_deleted": True}, {"is_deleted": False})

    async def _set_password(self, request: Request, user: User) -> str:
        async with request.form() as form:
            seen = form.get("seen")
        locked = await crud_users.lock(session_of(request), user.id)
        if seen is not None and seen != seen_password(locked):
            raise PasswordChangedMeanwhile
        password: str = await self._with(set_temporary_password, request, user)
        await audit(request, "user.temporary_password", self.target(user), {}, {"until": user.password_expires_at})
        return password
