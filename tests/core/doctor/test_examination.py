"""All checks together: none holds up or breaks another, and no line ever holds a secret."""

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from app.core.config import AppSettings
from app.core.doctor import Finding, Fleet, examination, examine
from scripts.embedded import Postgres, free_port
from tests.doctor_kit import FAILED, OK, SECRET, STRONG, WARNING, Settle, lines, run
from tests.redis_topologies import Node

pytestmark = pytest.mark.anyio


async def test_servers_that_hang_hold_up_nobody(settle: Settle, server: Node, postgres: Postgres) -> None:
    assert postgres.process is not None
    settings = settle(REDIS_CACHE_PORT=server.port)
    postgres.process.send_signal(signal.SIGSTOP)
    try:
        with server.stopped():
            begun = time.monotonic()
            found = await lines(settings)
            lasted = time.monotonic() - begun
    finally:
        postgres.process.send_signal(signal.SIGCONT)
    assert lasted < 10
    assert found["database"].outcome is FAILED
    assert found["valkey (cache)"].outcome is FAILED
    assert found["valkey (limits, queue)"].outcome is OK


async def test_a_check_that_fails_or_lasts_leaves_the_others(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(*_: object) -> list[Finding]:
        raise RuntimeError(SECRET)

    async def last(*_: object) -> list[Finding]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(examination, "LIMIT", 1)
    monkeypatch.setattr(examination, "check_schema_version", break_down)
    monkeypatch.setattr(examination, "check_workers", last)
    found = await lines(settle())
    assert found["schema"].text == "it cannot be judged: RuntimeError"
    assert found["workers"].text == "no answer within 1 s"
    assert found["database"].outcome is OK


async def test_what_is_switched_off_is_not_looked_at() -> None:
    class Bare(AppSettings):
        pass

    assert [finding.check for finding in await examine(Bare(), Fleet())] == ["settings"]


async def test_production_is_asked_more(settle: Settle) -> None:
    found = await examine(settle(ENVIRONMENT="production", SECRET_KEY=STRONG, RATE_LIMIT_MODE="shadow"), Fleet())
    remedies = [finding.remedy for finding in found if finding.outcome is WARNING]
    for expected in ("set TRUSTED_PROXIES", "set SMTP_HOST", "set RATE_LIMIT_MODE=enforce"):
        assert [remedy for remedy in remedies if remedy.startswith(expected)], expected


async def test_no_secret_is_ever_said(settle: Settle) -> None:
    down = f"127.0.0.1:{free_port()}"
    secrets: dict[str, Any] = {
        "SECRET_KEY": f"{SECRET}-{STRONG}",
        "ADMIN_PASSWORD": SECRET,
        "METRICS_TOKEN": SECRET,
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": free_port(),
        "SMTP_USERNAME": "app",
        "SMTP_PASSWORD": SECRET,
        "POSTGRES_URL": f"postgresql://tester:{SECRET}@127.0.0.1:{os.environ['POSTGRES_PORT']}/tester",
        "POSTGRES_READ_URL": f"postgresql://tester:{SECRET}@{down}/tester",
        "REDIS_CACHE_URL": f"redis://app:{SECRET}@127.0.0.1:{os.environ['REDIS_CACHE_PORT']}/0",
        "REDIS_RATE_LIMIT_URL": f"redis+cluster://:{SECRET}@{down}",
        "REDIS_QUEUE_URL": f"redis+sentinel://:{SECRET}@{down}/name?sentinel_password={SECRET}",
    }
    settle(**secrets)
    done = await asyncio.to_thread(run)
    assert done.returncode == 1
    assert sum(line.startswith("failed ") for line in done.stdout.splitlines()) == 5
    assert SECRET not in done.stdout + done.stderr
