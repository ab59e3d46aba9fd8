"""What has expired is removed by the clock, and nothing else is."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from app.core.config import ConsoleSettings, Settings, get_settings
from app.core.db.models import utc_now
from app.core.utils.queue import Job, JobState
from app.core.worker import housekeeping
from app.core.worker.housekeeping import purge_expired, purge_jobs
from app.core.worker.settings import WorkerSettings
from app.crud.crud_login_throttle import FORGOTTEN_AFTER
from app.models.console_action import ConsoleAction
from app.models.login_session import LoginSession
from app.models.login_throttle import LoginThrottle
from app.models.mail_token import MailPurpose, MailToken
from app.models.security_event import EventKind, SecurityEvent
from app.models.token_blacklist import TokenBlacklist
from app.models.user import User
from tests.helper import all_rows, counted_statements, create_user

pytestmark = pytest.mark.anyio

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def rows_of_age(user: User, settings: Settings, more: timedelta, name: str) -> list[SQLModel]:
    """One row of each table, by so much older than the oldest that is kept."""
    now, kept = utc_now() - more, timedelta(days=settings.SECURITY_EVENT_DAYS)
    done_at = now - timedelta(days=settings.CONSOLE_AUDIT_DAYS)
    mail: dict[str, Any] = {"user_id": user.id, "email": user.email, "created_at": now}
    return [
        TokenBlacklist(token=name, expires_at=now),
        LoginSession(user_id=user.id, expires_at=now - kept),
        LoginThrottle(key=name, failures=1, last_failure_at=now - FORGOTTEN_AFTER),
        MailToken(purpose=MailPurpose.PASSWORD_RESET, token_hash=name, expires_at=now, **mail),
        SecurityEvent(kind=EventKind.LOGIN, user_id=user.id, created_at=now - kept),
        ConsoleAction(actor_id=user.id, actor=user.username, action="a", target="b", created_at=done_at),
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

    tables = ("tokens", "logins", "throttles", "mail_tokens", "events", "console_actions")
    assert removed == dict.fromkeys(tables, 2)
    assert [line for line in lines if line["event"] == "purged"] == [
        {"event": "purged", "log_level": "info", **removed}
    ]
    assert await all_rows(db) == kept
    assert set((await purge_expired({})).values()) == {0}


async def test_what_was_done_in_the_console_is_kept_for_days_of_its_own(
    db: AsyncSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await create_user(db)
    for days in (1, 3):
        done_at = utc_now() - days * DAY
        db.add(ConsoleAction(actor_id=user.id, actor="ada", action="a", target=f"{days}", created_at=done_at))
    await db.commit()
    monkeypatch.setenv("CONSOLE_AUDIT_DAYS", "2")
    get_settings.cache_clear()
    assert (await purge_expired({}))["console_actions"] == 1
    assert list(await db.exec(select(ConsoleAction.target))) == ["1"]


async def test_without_the_consoles_settings_nobody_asks_for_its_table(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tuple(group for group in Settings.__bases__ if group is not ConsoleSettings)
    without = type("Settings", groups, {})()
    monkeypatch.setattr(housekeeping, "get_settings", lambda: without)
    with counted_statements() as statements:
        assert "console_actions" not in await purge_expired({})
    assert "console_action" not in " ".join(statements)


async def create_jobs(db: AsyncSession, **ages: tuple[JobState, timedelta | None, datetime | None]) -> None:
    """Committed jobs, by id: their state, how long ago they have ended, and when they expire."""
    for job_id, (state, age, expires_at) in ages.items():
        finished_at = utc_now() - age if age is not None else None
        values: dict[str, Any] = {"queue": "q", "function": "f", "created_at": utc_now() - 999 * DAY}
        db.add(Job(id=job_id, state=state, finished_at=finished_at, expires_at=expires_at, **values))
    await db.commit()


async def jobs_left(db: AsyncSession) -> set[str]:
    return set(await db.exec(select(Job.id)))


async def test_old_jobs_are_removed_and_nothing_else(db: AsyncSession, settings: Settings) -> None:
    kept, dead_kept, past = settings.JOB_KEEP_DAYS * DAY, settings.DEAD_JOB_KEEP_DAYS * DAY, utc_now() - MINUTE
    future = utc_now() + DAY
    await create_jobs(
        db,
        stays_queued=(JobState.QUEUED, None, None),
        stays_running=(JobState.RUNNING, None, None),
        stays_succeeded=(JobState.SUCCEEDED, kept - MINUTE, None),
        stays_cancelled=(JobState.CANCELLED, kept - MINUTE, None),
        stays_dead=(JobState.DEAD, dead_kept - MINUTE, None),
        stays_dead_longer=(JobState.DEAD, kept + MINUTE, None),
        stays_as_it_says=(JobState.SUCCEEDED, dead_kept + DAY, future),
        stays_forever=(JobState.SUCCEEDED, 900 * DAY, None),
        goes_succeeded=(JobState.SUCCEEDED, kept + MINUTE, None),
        goes_cancelled=(JobState.CANCELLED, kept + MINUTE, None),
        goes_dead=(JobState.DEAD, dead_kept + MINUTE, None),
        goes_as_it_says=(JobState.SUCCEEDED, MINUTE, past),
    )
    await (await db.connection()).execute(text("UPDATE job SET expires_at = 'infinity' WHERE id = 'stays_forever'"))
    await db.commit()
    before = await jobs_left(db)

    with capture_logs() as lines:
        assert await purge_jobs({}) == 4

    assert [line for line in lines if line["event"] == "purged"] == [
        {"event": "purged", "log_level": "info", "jobs": 4}
    ]
    assert await jobs_left(db) == {job_id for job_id in before if job_id.startswith("stays")}
    assert await purge_jobs({}) == 0


async def test_it_is_said_for_how_long_jobs_are_kept(db: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_KEEP_DAYS", "40")
    monkeypatch.setenv("DEAD_JOB_KEEP_DAYS", "2")
    get_settings.cache_clear()
    await create_jobs(
        db,
        stays=(JobState.SUCCEEDED, 39 * DAY, None),
        goes=(JobState.SUCCEEDED, 41 * DAY, None),
        dead_stays=(JobState.DEAD, DAY, None),
        dead_goes=(JobState.DEAD, 3 * DAY, None),
    )
    assert await purge_jobs({}) == 2
    assert await jobs_left(db) == {"stays", "dead_stays"}


@pytest.mark.parametrize("number", [5, 6, 7])
async def test_jobs_are_removed_in_parts(db: AsyncSession, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(housekeeping, "PART", 3)
    await create_jobs(db, **{f"job{one}": (JobState.SUCCEEDED, 99 * DAY, None) for one in range(number)})
    with counted_statements() as statements:
        assert await purge_jobs({}) == number
    assert len(statements) == number // 3 + 1
    assert await jobs_left(db) == set()


async def test_they_run_every_hour_on_one_of_all_workers() -> None:
    named = {cron_job.name: cron_job for cron_job in WorkerSettings.cron_jobs}
    for function, minute in ((purge_expired, 17), (purge_jobs, 47)):
        found = named.get(f"cron:{function.__name__}")
        assert found is not None, f"put `cron({function.__name__}, minute={minute})` into WorkerSettings.cron_jobs"
        assert (found.coroutine, found.hour, found.minute, found.second) == (function, None, minute, 0)
        assert found.unique
