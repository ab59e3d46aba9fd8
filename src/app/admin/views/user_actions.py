"""What operators do to users, one at a time or several at once."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette_admin.actions import ActionSelection, action, row_action
from starlette_admin.flash import flash
from starlette_admin.helpers import not_none

from app.admin.views.base import operator_of
from app.admin.views.fields import detail_url, in_utc, load_tiers
from app.admin.views.user_changes import NO_TIER, UserChanges, seen_password
from app.core.exceptions.http_exceptions import Problem
from app.models.user import User

_DELETES: Final = (
    "They are signed out everywhere and cannot sign in. Name and address stay taken. It can be taken back."
)
_FORM: Final = Markup(
    '<form><label class="form-label mt-3" for="move-to-tier">Tier</label>'
    '<select class="form-select" id="move-to-tier" name="tier">{}</select></form>'
)
_OPTION: Final = Markup('<option value="{}"{}>{}</option>')


async def _tier_form(request: Request, about: Any) -> str:
    current = about.tier_id if isinstance(about, User) else None
    choices: list[tuple[int | str, str]] = [(NO_TIER, "No tier"), *(await load_tiers(request)).items()]
    selected = {True: Markup(" selected"), False: ""}
    return _FORM.format(
        Markup().join(_OPTION.format(value, selected[value == (current or NO_TIER)], name) for value, name in choices)
    )


_SEEN: Final = Markup('<form><input type="hidden" name="seen" value="{}"></form>')


def _seen_form(request: Request, user: Any) -> str:
    """Which password is replaced: pressed twice, or loaded again, it is not another one that is replaced as well."""
    return _SEEN.format(seen_password(user))


class UserActions(UserChanges):
    """The actions of `UserView`."""

    actions = ("move_to_tier", "end_logins", "delete")
    row_actions = (
        "view",
        "edit",
        "move_to_tier",
        "temporary_password",
        "end_logins",
        "make_superuser",
        "no_superuser",
        "delete",
        "restore",
    )

    def can_delete(self, request: Request) -> bool:
        return True

    async def is_row_action_allowed_for_obj(self, request: Request, name: str, obj: Any) -> bool:
        if obj.is_deleted:
            return name in {"view", "restore"}
        own = obj.id == operator_of(request).user.id
        allowed = {
            "restore": False,
            "delete": not own,
            "temporary_password": not own,
            "make_superuser": not obj.is_superuser,
            "no_superuser": obj.is_superuser and not own,
        }
        return allowed.get(name, True)

    # ---- One user ----

    @row_action(
        name="move_to_tier",
        text="Move to tier",
        confirmation="Which tier is this user to have?",
        form=_tier_form,
        submit_btn_text="Move",
        exclude_from_list=True,
    )
    async def move_to_tier_row_action(self, request: Request, pk: Any) -> None:
        await self._move(request, await self._user(request, pk), await self._chosen_tier(request))
        flash(request, "The user was moved.", "success")

    @row_action(
        name="temporary_password",
        text="Set a temporary password",
        confirmation="The password of now opens nothing any more, and the user is signed out everywhere.",
        form=_seen_form,
        submit_btn_text="Set it",
        custom_response=True,
        exclude_from_list=True,
    )
    async def temporary_password_row_action(self, request: Request, pk: Any) -> Response:
        """Answers with a page of its own: a message would travel in a cookie."""
        status, values = 200, {}
        try:
            user = await self._user(request, pk)
            password = await self._set_password(request, user)
            values = {"user": user, "secret": password, "until": in_utc(not_none(user.password_expires_at))}
        except Problem as problem:
            status, values = problem.status_code, {"error": str(problem.detail)}
        values |= {"title": "Temporary password", "view": self, "back": detail_url(request, "user", pk)}
        return self._admin.templates.TemplateResponse(  # type: ignore[union-attr]
            request, "console/user_password.html", values, status_code=status
        )

    @row_action(
        name="end_logins",
        text="End all logins",
        confirmation="The user is signed out everywhere, from the next request on.",
        submit_btn_text="End them",
        exclude_from_list=True,
    )
    async def end_logins_row_action(self, request: Request, pk: Any) -> None:
        ended = await self._end_logins(request, await self._user(request, pk))
        flash(request, f"Logins ended: {ended}.", "success")

    @row_action(
        name="end_login", text="End this login", custom_response=True, exclude_from_list=True, exclude_from_detail=True
    )
    async def end_login_row_action(self, request: Request, pk: Any) -> Response:
        """For the buttons in the list of a user's logins: a plain form, which names the login as `session`."""
        try:
            await self._end_login(request, await self._user(request, pk))
            flash(request, "The login was ended.", "success")
        except Problem as problem:
            flash(request, str(problem.detail), "error")
        return RedirectResponse(detail_url(request, "user", pk), 303)

    @row_action(
        name="make_superuser",
        text="Make superuser",
        confirmation="A superuser may see and change everything, and use this console.",
        submit_btn_text="Make superuser",
        exclude_from_list=True,
    )
    async def make_superuser_row_action(self, request: Request, pk: Any) -> None:
        await self._rank(request, await self._user(request, pk), is_superuser=True)
        flash(request, "The user is a superuser now.", "success")

    @row_action(
        name="no_superuser",
        text="No superuser any more",
        confirmation="The user loses the rank of a superuser, and is signed out everywhere.",
        submit_btn_text="Take the rank",
        exclude_from_list=True,
    )
    async def no_superuser_row_action(self, request: Request, pk: Any) -> None:
        await self._rank(request, await self._user(request, pk), is_superuser=False)
        flash(request, "The user is no superuser any more.", "success")

    @row_action(
        name="delete",
        text="Delete",
        confirmation=_DELETES,
        icon_class="default_actions.delete",
        submit_btn_text="Delete",
        submit_btn_class="action.modal_confirm_button_delete",
        action_btn_class="action.row_item_delete",
        exclude_from_list=True,
    )
    async def row_action_3_delete(self, request: Request, pk: Any) -> None:
        await self._delete(request, await self._user(request, pk))
        flash(request, "The user was deleted.", "success")

    @row_action(
        name="restore",
        text="Restore",
        confirmation="The user can sign in again, with the password and the rank of before, and without a tier.",
        submit_btn_text="Restore",
    )
    async def restore_row_action(self, request: Request, pk: Any) -> None:
        await self._restore(request, await self._user(request, pk))
        flash(request, "The user was restored.", "success")

    # ---- Several users ----

    @action(
        name="move_to_tier",
        text="Move to tier",
        confirmation="Which tier are these users to have? Deleted ones have none.",
        form=_tier_form,
        submit_btn_text="Move",
    )
    async def move_to_tier_action(self, request: Request, selection: ActionSelection) -> None:
        tier_id = await self._chosen_tier(request)
        moved = await self._each(selection, lambda user: self._move(request, user, tier_id))
        flash(request, f"Users moved: {moved}.", "success")

    @action(
        name="end_logins",
        text="End all logins",
        confirmation="These users are signed out everywhere, from the next request on.",
        submit_btn_text="End them",
    )
    async def end_logins_action(self, request: Request, selection: ActionSelection) -> None:
        users = await self._each(selection, lambda user: self._end_logins(request, user))
        flash(request, f"Users signed out: {users}.", "success")

    @action(
        name="delete",
        text="Delete",
        confirmation=_DELETES,
        submit_btn_text="Delete",
        submit_btn_class="action.modal_confirm_button_delete",
    )
    async def delete_action(self, request: Request, selection: ActionSelection) -> None:
        deleted = await self._each(selection, lambda user: self._delete(request, user))
        flash(request, f"Users deleted: {deleted}.", "success")

    async def _each(self, selection: ActionSelection, do: Callable[[User], Awaitable[object]]) -> int:
        """Does it to those who are not deleted, in the order of their ids: two who do so do not wait for each other."""
        users = sorted((user for user in await selection.rows() if not user.is_deleted), key=lambda user: user.id)
        for user in users:
            await do(user)
        return len(users)
