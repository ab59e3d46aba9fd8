"""Rate limits of tiers."""

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import ColumnElement
from sqlmodel import col, select
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette_admin.fields import EnumField, IntegerField, StringField, TextAreaField

from app.admin.views.base import app_of, session_of
from app.admin.views.fields import TierField, UtcField, detail_url, load_tiers
from app.admin.views.rate_limit_forms import RateLimitChangeForm, RateLimitForm, RateLimitMove, per, text_of, windows_in
from app.admin.views.search import Contains, Is, SearchedView, StartsWith
from app.api.dependencies import UnknownPath, require_known_path
from app.core.config import RedisCacheSettings
from app.core.exceptions.http_exceptions import Problem
from app.core.utils.cache import invalidate_on_commit
from app.core.utils.rate_limit import EVERY_PATH, limited_paths
from app.crud.crud_rate_limit import RateLimitPathTaken, crud_rate_limits
from app.crud.crud_tier import TierNotFound
from app.models.rate_limit import RateLimit, RateLimitCreate
from app.models.tier import Tier


def rate_limit_url(request: Request, rate_limit_id: int) -> str:
    """The address of a rule's page."""
    return detail_url(request, "rate-limit", rate_limit_id)


class PathField(EnumField):
    """A rule's path: a template of the app, a method and a template, `*`, or the present one if no route has it."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(
            name,
            choices_loader=self._choices,
            select2=False,
            list_template="console/rate_limit_path.html",
            detail_template="console/rate_limit_path.html",
            filters=[Contains, StartsWith, Is],
            **kwargs,
        )

    async def parse_obj(self, request: Request, obj: Any) -> Any:
        request.state.path_of_now = obj.path
        return await super().parse_obj(request, obj)

    async def serialize_value(self, request: Request, value: Any) -> Any:
        if request.state.action.is_form():
            return value
        return {"path": value, "known": value in _paths(request)}

    def _choices(self, request: Request) -> list[tuple[str, str]]:
        paths = _paths(request)
        now = getattr(request.state, "path_of_now", None) if request.state.action.is_form() else None
        gone = [(now, f"{now} (no route has it any more)")] if now is not None and now not in paths else []
        return [*gone, *((path, "* (every path without a rule of its own)" if path == "*" else path) for path in paths)]


def _paths(request: Request) -> list[str]:
    if not hasattr(request.state, "rule_paths"):
        request.state.rule_paths = [EVERY_PATH, *limited_paths(app_of(request))]
    paths: list[str] = request.state.rule_paths
    return paths


class WindowsField(TextAreaField):
    """Further windows, one in a line."""

    async def parse_obj(self, request: Request, obj: Any) -> str:
        if request.state.action.is_form():
            return text_of(obj.additional_windows)
        return ", ".join(per(window["limit"], window["period"]) for window in obj.additional_windows)

    async def parse_form_data(self, request: Request, form_data: FormData) -> str:
        lines = (line.strip() for line in str(form_data.get(self.id) or "").splitlines())
        return "\n".join(line for line in lines if line)


async def _rate(request: Request, rule: RateLimit) -> str:
    return per(rule.limit, rule.period)


class RateLimitView(SearchedView[RateLimit]):
    """How often the users of a tier may call a route. A change is in force within two seconds in all processes."""

    noun = "rate_limit"
    create_schema = RateLimitForm
    update_schema = RateLimitChangeForm
    fields_of_problems: ClassVar[dict[type[Problem], str]] = {
        UnknownPath: "path",
        RateLimitPathTaken: "path",
        TierNotFound: "tier_id",
    }
    fields = (
        IntegerField("id", label="Id", read_only=True, exclude_from_create=True, exclude_from_edit=True),
        TierField(required=True),
        StringField("name", required=True, maxlength=50),
        PathField("path", required=True),
        StringField(
            "rate", label="Limit", read_only=True, exclude_from_create=True, exclude_from_edit=True, getter=_rate
        ),
        IntegerField(
            "limit", required=True, min=1, help_text="Requests.", exclude_from_list=True, exclude_from_detail=True
        ),
        IntegerField(
            "period", required=True, min=1, help_text="Seconds.", exclude_from_list=True, exclude_from_detail=True
        ),
        WindowsField(
            "additional_windows",
            label="Further windows",
            help_text="One in a line, as 1000 per 86400, which is requests per seconds. All have to have room.",
            list_template="fields/list/text.html",
            detail_template="fields/detail/text.html",
        ),
        UtcField("created_at", label="Created", exclude_from_list=True),
        UtcField("updated_at", label="Changed", exclude_from_list=True),
    )
    search_columns = (RateLimit.name, RateLimit.path)
    searchable_fields = ("tier_id", "name", "path")
    sortable_fields = ("id", "name", "path")
    fields_default_sort = ("id",)
    row_actions = ("view", "edit", "delete")

    def __init__(self) -> None:
        super().__init__(
            RateLimit,
            icon="fa-solid fa-gauge",
            menu_label="Rate limits",
            display_name="rate limit",
            key="rate-limit",
        )

    async def repr(self, obj: Any, request: Request) -> str:
        return str(obj.name)

    async def listed(self, request: Request, rows: Sequence[RateLimit]) -> None:
        await load_tiers(request)

    def get_search_query(self, request: Request, term: str) -> ColumnElement[bool]:
        of_that_tier = select(col(Tier.id)).where(col(Tier.name).contains(term.replace("\x00", ""), autoescape=True))
        return super().get_search_query(request, term) | col(RateLimit.tier_id).in_(of_that_tier)

    def current(self, row: RateLimit, name: str) -> Any:
        return text_of(row.additional_windows) if name == "additional_windows" else getattr(row, name)

    async def make(self, request: Request, values: RateLimitForm) -> RateLimit:
        require_known_path(limited_paths(app_of(request)), values.path)
        await self._drop_cached(request, values.tier_id)
        given = values.model_dump(exclude={"tier_id"}) | {"additional_windows": windows_in(values.additional_windows)}
        rule = RateLimitCreate.model_validate(given).model_dump() | {"tier_id": values.tier_id}
        return await crud_rate_limits.create(session_of(request), RateLimit.model_validate(rule))

    async def change(self, request: Request, row: RateLimit, values: RateLimitChangeForm) -> RateLimit:
        given = values.model_dump(exclude_unset=True)
        if "path" in given:
            require_known_path(limited_paths(app_of(request)), values.path)
        if "additional_windows" in given:
            given["additional_windows"] = windows_in(values.additional_windows)
        await self._drop_cached(request, row.tier_id, given.get("tier_id", row.tier_id))
        return await crud_rate_limits.update(session_of(request), row, RateLimitMove.model_validate(given))

    async def remove(self, request: Request, row: RateLimit) -> None:
        await self._drop_cached(request, row.tier_id)
        await crud_rate_limits.delete(session_of(request), row)

    def shown(self, row: RateLimit) -> dict[str, Any]:
        names = ("tier_id", "name", "path", "limit", "period", "additional_windows")
        return {name: self.current(row, name) for name in names}

    async def _drop_cached(self, request: Request, *tier_ids: int) -> None:
        """What the API's routes drop when they change a rule (`app.api.v1.rate_limits`)."""
        names = await load_tiers(request)
        if app_of(request).state.settings.inherits(RedisCacheSettings):
            for name in {names[tier_id] for tier_id in tier_ids if tier_id in names}:
                invalidate_on_commit(session_of(request), "tier_rate_limits", name)
