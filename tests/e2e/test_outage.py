"""PostgreSQL goes away under load and comes back: 503 meanwhile, and no restart needed after."""

import asyncio
import time
from collections import Counter

import httpx2
import pytest

from scripts.embedded import Postgres, free_port, scratch_folder
from tests.processes import BIN, ROOT, running_api

pytestmark = pytest.mark.anyio

CLIENTS = 20


async def test_postgres_is_stopped_under_load(monkeypatch: pytest.MonkeyPatch, valkey: object) -> None:
    with scratch_folder() as folder:
        port = free_port()
        server = Postgres(
            folder / "postgres", port=port, user="outage", password="outage password", database="outage", durable=False
        )
        settings = {"USER": "outage", "PASSWORD": "outage password", "PORT": str(port), "DB": "outage"}
        for name, value in settings.items():
            monkeypatch.setenv(f"POSTGRES_{name}", value)
        server.start()
        try:
            migrate = await asyncio.create_subprocess_exec(BIN / "alembic", "upgrade", "head", cwd=ROOT / "src")
            assert await migrate.wait() == 0
            with running_api() as url:
                await _stop_and_start_under_load(server, f"{url}/api/v1")
        finally:
            server.stop()


async def _stop_and_start_under_load(server: Postgres, url: str) -> None:
    seen: dict[str, Counter[int]] = {"before": Counter(), "without": Counter(), "after": Counter()}
    phase = "before"

    async def keep_asking(client: httpx2.AsyncClient) -> None:
        while True:
            during = phase
            answer = await client.get(f"{url}/users")
            if during == phase:
                seen[phase][answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"]
                    assert answer.json()["type"] == "urn:problem-type:database-unavailable"

    async with httpx2.AsyncClient(timeout=20) as client, asyncio.TaskGroup() as load:
        askers = [load.create_task(keep_asking(client)) for _ in range(CLIENTS)]
        await asyncio.sleep(1)
        assert (await client.get(f"{url}/ready")).status_code == 200

        phase = "stopping"
        seen[phase] = Counter()
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.5)
        phase = "without"
        for _ in range(5):
            assert (await client.get(f"{url}/health")).status_code == 200
            assert (await client.get(f"{url}/ready")).status_code == 503
            await asyncio.sleep(0.2)

        phase = "starting"
        seen[phase] = Counter()
        await asyncio.to_thread(server.start)
        back = time.monotonic()
        while (await client.get(f"{url}/users")).status_code != 200:  # noqa: ASYNC110  (it asks another process)
            await asyncio.sleep(0.05)
        assert time.monotonic() - back < 5
        await asyncio.sleep(0.5)
        phase = "after"
        await asyncio.sleep(0.5)
        assert (await client.get(f"{url}/ready")).status_code == 200
        for asker in askers:
            asker.cancel()

    assert set(seen["before"]) == set(seen["after"]) == {200}
    assert set(seen["without"]) == {503}
    assert set(seen["stopping"]) | set(seen["starting"]) <= {200, 503}
