"""Security events in the database, and as lines of the log."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import after_commit
from app.core.schemas import Page
from app.crud.crud_base import CRUDBase
from app.crud.helper import Paging
from app.models.security_event import EventKind, SecurityEvent

log = structlog.stdlib.get_logger("slipway.security")


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end, as far as it can be told. Empty for a job or a script."""

    address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


class CRUDSecurityEvent(CRUDBase[SecurityEvent]):
    model = SecurityEvent

    async def record(
        self,
        db: AsyncSession,
        kind: EventKind,
        client: Client,
        *,
        user_id: int | None = None,
        actor_id: int | None = None,
        session_id: UUID | None = None,
        **details: Any,
    ) -> None:
        """Writes a row in this transaction and, once that is committed, a line of the log.

        Args:
            user_id: whom it is about.
            actor_id: who did it, if not the user.
            details: what else there is to say; nothing secret.
        """
        event = SecurityEvent(
            kind=kind,
            user_id=user_id,
            actor_id=actor_id if actor_id != user_id else None,
            session_id=session_id,
            address=client.address,
            user_agent=client.user_agent,
            request_id=client.request_id,
            details=details,
        )
        db.add(event)
        after_commit(db, partial(_log, event))

    async def page_of_events(
        self, db: AsyncSession, paging: Paging, kind: EventKind | None, user_id: int | None
    ) -> Page[SecurityEvent]:
        """One page of events, the newest first, possibly of one kind or about one user only."""
        where: list[ColumnElement[bool]] = []
        if kind is not None:
            where.append(col(SecurityEvent.kind) == kind)
        if user_id is not None:
            where.append(col(SecurityEvent.user_id) == user_id)
        return await self.page(db, paging, *where, order_by=[col(SecurityEvent.id).desc()])

    async def purge(self, db: AsyncSession, before: datetime) -> int:
        """Removes the events before this moment. Says how many."""
        return (await db.exec(delete(SecurityEvent).where(col(SecurityEvent.created_at) < before))).rowcount


async def _log(event: SecurityEvent) -> None:
    facts = event.model_dump(exclude={"created_at", "kind", "details", "request_id"}, exclude_none=True, mode="json")
    log.info("security event", kind=str(event.kind), **facts, **event.details)


crud_security_events = CRUDSecurityEvent()
