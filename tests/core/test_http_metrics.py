"""What is counted of HTTP and of pools, and that several processes behind one port are counted as one."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import AppSettings, EnvironmentSettings, MetricsSettings, PostgresSettings, Settings
from app.core.db.database import close_database, open_database
from app.core.metrics import pools
from app.core.setup import create_application
from tests.conftest import client_of
from tests.helper import create_user, signed_in
from tests.processes import ROOT, running_api

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The value of a sample; one that is not there is 0."""
    return samples.get((name, frozenset(labels.items())), 0.0)


async def scrape(client: httpx2.AsyncClient) -> Samples:
    answer = await client.get(str(client.base_url.join("/metrics")))
    assert answer.status_code == 200
    return samples_of(answer.text)


# ---- Requests ----


async def test_requests_are_counted_by_the_template_of_their_path(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    user = await create_user(db)
    await db.commit()
    before = await scrape(client)
    for _ in range(3):
        await client.get(f"user/{user.username}", headers=signed_in(user, settings))
    await client.get("user/nobody")
    await client.head("health")
    await client.get("no/such/route")
    await client.request("BREW", "health")
    after = await scrape(client)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    route = "/api/v1/user/{username}"
    assert more("slipway_http_requests_total", method="GET", route=route, status="200") == 3
    assert more("slipway_http_requests_total", method="GET", route=route, status="404") == 1
    assert more("slipway_http_request_seconds_count", method="GET", route=route) == 4
    assert more("slipway_http_request_seconds_sum", method="GET", route=route) > 0
    assert more("slipway_http_requests_total", method="HEAD", route="/api/v1/health", status="200") == 1
    assert more("slipway_http_requests_total", method="GET", route="none", status="404") == 1
    assert not any("BREW" in dict(labels).values() for _, labels in after)
    assert value(after, "slipway_http_requests_in_flight") == 1  # the scrape itself


async def test_paths_that_somebody_makes_up_make_no_new_metrics(client: httpx2.AsyncClient) -> None:
    await client.get("nothing/0")
    before = await scrape(client)
    for number in range(20):
        await client.get(f"nothing/{number}")
        await client.request(f"M{number}", "health")
        await client.get(f"user/nobody{number}")
    new = {labels for name, labels in (await scrape(client)).keys() - before.keys() if "http" in name}
    assert {dict(labels)["route"] for labels in new} <= {
        "none",
        "/api/v1/user/{username}",
        "/api/v1/health",
        "/metrics",
    }
    assert {dict(labels)["method"] for labels in new} <= {"GET", "other"}


async def test_an_error_and_a_caller_who_leaves_are_counted() -> None:
    class Small(AppSettings, MetricsSettings, EnvironmentSettings):
        """Settings of an app of middleware alone."""

    router = APIRouter()

    @router.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError

    @router.get("/is-left")
    async def is_left() -> None:
        await asyncio.Event().wait()

    async with client_of(create_application(router, Small())) as client:
        assert (await client.get("http://test/fails")).status_code == 500
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.get("http://test/is-left"), 0.05)
        found = await scrape(client)
    assert value(found, "slipway_http_requests_total", method="GET", route="/fails", status="500") == 1
    assert value(found, "slipway_http_requests_total", method="GET", route="/is-left", status="aborted") == 1
    assert value(found, "slipway_http_requests_in_flight") == 1


# ---- Pools ----


async def test_pools_say_what_is_in_use_and_who_waits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "EVERY", 0.01)
    engine = open_database(PostgresSettings(POSTGRES_POOL_SIZE=2))
    link = type("Link", (), {"up": True})()

    def found(gauge: str, **labels: str) -> float:
        shown = {"connections": pools.CONNECTIONS, "limit": pools.LIMIT, "waiting": pools.WAITING, "up": pools.REDIS_UP}
        return float(shown[gauge].labels(**labels)._value.get())

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 -- it is looked at by a clock
                await asyncio.sleep(0.01)

    try:
        async with pools.pools_measured({"test": engine}, {"test": link}):
            assert (found("limit", pool="test"), found("waiting", pool="test"), found("up", link="test")) == (2, 0, 1)
            first, second = await engine.connect(), await engine.connect()
            third = asyncio.create_task(engine.connect().start())
            await until(lambda: found("connections", pool="test", state="in_use") == 2)
            await until(lambda: found("waiting", pool="test") == 1)
            link.up = False
            await first.close()
            await (await third).close()
            await second.close()
            await until(lambda: found("connections", pool="test", state="idle") == 2)
            assert (found("waiting", pool="test"), found("connections", pool="test", state="in_use")) == (0, 0)
            await until(lambda: found("up", link="test") == 0)
    finally:
        await close_database(engine)


async def test_the_app_measures_its_own_pools(app: FastAPI, client: httpx2.AsyncClient, settings: Settings) -> None:
    found = await scrape(client)
    assert value(found, "slipway_database_connections_limit", pool="requests") == settings.POSTGRES_POOL_SIZE
    for link in ("cache", "rate_limit", "queue"):
        assert value(found, "slipway_redis_up", link=link) == 1


# ---- Several processes ----

COUNTS = textwrap.dedent(
    """
    import os, sys
    sys.path.insert(0, "src")
    from app.core.metrics.http import IN_FLIGHT, count_request
    for _ in range(int(sys.argv[1])):
        count_request("GET", "/a", 200, 0.02)
    IN_FLIGHT.set(5)
    """
)
TELLS = COUNTS + textwrap.dedent(
    """
    from prometheus_client import generate_latest
    from app.core.metrics.processes import registry
    print(generate_latest(registry()).decode())
    """
)


def in_another_process(code: str, folder: Path, requests: int) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code, str(requests)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_what_ended_processes_have_counted_stays_in_one_file(tmp_path: Path) -> None:
    for _ in range(3):
        in_another_process(COUNTS, tmp_path, 4)
    first = samples_of(in_another_process(TELLS, tmp_path, 1))
    labels = {"method": "GET", "route": "/a"}
    assert value(first, "slipway_http_requests_total", **labels, status="200") == 13
    assert value(first, "slipway_http_request_seconds_count", **labels) == 13
    assert value(first, "slipway_http_request_seconds_bucket", **labels, le="0.025") == 13
    assert value(first, "slipway_http_request_seconds_bucket", **labels, le="0.01") == 0
    assert value(first, "slipway_http_requests_in_flight") == 5  # of the one that lives
    second = samples_of(in_another_process(TELLS, tmp_path, 1))
    assert value(second, "slipway_http_requests_total", **labels, status="200") == 14
    of_the_last = {file.name for file in tmp_path.glob("counter_*.db")} - {"counter_ended.db"}
    assert len(of_the_last) == 1


def test_queues_that_are_gone_are_not_told_of_any_more(settings: Settings) -> None:
    """In any process: what is in the table is the same for all, so that it is not in their files."""
    in_files = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, "src")
        from types import SimpleNamespace
        from prometheus_client import generate_latest
        from app.core.metrics.processes import registry
        from app.core.utils.queue import metrics
        for queues in ({"a": None, "b": SimpleNamespace(queued=3, oldest=7)}, {"a": None}):
            metrics._counted.by_queue = queues
            print([line for line in generate_latest(registry()).decode().splitlines() if "slipway_job" in line
                   and 'queue="' in line and not line.endswith(" 0.0")])
        """
    )
    alone = subprocess.run(
        [sys.executable, "-c", in_files], cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    expected = ['slipway_jobs{queue="b",state="queued"} 3.0', 'slipway_job_oldest_seconds{queue="b"} 7.0']
    assert alone.splitlines() == [repr(expected), "[]"]


GUNICORN = "gunicorn app.main:app -c gunicorn.conf.py -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}"
UVICORN = "uvicorn app.main:app --workers 2 --port {port} --log-level warning"


@pytest.mark.parametrize("command", [GUNICORN, UVICORN], ids=["gunicorn", "uvicorn"])
async def test_workers_are_counted_together_and_a_killed_ones_counts_stay(
    command: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command is GUNICORN:
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # It makes a folder there.
    else:
        (tmp_path / "slipway-metrics-").mkdir()
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "slipway-metrics-"))
    with running_api(*command.split(), cwd=ROOT / "src") as url:

        async def ask(path: str) -> httpx2.Response:
            async with httpx2.AsyncClient(base_url=url) as other:  # On another connection, which any of them may take.
                answer = await other.get(path)
            assert answer.status_code == 200
            return answer

        async def until_all_have_their_cache() -> None:
            async with asyncio.timeout(20):
                while value(samples_of((await ask("/metrics")).text), "slipway_cache_up") != 1:  # noqa: ASYNC110 -- others'
                    await asyncio.sleep(0.1)

        async def counted() -> float:
            found = samples_of((await ask("/metrics")).text)
            return value(found, "slipway_http_requests_total", method="GET", route="/api/v1/tiers", status="200")

        for _ in range(40):
            await ask("/api/v1/tiers")
        assert {await counted() for _ in range(10)} == {40.0}
        first, second = workers = counting_in(tmp_path)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while len(now := counting_in(tmp_path)) < 2 or now == workers:  # Until another has taken its place.
                await ask("/metrics")
                await asyncio.sleep(0.1)
        assert second in now
        await until_all_have_their_cache()
        assert {await counted() for _ in range(10)} == {40.0}
    if command is GUNICORN:
        assert counting_in(tmp_path) == []


def counting_in(folder: Path) -> list[int]:
    """The processes that have a file there for what they count."""
    processes = [file.stem.rpartition("_")[2] for file in folder.glob("slipway-metrics-*/counter_*.db")]
    return sorted(int(process) for process in processes if process.isdigit())
