"""Security events, for superusers."""

from fastapi import APIRouter, Depends

from app.api.dependencies import CurrentSuperuser, EventFilter, PagingDep, ReadingSessionDep, never_cached
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.schemas import Page
from app.crud.crud_security_event import crud_security_events
from app.models.security_event import SecurityEvent, SecurityEventRead

router = APIRouter(tags=["security events"], dependencies=[Depends(never_cached)])


@router.get("/security_events", response_model=Page[SecurityEventRead], responses=problems(Unauthorized, Forbidden))
async def read_security_events(
    _: CurrentSuperuser, wanted: EventFilter, paging: PagingDep, db: ReadingSessionDep
) -> Page[SecurityEvent]:
    """List security events, the newest first, possibly of one kind or about one user only. Superusers only."""
    return await crud_security_events.page_of_events(db, paging, wanted.kind, wanted.user_id)
