"""How long the console's pages take when much is there: `python -m bench.console`, also a part of `make bench`.

100,000 users, jobs, security events and entries of the audit trail; one server process as in production on the first
core, PostgreSQL, Valkey and whoever asks on the last. All pages are asked in turn, several rounds, after one that warms
up. Ends with an error when the median of a page is above 500 ms.

The number of SQL statements of a page is counted by the same app in this process; what the app's own tasks ask
meanwhile is not part of it: it is the smallest of three counts.
"""

import argparse
import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from statistics import median
from typing import Any, Final

import httpx2

from bench.ratios import server, services

import src  # noqa: F401 isort: skip  (makes `app` importable)
from sqlalchemy import Engine, event, text

from app.admin.cookie import cookie_name, create_cookie
from app.core.config import Settings, get_settings
from app.core.db.database import close_database, open_database, transaction
from app.core.db.models import utc_now
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User

LIMIT: Final = 500.0  # milliseconds that the median of no page may pass
MIDDLE: Final = 50_000  # which row the pages below are about
PAGES: Final = (
    "",
    "user/list",
    "user/list?page=4000",
    "user/list?sort=email__desc",
    "user/list?q=person99",
    "user/list?q=nobody%20at%20all",
    "user/detail?pk=50000",
    "user/edit?pk=50000",
    "tier/list",
    "tier/detail?pk=1",
    "tier/create",
    "rate-limit/list",
    "rate-limit/create",
    "limits",
    "job/list",
    "job/list?page=4000",
    "job/list?filter=status__eq%3Ddead",
    "job/list?filter=owner_id__eq%3D50000",
    "job/list?q=job-99",
    "job/list?q=nothing%20like%20it",
    "job/detail?pk=job-50000",
    "workers",
    "cache?prefix=tiers&id=all",
    "security-event/list",
    "security-event/list?page=4000",
    "security-event/list?filter=user_id__eq%3D50000",
    "console-action/list",
    "console-action/list?q=person",
    "console-action/list?page=4000",
)
# Ended within the last days, but for one in a thousand; a hundredth of them within the last hour.
FILL: Final = (
    """
    INSERT INTO tier (name, created_at) SELECT 'tier ' || n, now() FROM generate_series(1, 10) AS n
    """,
    """
    INSERT INTO rate_limit (tier_id, name, path, "limit", period, created_at)
    SELECT id, 'all', '*', 1000, 60, now() FROM tier
    """,
    """
    INSERT INTO "user" (uuid, name, username, email, hashed_password, tier_id, created_at, is_deleted)
    SELECT gen_random_uuid(), 'Person ' || n, 'person' || n, 'person' || n || '@example.com', 'none',
           CASE WHEN n % 50 = 0 THEN NULL ELSE 1 + n % 10 END, now() - n * interval '1 minute', n % 50 = 0
    FROM generate_series(1, :count) AS n
    """,
    """
    INSERT INTO job (id, queue, function, args, keywords, owner_id, state, attempt, created_at, run_after, sent_at,
                     started_at, finished_at, worker, error, result)
    SELECT 'job-' || n, 'arq:queue', 'function_' || n % 20, '["an argument"]', '{}', 1 + n % :count,
           CASE WHEN n % 1000 = 0 THEN 'queued' WHEN n % 50 = 1 THEN 'dead' ELSE 'succeeded' END, 1,
           now() - n * interval '4 seconds', now() - n * interval '4 seconds' +
           CASE WHEN n % 1000 = 0 THEN interval '10 days' ELSE interval '0' END, now(),
           CASE WHEN n % 1000 <> 0 THEN now() - n * interval '4 seconds' + interval '1 second' END,
           CASE WHEN n % 1000 <> 0 THEN now() - n * interval '4 seconds' + interval '2 seconds' END,
           'worker', CASE WHEN n % 50 = 1 THEN 'RuntimeError: it could not be done' END, '"done"'
    FROM generate_series(1, :count) AS n
    """,
    """
    INSERT INTO security_event (created_at, kind, user_id, address, user_agent, details)
    SELECT now() - n * interval '10 seconds', (ARRAY['login', 'logout', 'login_failed'])[1 + n % 3], 1 + n % :count,
           '203.0.113.' || n % 250, 'Mozilla/5.0', '{}'
    FROM generate_series(1, :count) AS n
    """,
    """
    INSERT INTO console_action (created_at, actor_id, actor, action, target, before, after, address)
    SELECT now() - n * interval '1 minute', 1 + n % 7, 'person' || 1 + n % 7, 'user.edit', 'user ' || n,
           '{"name": "a"}', '{"name": "b"}', '203.0.113.7'
    FROM generate_series(1, :count) AS n
    """,
)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000, help="of users, jobs, events and audit entries")
    arguments.add_argument("--rounds", type=int, default=10)
    given = arguments.parse_args()
    if given.rows < MIDDLE:
        arguments.error(f"--rows: {MIDDLE:,} or more, since the one in the middle is asked for")
    with services():
        settings = get_settings()
        cookie = asyncio.run(fill(settings, given.rows))
        with server("src.app.main:app") as address:
            taken = measure(address, cookie, given.rounds)
        statements = asyncio.run(count_statements(cookie))
    print(f"{'page of the console':48} {'median':>9} {'longest':>10} {'SQL':>5}")
    for path, times in taken.items():
        print(f"{'/admin/' + path:48} {median(times):6.0f} ms {max(times):7.0f} ms {statements[path]:5}")
    slow = [path for path, times in taken.items() if median(times) > LIMIT]
    if slow:
        raise SystemExit(f"Above {LIMIT:.0f} ms: {', '.join(slow)}")


async def fill(settings: Settings, rows: int) -> dict[str, str]:
    """Fills all tables. Returns the headers of a superuser who is signed in to the console."""
    engine = open_database(settings, time_limit=False)
    try:
        async with transaction() as db:
            connection = await db.connection()
            for statement in FILL:
                values = {"count": rows} if ":count" in statement else {}
                await connection.execute(text(statement), values)
            operator = User(name="O", username="operator", email="o@example.com", hashed_password="", is_superuser=True)
            db.add(operator)
            await db.flush()
            login = LoginSession(user_id=operator.id, kind=LoginKind.CONSOLE, expires_at=utc_now() + timedelta(hours=1))
            db.add(login)
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("ANALYZE"))
        return {"Cookie": f"{cookie_name(settings)}={create_cookie(settings, login.id, login.salt)}"}
    finally:
        await close_database(engine)


def measure(address: str, cookie: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds that each page took in each round. Raises: SystemExit for a page that is not answered with 200."""
    taken: dict[str, list[float]] = {path: [] for path in PAGES}
    with httpx2.Client(base_url=f"{address}/admin/", headers=cookie, timeout=60) as client:
        for number in range(rounds + 1):
            for path in PAGES:
                began = time.perf_counter()
                answer = client.get(path)
                if answer.status_code != 200:
                    raise SystemExit(f"{answer.status_code} of {answer.url}")
                if number:  # The first round warms up.
                    taken[path].append((time.perf_counter() - began) * 1000)
    return taken


async def count_statements(cookie: dict[str, str]) -> dict[str, int]:
    """How many statements each page sends to PostgreSQL."""
    async with the_app(cookie) as client:
        counts = {}
        for path in PAGES:
            found = []
            for _ in range(3):
                with counted() as statements:
                    await client.get(path)
                found.append(len(statements))
            counts[path] = min(found)
        return counts


@asynccontextmanager
async def the_app(cookie: dict[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    """The app in this process."""
    with redirect_stdout(StringIO()):  # where its lines about requests go from now on
        from app.main import app
    logging.disable(logging.CRITICAL)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="https://test/admin/", headers=cookie) as client,
    ):
        yield client


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that this process sends meanwhile."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


if __name__ == "__main__":
    main()
