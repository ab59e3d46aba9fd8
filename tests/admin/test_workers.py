"""The console's page of workers, over HTTP, with workers in this process."""

import os
import re
import socket
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.core.db.models import utc_now
from app.core.utils import queue
from app.core.utils.queue import Job, JobState, workers
from app.core.utils.queue.sending import current_transport
from app.core.worker.options import job
from scripts.embedded import free_port
from tests.admin.conftest import app_with_console
from tests.admin.operator import console_of, sign_in, text_of
from tests.conftest import second_session
from tests.durable_jobs import Context, Holding, enqueued, happens, job_of, until, working
from tests.helper import counted_statements, create_superuser

pytestmark = pytest.mark.anyio

SCRIPT = "<script>fail()</script>"


async def beat(name: str, **told: Any) -> None:
    """A worker that says this of itself."""
    usual = {"running": 0, "queue": queue.DEFAULT_QUEUE, "started_at": "2030-01-31T12:00:00+00:00"}
    usual |= {"max_jobs": 7, "functions": ["mail"]}
    await workers.beat(current_transport().link, name, "arq:queue:health-check", 30, usual | told)


async def add_running(db: AsyncSession, job_id: str, worker: str, **values: Any) -> None:
    facts: dict[str, Any] = {
        "worker": worker,
        "started_at": utc_now(),
        "lease_until": utc_now() + timedelta(hours=1),
        "attempt": 1,
    }
    facts |= {"queue": "q", "function": "mail", "state": JobState.RUNNING, "sent_at": utc_now()}
    db.add(Job(id=job_id, **facts | values))
    await db.commit()


async def test_a_worker_is_shown_with_the_jobs_it_runs(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    async def mail(ctx: Context) -> None:
        await queue.progress(ctx, 1, 2, f"half {SCRIPT}")
        holding.begun.set()
        await holding.may_end.wait()

    holding = Holding()
    async with working(job(mail, name="mail"), max_jobs=3, health_check_interval=1) as worker:
        job_id = await enqueued("mail")
        await happens(holding.begun)

        async def is_told() -> bool:
            return "1 of 3 at once" in text_of(await operator.get("workers"))

        await until(is_told)
        page = await operator.get("workers")
        text = text_of(page)
        assert (await job_of(job_id)).worker == worker.name
        for part in (
            worker.name,
            "alive",
            queue.DEFAULT_QUEUE,
            f"{socket.gethostname()}, {os.getpid()}",
            "mail",
            "1 of 2",
        ):
            assert part in text, part
        assert f"half {SCRIPT}" in text
        assert SCRIPT not in page.text
        assert f'href="/admin/job/detail?pk={job_id}"' in page.text
        assert 'value="0.5"' in page.text
        assert re.search(r'id="workers-now" data-live="\d"', page.text)
        holding.may_end.set()


async def test_late_and_gone_workers_are_so_in_words(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    link = current_transport().link
    now = int((await link.send("TIME"))[0])
    for name in ("alive", "late", "gone"):
        await beat(name)
    await link.send("ZADD", workers.WORKERS, (now - 1) * 1000, "late", (now - 120) * 1000, "gone")
    page = await operator.get("workers")
    states = re.findall(r'<h2 class="card-title[^>]*>(\w+)</h2>.*?<strong>([\w ]+)</strong>', page.text, re.DOTALL)
    assert dict(states) == {"alive": "alive", "late": "late", "gone": "not heard of"}


async def test_a_worker_of_the_release_before_is_shown(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    told = '{"running": 1, "queue": "arq:queue", "started_at": "2026-11-25T12:00:00+00:00", "worker": "before"}'
    await current_transport().link.send("SET", "arq:queue:health-check", told, "PX", 26_000)
    await add_running(db, "left", "before")
    text = text_of(await operator.get("workers"))
    assert "before alive , last heartbeat 5 s ago, of an older release" in text
    assert "has not been heard of" not in text


async def test_jobs_of_workers_that_nobody_knows_are_shown(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    assert "No worker has been heard of in the last 10 minutes." in text_of(await operator.get("workers"))
    await add_running(db, "left", "lost")
    await beat("other")
    text = text_of(await operator.get("workers"))
    assert "other" in text
    assert text.index("lost") < text.index("has not been heard of") < text.index("left")


async def test_script_is_text(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await beat(SCRIPT, queue=SCRIPT, functions=[SCRIPT], started_at=SCRIPT)
    await beat("odd", functions=7, max_jobs="x", running=[], started_at=None)
    for worker in (SCRIPT, "lost"):
        await add_running(db, f"{SCRIPT}{worker}", worker, function=SCRIPT, progress={"done": 1, "message": SCRIPT})
    page = await operator.get("workers")
    assert page.status_code == 200
    assert SCRIPT in text_of(page)
    assert SCRIPT not in page.text


async def test_it_costs_one_statement(operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    for n in range(20):
        await beat(f"worker{n}")
        await add_running(db, f"job{n}", f"worker{n}", args=["x"])
    with counted_statements() as statements:
        assert (await operator.get("workers")).text.count("/admin/job/detail?pk=job") == 20
    assert len(statements) <= 2, statements  # Another one is about who asks.
    assert not [one for one in statements if "keywords" in one]


async def test_without_valkey_the_running_jobs_are_shown(settings: Settings) -> None:
    app = app_with_console(settings.model_copy(update={"REDIS_QUEUE_PORT": free_port()}))
    async with app.router.lifespan_context(app), console_of(app) as console:
        async with second_session() as db:
            operator = await create_superuser(db)
            await add_running(db, "running", "somebody")
        assert (await sign_in(console, operator)).status_code == 303
        page = await console.get("workers")
        assert page.status_code == 200
        text = text_of(page)
        assert "Redis/Valkey is away" in text
        assert "somebody" in text
        assert "running" in text
