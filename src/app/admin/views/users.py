"""Users."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field as PydanticField
from starlette.requests import Request
from starlette_admin.fields import IntegerField, StringField
from starlette_admin.types import RequestAction

from app.admin.views.base import app_of, client_of, operator_of, session_of
from app.admin.views.fields import FlagField, TierField, UtcField, list_url, load_tiers
from app.admin.views.user_actions import UserActions
from app.api.accounts import move_to_tier, update_profile
from app.core.exceptions.http_exceptions import Problem
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_tier import TierNotFound
from app.crud.crud_users import EmailTaken, UsernameTaken
from app.crud.helper import Paging
from app.models.user import User, UserUpdate

MOST_LOGINS = 50  # that the page of a user shows


class UserForm(UserUpdate):
    """What can be edited: what users can change of themselves, and their tier."""

    tier_id: int | None = PydanticField(default=None)


def _or_nothing(request: Request, raw: Any) -> Any:
    return raw or None


class UserView(UserActions):
    """Users. The hash of a password is none of its fields: it is neither shown nor taken, searched or sorted by."""

    noun = "user"
    update_schema = UserForm
    fields_of_problems: ClassVar[dict[type[Problem], str]] = {
        UsernameTaken: "username",
        EmailTaken: "email",
        TierNotFound: "tier_id",
    }
    fields = (
        IntegerField("id", label="Id", read_only=True, exclude_from_edit=True),
        StringField("uuid", label="UUID", read_only=True, exclude_from_list=True, exclude_from_edit=True),
        StringField("username", label="User name", required=True, maxlength=20),
        StringField("name", required=True, maxlength=30),
        StringField("email", label="E-mail", required=True, maxlength=254, input_type="email"),
        StringField(
            "profile_image_url",
            label="Profile image",
            help_text="An address that begins with https:// or http://.",
            maxlength=500,
            exclude_from_list=True,
            parser={RequestAction.EDIT: _or_nothing},
        ),
        TierField(null_template="console/nothing.html"),
        FlagField("is_superuser", label="Superuser"),
        FlagField("is_deleted", label="Deleted", extra={"warning": True}),
        UtcField("deleted_at", label="Deleted at", exclude_from_list=True),
        UtcField("email_verified_at", label="E-mail verified at", exclude_from_list=True),
        UtcField("password_changed_at", label="Password changed at", exclude_from_list=True),
        UtcField("password_expires_at", label="Temporary password until", exclude_from_list=True),
        UtcField("created_at", label="Created"),
        UtcField("updated_at", label="Changed", exclude_from_list=True),
    )
    search_columns = (User.username, User.name, User.email)
    searchable_fields = ("username", "name", "email", "tier_id", "is_superuser", "is_deleted", "created_at")
    sortable_fields = ("id", "username", "name", "email", "created_at")
    fields_default_sort = (("id", True),)
    detail_template = "console/user_detail.html"

    def __init__(self) -> None:
        super().__init__(User, icon="fa-solid fa-users", menu_label="Users", display_name="user", key="user")

    async def repr(self, obj: Any, request: Request) -> str:
        return str(obj.username)

    async def listed(self, request: Request, rows: Sequence[User]) -> None:
        await load_tiers(request)

    async def serialize(
        self, obj: Any, request: Request, include_relationships: bool = True, include_select2: bool = False
    ) -> dict[str, Any]:
        shown = await super().serialize(obj, request, include_relationships, include_select2)
        if request.state.action == RequestAction.DETAIL:
            page = await crud_login_sessions.page_of_user(session_of(request), Paging(1, MOST_LOGINS), obj.id)
            own = operator_of(request).session.id
            shown |= {"_logins": page.data, "_login_count": page.total_count, "_own": own}
            shown["_links"] = self._links(request, obj)
        return shown

    async def change(self, request: Request, row: User, values: UserForm) -> User:
        sent = values.model_dump(exclude_unset=True)
        state, client, actor = app_of(request).state, await client_of(request), operator_of(request).user
        settings, storage = state.settings, getattr(state, "storage", None)
        if profile := {name: value for name, value in sent.items() if name != "tier_id"}:
            changed = UserUpdate.model_validate(profile)
            row = await update_profile(session_of(request), row, changed, settings, client, actor, storage)
        if "tier_id" in sent:
            row = await move_to_tier(session_of(request), row, sent["tier_id"], settings, client, actor)
        return row

    def _links(self, request: Request, user: User) -> list[tuple[str, str]]:
        links = [
            ("security-event", "Security events", f"user_id__eq={user.id}"),
            ("console-action", "Audit entries about this user", f'target__eq="{self.target(user)}"'),
            ("console-action", "Audit entries by this user", f"actor_id__eq={user.id}"),
            ("job", "Jobs", f"owner_id__eq={user.id}"),
        ]
        there = {view.key for view in self._admin._model_views} if self._admin is not None else set()
        return [(label, list_url(request, key, condition)) for key, label, condition in links if key in there]
