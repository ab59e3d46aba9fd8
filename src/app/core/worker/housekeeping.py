"""Jobs that nobody asks for: they run by the clock, once for all workers."""

from datetime import timedelta
from typing import Any

import structlog

from app.core.config import ConsoleSettings, get_settings
from app.core.db.database import transaction
from app.core.db.models import utc_now
from app.crud.crud_console_action import crud_console_actions
from app.crud.crud_job import crud_jobs
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_login_throttle import crud_login_throttle
from app.crud.crud_mail_token import crud_mail_tokens
from app.crud.crud_security_event import crud_security_events
from app.crud.crud_token_blacklist import crud_token_blacklist

PART = 10_000  # jobs that are removed at once

log = structlog.stdlib.get_logger("slipway.worker")


async def purge_expired(ctx: dict[Any, Any]) -> dict[str, int]:
    """Removes what has expired and is of no use any more. Says how many rows of what."""
    settings = get_settings()
    days = settings.SECURITY_EVENT_DAYS
    async with transaction() as db:
        removed = {
            "tokens": await crud_token_blacklist.purge(db),
            # An ended login is remembered for a while: it says where its user has signed in from.
            "logins": await crud_login_sessions.purge(db, utc_now() - timedelta(days=days)),
            "throttles": await crud_login_throttle.purge(db),
            "mail_tokens": await crud_mail_tokens.purge(db),
            "events": await crud_security_events.purge(db, utc_now() - timedelta(days=days)),
        }
        if settings.inherits(ConsoleSettings):
            kept = timedelta(days=settings.CONSOLE_AUDIT_DAYS)
            removed["console_actions"] = await crud_console_actions.purge(db, utc_now() - kept)
    log.info("purged", **removed)
    return removed


async def purge_jobs(ctx: dict[Any, Any]) -> int:
    """Removes jobs that have ended long enough ago. Says how many."""
    settings = get_settings()
    removed, part = 0, PART
    while part == PART:  # In parts, each a transaction: there can be millions.
        async with transaction() as db:
            part = await crud_jobs.purge(
                db,
                ended_before=utc_now() - timedelta(days=settings.JOB_KEEP_DAYS),
                died_before=utc_now() - timedelta(days=settings.DEAD_JOB_KEEP_DAYS),
                most=PART,
            )
        removed += part
    log.info("purged", jobs=removed)
    return removed
