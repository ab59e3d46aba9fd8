"""`/metrics` says what the server lacks to be ready, also where nobody asks `/ready`."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.api import build_router
from app.core import metrics
from app.core.config import Settings
from app.core.metrics.readiness import LOOK_SECONDS
from app.core.readiness import Dependency
from app.core.setup import create_application
from tests.conftest import client_of, connect
from tests.helper import silent_server
from tests.processes import ROOT, running_api

pytestmark = pytest.mark.anyio

Seen = dict[tuple[str, str], float]
GUNICORN = "gunicorn app.main:app -c gunicorn.conf.py -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}"


def seen_in(text: str) -> Seen:
    """1 or 0 by the name of the dependency, and by whether it is required."""
    return {
        (sample.labels["dependency"], sample.labels["required"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "slipway_dependency_up"
    }


async def scrape(client: httpx2.AsyncClient) -> Seen:
    answer = await client.get(str(client.base_url.join("/metrics")))
    assert answer.status_code == 200
    return seen_in(answer.text)


async def test_each_scrape_sees_what_ready_sees(client: httpx2.AsyncClient, database: str) -> None:
    assert await scrape(client) == {
        ("postgres", "true"): 1,
        ("schema", "true"): 1,
        ("redis_cache", "false"): 1,
        ("redis_rate_limit", "false"): 1,
        ("redis_queue", "false"): 1,
    }
    connection = await connect(database)
    await connection.execute("DELETE FROM alembic_version")
    await connection.close()
    seen = await scrape(client)
    assert {dependency for (dependency, _), up in seen.items() if not up} == {"schema"}
    states = (await client.get("ready")).json()["dependencies"]
    assert {name: state == "up" for name, state in states.items()} == {name: up == 1 for (name, _), up in seen.items()}


async def test_what_begins_to_hang_is_down_and_the_rest_is_told_in_time(
    app: FastAPI, client: httpx2.AsyncClient
) -> None:
    answers = asyncio.Event()
    answers.set()
    app.state.dependencies.append(Dependency("hanging", answers.wait, required=True))
    assert (await scrape(client))["hanging", "true"] == 1
    answers.clear()
    async with asyncio.timeout(5 * metrics.COUNT_SECONDS):
        seen = await scrape(client)
    assert LOOK_SECONDS < metrics.COUNT_SECONDS  # Else its last state would stand.
    assert (seen["hanging", "true"], seen["postgres", "true"]) == (0, 1)


async def test_a_database_that_hangs_is_down(database: str, settings: Settings) -> None:
    async with silent_server() as port:
        of_it = Settings(POSTGRES_PORT=port)
        with_it = create_application(build_router(of_it), of_it)
        async with with_it.router.lifespan_context(with_it), client_of(with_it) as client:
            async with asyncio.timeout(5 * metrics.COUNT_SECONDS):
                seen = await scrape(client)
    assert (seen["postgres", "true"], seen["schema", "true"], seen["redis_cache", "false"]) == (0, 0, 1)


async def test_no_process_tells_what_another_one_saw_before(
    settings: Settings, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # gunicorn makes the folder of what is counted there.
    with running_api(*GUNICORN.split(), cwd=ROOT / "src") as url:

        async def seen_by_many() -> set[float]:
            seen = set()
            for _ in range(20):
                async with httpx2.AsyncClient(base_url=url) as other:  # Any of the processes may take it.
                    seen.add((await scrape(other))["schema", "true"])
            return seen

        connection = await connect(database)
        [version] = await connection.fetch("SELECT version_num FROM alembic_version")
        assert await seen_by_many() == {1}
        await connection.execute("DELETE FROM alembic_version")
        assert await seen_by_many() == {0}
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", version["version_num"])
        assert await seen_by_many() == {1}
        await connection.close()
