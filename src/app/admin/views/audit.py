"""The audit trail: what was done in this console, to read."""

import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette_admin.fields import IntegerField, StringField
from starlette_admin.types import RequestAction

from app.admin.views.fields import UserField, UtcField, detail_url, load_usernames
from app.admin.views.search import SearchedView
from app.models.console_action import ConsoleAction

_ROW: Final = re.compile(r"(user|tier|rate_limit) ([0-9]{1,10})", re.ASCII)


class TargetField(StringField):
    """To what it was done, with a link where that is a row with a page."""

    async def serialize_value(self, request: Request, value: Any) -> dict[str, str | None]:
        row = _ROW.fullmatch(value)
        url = detail_url(request, row[1].replace("_", "-"), row[2]) if row is not None else None
        return {"text": value, "url": url}


async def _changed(request: Request, row: ConsoleAction) -> str:
    return ", ".join(dict.fromkeys([*row.before, *row.after]))


class AuditView(SearchedView[ConsoleAction]):
    """Who did what to what, and how it was before and after: the newest first."""

    noun = "audit entry"
    fields = (
        IntegerField("id", label="Id", read_only=True),
        UtcField("created_at", label="Time"),
        UserField("actor_id", label="Operator"),
        StringField("actor", label="User name of that day", exclude_from_list=True),
        StringField("action"),
        TargetField("target", list_template="console/link.html", detail_template="console/link.html"),
        StringField("changed", getter=_changed, exclude_from_detail=True),
        StringField("address"),
        StringField("user_agent", label="User agent", exclude_from_list=True),
        StringField("request_id", label="Request", exclude_from_list=True),
    )
    search_columns = (
        ConsoleAction.actor,
        ConsoleAction.action,
        ConsoleAction.target,
        ConsoleAction.address,
        ConsoleAction.request_id,
    )
    searchable_fields = ("created_at", "actor_id", "action", "target", "address")
    sortable_fields = ("id", "created_at")
    fields_default_sort = (("id", True),)
    detail_template = "console/audit_detail.html"

    def __init__(self) -> None:
        super().__init__(
            ConsoleAction,
            icon="fa-solid fa-clipboard-list",
            menu_label="Audit trail",
            display_name="audit entry",
            key="console-action",
        )

    async def listed(self, request: Request, rows: Sequence[ConsoleAction]) -> None:
        await load_usernames(request, [entry.actor_id for entry in rows])

    async def find_by_pk(self, request: Request, pk: Any) -> Any:
        entry: ConsoleAction | None = await super().find_by_pk(request, pk)
        if entry is not None:
            await load_usernames(request, [entry.actor_id])
        return entry

    async def serialize(
        self, obj: Any, request: Request, include_relationships: bool = True, include_select2: bool = False
    ) -> dict[str, Any]:
        shown = await super().serialize(obj, request, include_relationships, include_select2)
        if request.state.action == RequestAction.DETAIL:
            names = dict.fromkeys([*obj.before, *obj.after])
            shown["_changes"] = [(name, obj.before.get(name), obj.after.get(name)) for name in names]
        return shown
