"""One of everything that the console shows, with script in whatever is text."""

from datetime import timedelta
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.utils.queue import Job, JobState
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_users import crud_users
from app.models.console_action import ConsoleAction
from app.models.rate_limit import RateLimit
from app.models.security_event import EventKind, SecurityEvent
from tests.helper import create_tier, create_user

HOSTILE = '"><script>fail()</script>'
LONG = "'\"><img src=x onerror=fail()><script>fail()</script>{{7*7}}${7*7}<!--]]>javascript:fail() " * 3


async def create_world(db: AsyncSession) -> None:
    """Commits users (one of them deleted), tiers, rules, jobs in all states, security events and audit entries."""
    await create_tier(db, "free")
    hostile = await create_tier(db, HOSTILE)
    await crud_rate_limits.create(db, RateLimit(tier_id=hostile.id, name=HOSTILE, path="*", limit=1000, period=60))
    gone = "/api/v1/gone/<script>fail()</script>"  # a path that no route has any more
    await crud_rate_limits.create(
        db,
        RateLimit(
            tier_id=hostile.id, name="r", path=gone, limit=5, period=1, additional_windows=[{"limit": 9, "period": 60}]
        ),
    )
    for number in range(30):
        user = await create_user(db, username=f"person{number}", name=HOSTILE, tier_id=hostile.id)
    user.profile_image_url = "https://images.example/'onerror=fail()"
    deleted = await create_user(db, username="deleted", name="<b>Deleted</b>")
    await crud_users.soft_delete(db, deleted)
    for job in jobs(owner_id=user.id):
        db.add(job)
    await _create_events(db, user.id)
    await db.commit()


def jobs(owner_id: int | None) -> list[Job]:
    """A job in each state, not committed."""
    now = utc_now()
    facts: dict[str, Any] = {"started_at": now - timedelta(minutes=2), "worker": f"{HOSTILE}:1:2", "attempt": 1}
    ended = facts | {"finished_at": now - timedelta(minutes=1)}
    progress = {"done": 3, "total": 10, "message": LONG}
    rows: dict[str, dict[str, Any]] = {
        "deferred": {"run_after": now + timedelta(hours=1)},
        "queued": {},
        "running": {**facts, "state": JobState.RUNNING, "lease_until": now + timedelta(hours=1), "progress": progress},
        "succeeded": {**ended, "state": JobState.SUCCEEDED, "result": LONG},
        "dead": {**ended, "state": JobState.DEAD, "error": LONG},
        "cancelled": {**ended, "state": JobState.CANCELLED, "error": "cancelled"},
    }
    return [
        Job(
            id=f"job-{name}",
            queue="nobody's",  # no worker takes them
            function=HOSTILE if name == "dead" else "sample_background_task",
            args=[LONG],
            keywords={HOSTILE: LONG},
            owner_id=owner_id,
            created_at=now - timedelta(minutes=3),
            **{"run_after": now - timedelta(minutes=3), "sent_at": now} | values,
        )
        for name, values in rows.items()
    ]


async def _create_events(db: AsyncSession, user_id: int) -> None:
    for kind in EventKind:
        event = SecurityEvent(kind=kind, user_id=user_id, address="203.0.113.7", user_agent=LONG[:255])
        event.details = {HOSTILE: LONG}
        db.add(event)
    for number in range(30):
        db.add(
            ConsoleAction(
                actor_id=user_id,
                actor="<b>",
                action="user.edit",
                target=f"user {number} {HOSTILE}",
                before={"name": LONG},
                after={HOSTILE: LONG},
                address="203.0.113.7",
                user_agent=LONG[:255],
            )
        )
