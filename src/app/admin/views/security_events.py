"""Security events, to read."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import col, select
from starlette.requests import Request
from starlette_admin.fields import BaseField, EnumField, IntegerField, StringField

from app.admin.views.fields import UserField, UtcField, load_usernames
from app.admin.views.search import SearchedView
from app.models.security_event import EventKind, SecurityEvent
from app.models.user import User


class KindField(EnumField):
    """What happened. Rows can be of a kind that the app of now does not know."""

    def _get_label(self, value: Any, request: Request) -> str:
        return str(value)


class SecurityEventView(SearchedView[SecurityEvent]):
    """Who signed in from where, what was refused, whose rights changed: the newest first."""

    noun = "security event"
    fields = (
        IntegerField("id", label="Id", read_only=True),
        UtcField("created_at", label="Time"),
        KindField("kind", choices=[(kind.value, kind.value) for kind in EventKind], select2=False),
        UserField("user_id", label="User"),
        UserField("actor_id", label="By"),
        StringField("address"),
        StringField("user_agent", label="User agent", exclude_from_list=True),
        StringField("session_id", label="Login", exclude_from_list=True),
        StringField("request_id", label="Request", exclude_from_list=True),
        BaseField("details", exclude_from_list=True, detail_template="console/facts.html"),
    )
    search_columns = (
        SecurityEvent.kind,
        SecurityEvent.address,
        SecurityEvent.user_agent,
        SecurityEvent.request_id,
    )
    searchable_fields = ("kind", "user_id", "actor_id", "address", "created_at")
    sortable_fields = ("id", "created_at")
    fields_default_sort = (("id", True),)

    def __init__(self) -> None:
        super().__init__(
            SecurityEvent,
            icon="fa-solid fa-shield-halved",
            menu_label="Security events",
            display_name="security event",
            key="security-event",
        )

    def get_search_query(self, request: Request, term: str) -> ColumnElement[bool]:
        of_that_name = select(col(User.id)).where(col(User.username) == term.replace("\x00", ""))
        return super().get_search_query(request, term) | col(SecurityEvent.user_id).in_(of_that_name)

    async def listed(self, request: Request, rows: Sequence[SecurityEvent]) -> None:
        await load_usernames(request, [user for event in rows for user in (event.user_id, event.actor_id)])

    async def find_by_pk(self, request: Request, pk: Any) -> Any:
        event: SecurityEvent | None = await super().find_by_pk(request, pk)
        if event is not None:
            await load_usernames(request, [event.user_id, event.actor_id])
        return event
