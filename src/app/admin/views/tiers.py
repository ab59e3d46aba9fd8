"""Tiers."""

from typing import Any, ClassVar

from sqlalchemy import func
from sqlmodel import col, select
from starlette.requests import Request
from starlette_admin.fields import IntegerField, StringField
from starlette_admin.types import RequestAction

from app.admin.views.base import app_of, session_of
from app.admin.views.fields import UtcField, list_url
from app.admin.views.rate_limit_forms import in_words
from app.admin.views.rate_limits import rate_limit_url
from app.admin.views.search import SearchedView
from app.core.config import RedisCacheSettings
from app.core.exceptions.http_exceptions import Problem
from app.core.utils.cache import invalidate_on_commit
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import TierNameTaken, crud_tiers
from app.models.tier import Tier, TierCreate, TierUpdate
from app.models.user import User


class TierView(SearchedView[Tier]):
    """Tiers: what users may use, by way of the tiers' rate limits."""

    noun = "tier"
    create_schema = TierCreate
    update_schema = TierUpdate
    fields_of_problems: ClassVar[dict[type[Problem], str]] = {TierNameTaken: "name"}
    fields = (
        IntegerField("id", label="Id", read_only=True, exclude_from_create=True, exclude_from_edit=True),
        StringField("name", required=True, maxlength=50),
        UtcField("created_at", label="Created"),
    )
    search_columns = (Tier.name,)
    searchable_fields = ("name", "created_at")
    sortable_fields = ("id", "name", "created_at")
    fields_default_sort = ("name",)
    row_actions = ("view", "edit", "delete")
    detail_template = "console/tier_detail.html"

    def __init__(self) -> None:
        super().__init__(Tier, icon="fa-solid fa-layer-group", menu_label="Tiers", display_name="tier", key="tier")

    async def repr(self, obj: Any, request: Request) -> str:
        return str(obj.name)

    async def serialize(
        self, obj: Any, request: Request, include_relationships: bool = True, include_select2: bool = False
    ) -> dict[str, Any]:
        shown = await super().serialize(obj, request, include_relationships, include_select2)
        if request.state.action == RequestAction.DETAIL:
            db, mine = session_of(request), f"tier_id__eq={obj.id}"
            users = select(func.count()).select_from(User).where(col(User.tier_id) == obj.id)
            rules = await crud_rate_limits.list_of_tier(db, obj.id)
            shown["_users"] = ((await db.exec(users)).one(), list_url(request, "user", mine))
            shown["_rules"] = [(rule, in_words(rule), rate_limit_url(request, rule.id)) for rule in rules]
        return shown

    async def make(self, request: Request, values: TierCreate) -> Tier:
        self._drop_cached(request)
        return await crud_tiers.create(session_of(request), Tier.model_validate(values.model_dump()))

    async def change(self, request: Request, row: Tier, values: TierUpdate) -> Tier:
        self._drop_cached(request, row.name)
        return await crud_tiers.update(session_of(request), row, values)

    async def remove(self, request: Request, row: Tier) -> None:
        self._drop_cached(request, row.name)
        await crud_tiers.delete(session_of(request), row)

    def _drop_cached(self, request: Request, name: str | None = None) -> None:
        """What the API's routes drop when they change a tier (`app.api.v1.tiers`)."""
        if app_of(request).state.settings.inherits(RedisCacheSettings):
            db = session_of(request)
            invalidate_on_commit(db, "tiers", "all")
            if name is not None:
                invalidate_on_commit(db, "tier", name)
                invalidate_on_commit(db, "tier_rate_limits", name)
