"""What has expired is removed by the clock, and nothing else is."""

from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.worker.housekeeping import purge_expired
from app.core.worker.settings import WorkerSettings
from app.crud.crud_login_throttle import FORGOTTEN_AFTER
from app.models.login_session import LoginSession
from app.models.login_throttle import LoginThrottle
from app.models.mail_token import MailPurpose, MailToken
from app.models.security_event import EventKind, SecurityEvent
from app.models.token_blacklist import TokenBlacklist
from app.models.user import User
from tests.helper import all_rows, create_user

pytestmark = pytest.mark.anyio

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def rows_of_age(user: User, settings: Settings, more: timedelta, name: str) -> list[SQLModel]:
    """One row of each table, by so much older than the oldest that is kept."""
    now, kept = utc_now() - more, timedelta(days=settings.SECURITY_EVENT_DAYS)
    mail: dict[str, Any] = {"user_id": user.id, "email": user.email, "created_at": now}
    return [
        TokenBlacklist(token=name, expires_at=now),
        LoginSession(user_id=user.id, expires_at=now - kept),
        LoginThrottle(key=name, failures=1, last_failure_at=now - FORGOTTEN_AFTER),
        MailToken(purpose=MailPurpose.PASSWORD_RESET, token_hash=name, expires_at=now, **mail),
        SecurityEvent(kind=EventKind.LOGIN, user_id=user.id, created_at=now - kept),
    ]


async def test_what_has_expired_is_removed_and_nothing_else(db: AsyncSession, settings: Settings) -> None:
    user = await create_user(db)
    db.add_all(rows_of_age(user, settings, -MINUTE, "just good"))
    ended = LoginSession(user_id=user.id, expires_at=utc_now() + DAY, revoked_at=utc_now())
    locked = LoginThrottle(key="locked", failures=9, last_failure_at=utc_now(), locked_until=utc_now() + MINUTE)
    db.add_all([ended, locked])
    await db.commit()
    kept = await all_rows(db)
    db.add_all(rows_of_age(user, settings, MINUTE, "just expired"))
    db.add_all(rows_of_age(user, settings, 400 * DAY, "long expired"))
    await db.commit()

    with capture_logs() as lines:
        removed = await purge_expired({})

    assert removed == {"tokens": 2, "logins": 2, "throttles": 2, "mail_tokens": 2, "events": 2}
    assert [line for line in lines if line["event"] == "purged"] == [
        {"event": "purged", "log_level": "info", **removed}
    ]
    assert await all_rows(db) == kept
    assert set((await purge_expired({})).values()) == {0}


async def test_it_runs_every_hour_on_one_of_all_workers() -> None:
    (job,) = WorkerSettings.cron_jobs
    assert job.coroutine is purge_expired
    assert job.unique
    assert (job.hour, job.minute, job.second) == (None, 17, 0)
