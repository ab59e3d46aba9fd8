"""Jobs that nobody asks for: they run by the clock, once for all workers."""

from datetime import timedelta
from typing import Any

import structlog

from app.core.config import get_settings
from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_login_throttle import crud_login_throttle
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_security_event import crud_security_events
from app.crud.crud_token_blacklist import crud_token_blacklist

log = structlog.stdlib.get_logger("slipway.worker")


async def purge_expired(ctx: dict[Any, Any]) -> dict[str, int]:
    """Removes what has expired and is of no use any more. Says how many rows of what."""
    days = get_settings().SECURITY_EVENT_DAYS
    async with transaction() as db:
        removed = {
            "tokens": await crud_token_blacklist.purge(db),
            # An ended login is remembered for a while: it says where its user has signed in from.
            "logins": await crud_login_sessions.purge(db, utc_now() - timedelta(days=days)),
            "throttles": await crud_login_throttle.purge(db),
            "mail_tokens": await crud_mail_tokens.purge(db),
            "events": await crud_security_events.purge(db, utc_now() - timedelta(days=days)),
        }
    log.info("purged", **removed)
    return removed
