"""Fields that several of the console's pages have, and what they need of other tables: one query for a whole page."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlmodel import col, select
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette_admin.fields import BooleanField, DateTimeField, EnumField, IntegerField

from app.admin.views.base import session_of
from app.admin.views.search import IdIs, NumberIs, UserNamed
from app.models.tier import Tier
from app.models.user import User


class UtcField(DateTimeField):
    """A time that is only shown."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, read_only=True, exclude_from_create=True, exclude_from_edit=True, **kwargs)

    async def serialize_value(self, request: Request, value: datetime) -> str:
        return in_utc(value)


def in_utc(value: datetime) -> str:
    """A time as the console shows it."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


class FlagField(BooleanField):
    """Yes or no, in words, and only shown."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        templates = {"list_template": "console/flag.html", "detail_template": "console/flag.html"}
        super().__init__(name, read_only=True, exclude_from_create=True, exclude_from_edit=True, **templates | kwargs)


async def load_tiers(request: Request) -> dict[int, str]:
    """The names of all tiers by id, in the order of the names; asked for once in a request."""
    if not hasattr(request.state, "tier_names"):
        rows = await session_of(request).exec(select(col(Tier.id), col(Tier.name)).order_by(col(Tier.name)))
        request.state.tier_names = dict(rows.all())
    names: dict[int, str] = request.state.tier_names
    return names


class TierField(EnumField):
    """A tier, chosen by its name. The view's `listed` calls `load_tiers`: filters are shown with them, too."""

    def __init__(self, name: str = "tier_id", **kwargs: Any) -> None:
        super().__init__(
            name,
            label="Tier",
            choices_loader=lambda request: list(request.state.tier_names.items()),
            coerce=_number,
            select2=False,
            filters=[IdIs],
            **kwargs,
        )

    def _get_label(self, value: Any, request: Request) -> str:
        names: dict[int, str] = request.state.tier_names
        return names.get(value, f"tier {value}")  # One that was made since they were asked for.

    async def parse_obj(self, request: Request, obj: Any) -> Any:
        await load_tiers(request)
        return await super().parse_obj(request, obj)

    async def get_create_default(self, request: Request) -> Any:
        await load_tiers(request)
        return await super().get_create_default(request)

    async def parse_form_data(self, request: Request, form_data: FormData) -> Any:
        await load_tiers(request)
        return await super().parse_form_data(request, form_data)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0  # 0 is no tier's.


async def load_usernames(request: Request, ids: Iterable[int | None]) -> None:
    """Asks for what `UserField` shows of these users, all at once."""
    wanted = {user_id for user_id in ids if user_id is not None}
    rows = await session_of(request).exec(select(col(User.id), col(User.username)).where(col(User.id).in_(wanted)))
    request.state.usernames = dict(rows.all())


class UserField(IntegerField):
    """A user's id, shown as the user name they have now with a link. The view calls `load_usernames`."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        templates = {"list_template": "console/link.html", "detail_template": "console/link.html"}
        super().__init__(name, read_only=True, filters=[NumberIs, UserNamed], **templates | kwargs)

    async def serialize_value(self, request: Request, value: int) -> dict[str, str | None]:
        username = request.state.usernames.get(value)
        if username is None:
            return {"text": f"{value} (erased)", "url": None}
        return {"text": username, "url": detail_url(request, "user", value)}


def detail_url(request: Request, key: str, pk: object) -> str:
    """The address of a row's page."""
    return str(request.url_for("admin:detail", key=key).include_query_params(pk=pk))


def list_url(request: Request, key: str, condition: str) -> str:
    """The address of a list of which a filter shows a part, such as `user_id__eq=5`."""
    return str(request.url_for("admin:list", key=key).include_query_params(filter=condition))
