"""The front page: what it makes of facts, and what it says of a real app."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
from fastapi import FastAPI
from redis import Redis
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.wellness import Facts, faults_in
from app.core.db.models import utc_now
from app.core.metrics.recent import Totals
from app.core.metrics.recent.keys import totals_key
from app.core.utils.queue import Job, JobState, WorkerSeen
from app.core.utils.queue.sending import current_transport
from app.core.utils.queue.workers import beat
from scripts.embedded import Valkey
from tests.admin.operator import text_of
from tests.admin.valkeys import minute_of, own_valkey, plain
from tests.admin.world import HOSTILE
from tests.core.utils.test_redis_link import stopped
from tests.durable_jobs import until
from tests.helper import counted_statements

__all__ = ["own_valkey", "plain"]  # fixtures

pytestmark = pytest.mark.anyio

WELL = Facts(
    states={"postgres": "up", "schema": "up", "redis_cache": "up"},
    totals=Totals(requests=1000, errors=9, buckets={0.1: 1000}),
    queue_age=60,
    dead=0,
    workers=[WorkerSeen("one", "arq:queue", 0, 10, (), "host", 1, None, 0.5, False)],
    cache_usable=True,
    limits_shared=True,
)


def said(**changed: object) -> list[str]:
    """What is wrong when this differs from a system that is well."""
    facts = {name: getattr(WELL, name) for name in WELL.__slots__} | changed
    return [fault.text for fault in faults_in(Facts(**facts))]


# ---- The judgement ----


def test_nothing_is_wrong_with_a_system_that_is_well() -> None:
    assert said() == []


def test_what_is_not_known_is_not_wrong() -> None:
    assert faults_in(Facts()) == []


def test_what_does_not_answer_is_named() -> None:
    assert said(states={"postgres": "down", "schema": "behind", "thing": "down", "redis_cache": "up"}) == [
        "The database does not answer.",
        "The database's schema is behind: migrations have to be run.",
        "thing does not answer.",
    ]


def test_requests_that_fail() -> None:
    assert said(totals=Totals(requests=1000, errors=10)) == ["1 % of the requests of the last 5 minutes have failed."]
    assert said(totals=Totals(requests=19, errors=19)) == [], "of so few, a share says nothing"


def test_requests_that_take_long() -> None:
    assert said(totals=Totals(requests=100, buckets={0.1: 94, 5.0: 6})) != []
    assert said(totals=Totals(requests=100, buckets={0.1: 96, 5.0: 4})) == []
    assert said(totals=Totals(requests=100, buckets={5.0: 19})) == [], "of so few that are timed, a share says nothing"


def test_jobs_that_wait_or_were_given_up() -> None:
    assert said(queue_age=61) == ["A job has been due for 61 s."]
    assert said(dead=1) == ["1 job was given up in the last hour."]
    assert said(dead=2) == ["2 jobs were given up in the last hour."]


def test_workers_that_are_gone() -> None:
    late = WorkerSeen("one", "arq:queue", 0, 10, (), "host", 1, None, 300.0, True)
    assert said(workers=[]) == said(workers=[late]) == ["No worker is alive: jobs wait."]
    alive = WELL.workers or ()
    assert said(workers=[*alive, late]) == ["1 worker was not heard of for 5 min."]
    later = replace(late, name="two", heard_seconds=40.0)
    assert said(workers=[*alive, late, later]) == ["2 workers were not heard of for up to 5 min."]
    assert said(workers=[*alive, later]) == ["1 worker was not heard of for 40 s."]


def test_what_is_counted_or_cached_by_nobody_else() -> None:
    assert said(cache_usable=False) == ["The cache is not in use: its server is away, or not trusted yet."]
    assert said(limits_shared=False) == ["Rate limits are counted in each process, not together."]


# ---- The page ----


async def all_is_well(app: FastAPI) -> None:
    """A worker lives, and the cache is trusted, as some moments after a start."""
    told = {"running": 0, "queue": "arq:queue", "started_at": utc_now().isoformat(), "max_jobs": 10, "functions": []}
    await beat(current_transport().link, "a worker", "arq:queue:health-check", 60, told)

    async def is_usable() -> bool:
        return bool(app.state.cache.usable)

    await until(is_usable)


async def test_it_says_that_all_is_well(app: FastAPI, operator: httpx2.AsyncClient) -> None:
    await all_is_well(app)

    text = text_of(await operator.get(""))

    assert "The system is well" in text
    assert "Workers alive 1 by their heartbeats" in text
    assert "The database's schema up" in text
    assert "Oldest due job none" in text


async def test_it_says_what_is_wrong(app: FastAPI, operator: httpx2.AsyncClient, db: AsyncSession) -> None:
    await all_is_well(app)
    now = utc_now()
    db.add(Job(id="due", queue="nobody's", function=HOSTILE, run_after=now - timedelta(minutes=10), sent_at=now))
    db.add(Job(id="dead", queue="nobody's", function="f", state=JobState.DEAD, finished_at=now, run_after=now))
    await db.commit()

    page = await operator.get("")

    text = text_of(page)
    assert "The system is not well" in text
    assert "A job has been due for 10 min." in text
    assert "1 job was given up in the last hour." in text
    assert 'href="/admin/job/list"' in page.text
    assert "<script>fail()" not in page.text


async def test_it_shows_the_last_minutes_of_all_processes(
    app: FastAPI, operator: httpx2.AsyncClient, plain: Redis
) -> None:
    await all_is_well(app)
    for minute in (minute_of(plain), minute_of(plain) - 1):
        counted = {"requests": 200, "errors": 20, "le:2.5": 200, "cache:hit:users": 30, "cache:miss:users": 10}
        plain.hset(totals_key(minute), mapping=counted | {"limit:refused:*": 7, "limit:would_refuse:*": 1})

    text = text_of(await operator.get(""))

    assert "10 % of the requests of the last 5 minutes have failed." in text
    assert "Cache hit ratio 75 % last 5 minutes" in text
    assert "Refused calls 14 last 5 minutes" in text
    assert "would be refused 1" in text
    assert "answered 180" in text
    page = (await operator.get("")).text
    assert page.count('role="img"') == 5
    assert 'data-live="5"' in page


async def test_it_costs_few_statements(operator: httpx2.AsyncClient) -> None:
    with counted_statements() as statements:
        assert (await operator.get("", headers={"X-Console-Live": "1"})).status_code == 200
    asked = [statement for statement in statements if "FROM job" in statement]
    assert len(asked) == 3
    assert len(statements) <= 6, statements


# ---- Without Redis/Valkey ----


async def test_it_answers_without_valkey(own_valkey: Valkey, app: FastAPI, operator: httpx2.AsyncClient) -> None:
    assert "are not known" not in text_of(await operator.get(""))
    await asyncio.to_thread(own_valkey.stop)
    began = time.monotonic()

    page = await operator.get("")

    text = text_of(page)
    assert page.status_code == 200
    assert time.monotonic() - began < 10
    assert "Requests, latency, hit ratio and refused calls are not known" in text
    for sentence in (
        "The rate limits' server does not answer.",
        "The cache is not in use",
        "Rate limits are counted in each process, not together.",
    ):
        assert sentence in text
    assert "Jobs ended" in text, "the database knows them"


async def test_it_does_not_wait_for_a_valkey_that_hangs(
    own_valkey: Valkey, app: FastAPI, operator: httpx2.AsyncClient
) -> None:
    took = []
    with Redis(port=own_valkey.port) as client, stopped(client):
        for _ in range(3):
            began = time.monotonic()
            text = text_of(await operator.get(""))
            took.append(time.monotonic() - began)
            for sentence in ("The cache's server", "The rate limits' server", "The job queue's server"):
                assert f"{sentence} does not answer." in text
    assert min(took) < 1, "the queue's own connections would have waited for 2 s"


async def test_workers_of_the_release_before_are_workers(
    app: FastAPI, operator: httpx2.AsyncClient, plain: Redis
) -> None:
    assert "No worker is alive" in text_of(await operator.get(""))
    told = '{"running": 1, "queue": "arq:queue", "started_at": "2026-11-25T12:00:00+00:00", "worker": "before"}'
    plain.set("arq:queue:health-check", told, px=21_000)
    text = text_of(await operator.get(""))
    assert "No worker is alive" not in text
    assert "Workers alive 1 by their heartbeats" in text


async def test_it_answers_where_nothing_is_recorded(app: FastAPI, operator: httpx2.AsyncClient) -> None:
    app.state.recent = None
    page = await operator.get("")
    assert page.status_code == 200
    assert "are not known" in text_of(page)
