"""What production refuses: weak settings by themselves, and mistakes on the servers that no waiting mends."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from structlog.testing import capture_logs

from app.core.config import CORSSettings, ProxySettings, Settings, SettingsError
from app.core.doctor import connections_of_worker, refuse_certain_faults
from app.core.setup import create_application
from scripts.embedded import free_port, scratch_folder
from tests.conftest import Execute
from tests.doctor_kit import Settle, settling
from tests.processes import BIN, ROOT
from tests.redis_topologies import Node
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.anyio

STRONG = "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD"
WEAK = "hunter2"
# All that can be weak, and is not.
GOOD: dict[str, Any] = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": STRONG,
    "OTHER_SECRET_KEYS": f"{STRONG}2 {STRONG}3@2999-01-01T00:00:00Z",
    "POSTGRES_PASSWORD": STRONG,
    "POSTGRES_READ_URL": f"postgresql://app:{STRONG}@replica/app",
    "REDIS_CACHE_URL": f"redis+cluster://:{STRONG}@one,two",
    "REDIS_QUEUE_URL": f"redis+sentinel://:{STRONG}@one,two/name?sentinel_password={STRONG}",
    "REDIS_RATE_LIMIT_URL": f"rediss://app:{STRONG}@limits/0",
    "ADMIN_PASSWORD": STRONG,
    "METRICS_TOKEN": STRONG,
    "SMTP_HOST": "mail.example",
    "SMTP_USERNAME": "app",
    "SMTP_PASSWORD": "s3nd-it",  # Its length is the mail provider's choice.
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-scope-orgid=1, Authorization=Bearer%20hunter2",
    "PASSWORD_RESET_URL": "https://front.example/reset",
    "EMAIL_VERIFICATION_URL": "https://front.example/verify",
    "TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8,104.16.0.0/13,203.0.113.7,unix",
    "CORS_ORIGINS": "*",  # Without credentials, a page of anybody's can do no more than a program of anybody's.
}


@pytest.mark.parametrize(
    ("weak", "reason"),
    [
        ({"SECRET_KEY": "a" * 64}, "must not be an example"),
        ({"OTHER_SECRET_KEYS": "a" * 64}, "must not be an example"),
        ({"POSTGRES_PASSWORD": "postgres"}, "must not be an example"),
        ({"POSTGRES_URL": f"postgresql://app:{WEAK}@db/app"}, "must not be an example"),
        ({"POSTGRES_READ_URL": f"postgresql://app:{WEAK}@replica/app"}, "must not be an example"),
        ({"POSTGRES_URL": f"postgresql://app@db/app?password={WEAK}"}, "must not be an example"),
        ({"POSTGRES_URL": f"postgresql://app:{STRONG}@db/app?password={WEAK}"}, "must not be an example"),
        ({"POSTGRES_READ_URL": f"postgresql://app@replica/app?password={WEAK}"}, "must not be an"),
        ({"POSTGRES_PASSWORD": "aaaaaaaaaaaa"}, "must not be an example"),
        ({"REDIS_QUEUE_URL": "redis://:123456789012@queue:6379/0"}, "must not be an example"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "must not begin with http: in production, where"),
        ({"REDIS_CACHE_URL": f"redis://:{WEAK}@cache:6379/0"}, "must not be an example"),
        ({"REDIS_QUEUE_URL": f"rediss+sentinel://app:{STRONG}@one,two/name?sentinel_password={WEAK}"}, "must not be"),
        ({"REDIS_RATE_LIMIT_URL": f"redis+cluster://:{WEAK}@one:7000,two:7000"}, "must not be an example"),
        ({"ADMIN_PASSWORD": "password1234"}, "must not be an example"),
        ({"METRICS_TOKEN": "changeme-changeme"}, "must not be an example"),
        ({"SMTP_PASSWORD": "changeme"}, "must not be an example"),
        ({"SMTP_SECURITY": "none"}, "must not be none in production: the login would be sent in clear text"),
        ({"PASSWORD_RESET_URL": "http://front.example/reset"}, "must not begin with http: in production"),
        ({"EMAIL_VERIFICATION_URL": "http://front.example/verify"}, "must not begin with http: in production"),
        ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "must not hold networks of everybody"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8,::/0"}, "must not hold networks of everybody"),
        ({"TRUSTED_PROXIES": "0.0.0.0/1,128.0.0.0/1"}, "must not hold networks of everybody"),
        ({"TRUSTED_PROXIES": "20.0.0.0/8"}, "must not hold networks of everybody"),
        ({"TRUSTED_PROXIES": "2000::/3"}, "must not hold networks of everybody"),
    ],
)
def test_each_weak_setting_is_refused_by_its_name(weak: dict[str, Any], reason: str) -> None:
    ((name, value),) = weak.items()
    assert Settings(**GOOD).ENVIRONMENT == "production"
    assert Settings(**GOOD | weak | {"ENVIRONMENT": "staging"}).ENVIRONMENT == "staging"
    with pytest.raises(SettingsError) as stopped:
        Settings(**GOOD | weak)
    assert str(stopped.value.code).startswith(f"{name} {reason}")
    assert len(str(stopped.value.code).splitlines()) == 1
    if name.endswith(("KEY", "KEYS", "PASSWORD", "TOKEN", "_URL")):
        assert value not in str(stopped.value.code)
    assert WEAK not in str(stopped.value.code)


@pytest.mark.parametrize(
    "harmless",
    [
        {"POSTGRES_PASSWORD": "postgres", "POSTGRES_URL": f"postgresql://app:{STRONG}@db/app"},
        {"SMTP_HOST": None, "SMTP_PASSWORD": "changeme", "SMTP_SECURITY": "none"},
        {"POSTGRES_URL": f"postgresql://app:{WEAK}@db/app?password={STRONG}"},  # The latter is used.
        {"POSTGRES_URL": "postgresql://app@/app?host=/run/postgresql"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4318/at"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_HEADERS": None},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_HEADERS": "X-Scope-OrgID=1,"},
        {"SMTP_HOST": "127.0.0.1", "SMTP_SECURITY": "none"},
        {"SMTP_HOST": "mail.example", "SMTP_USERNAME": None, "SMTP_PASSWORD": None, "SMTP_SECURITY": "none"},
        {"REDIS_CACHE_URL": "redis://cache:6379/0", "REDIS_QUEUE_URL": "unix:///run/valkey.sock"},
    ],
)
def test_what_is_not_used_or_stays_on_this_machine_is_not_refused(harmless: dict[str, Any]) -> None:
    assert Settings(**GOOD | harmless).ENVIRONMENT == "production"


def test_each_fault_has_a_line() -> None:
    with pytest.raises(SettingsError) as stopped:
        Settings(**GOOD | {"ADMIN_PASSWORD": "admin", "SMTP_SECURITY": "none", "TRUSTED_PROXIES": "::/0"})
    names = [line.split()[0] for line in str(stopped.value.code).splitlines()]
    assert names == ["ADMIN_PASSWORD", "SMTP_SECURITY", "TRUSTED_PROXIES"]


def test_everybodys_pages_are_refused_with_credentials() -> None:
    with pytest.raises(SettingsError, match="CORS_ORIGINS must be a list without"):
        CORSSettings(CORS_ORIGINS="*", CORS_ALLOW_CREDENTIALS=True)


# ---- The start ----


@pytest.fixture
def settle(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settle]:
    """Settings of production in which these values have changed, for this process and those it starts."""
    yield settling(monkeypatch, ENVIRONMENT="production", SECRET_KEY=STRONG)
    monkeypatch.undo()


@pytest.fixture(scope="module")
def full() -> Iterator[Node]:
    """A Valkey that evicts when it is full."""
    options = {"maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"}
    with scratch_folder() as folder, Node(folder / "valkey", **options) as node:
        yield node


async def refusal(settings: Settings) -> list[str]:
    """The lines with which an app does not start; none when it does."""
    app = create_application(APIRouter(), settings)
    try:
        async with app.router.lifespan_context(app):
            return []
    except SettingsError as error:
        return str(error).splitlines()


async def test_a_good_one_starts(settle: Settle) -> None:
    with capture_logs() as logged:
        assert await refusal(settle()) == []
    assert [line for line in logged if line["log_level"] == "warning"] == []


@pytest.mark.parametrize("use", ["RATE_LIMIT", "QUEUE"])
async def test_limits_and_queue_are_not_to_be_evicted(settle: Settle, full: Node, use: str) -> None:
    (line,) = await refusal(settle(**{f"REDIS_{use}_PORT": full.port}))
    assert "evicts keys when it is full (allkeys-lru)" in line
    assert (
        f"CONFIG SET maxmemory-policy noeviction (and in the server's configuration), or have REDIS_{use}_URL" in line
    )


async def test_a_cache_may_be_and_limits_that_are_off(settle: Settle, full: Node) -> None:
    assert await refusal(settle(REDIS_CACHE_PORT=full.port)) == []
    assert await refusal(settle(REDIS_RATE_LIMIT_PORT=full.port, RATE_LIMIT_MODE="off")) == []


async def test_who_has_written_is_kept_with_the_limits_even_if_they_are_off(settle: Settle, full: Node) -> None:
    replica = f"postgresql://app:{STRONG}@127.0.0.1:{free_port()}/app"
    settings = settle(REDIS_RATE_LIMIT_PORT=full.port, RATE_LIMIT_MODE="off", POSTGRES_READ_URL=replica)
    (line,) = await refusal(settings)
    assert line.startswith("valkey notes: eviction: ")
    assert "a replica that is behind shows what was before" in line
    assert "have REDIS_RATE_LIMIT_URL name another" in line


async def test_outside_of_production_nothing_is_asked(settle: Settle, full: Node) -> None:
    assert await refusal(settle(ENVIRONMENT="staging", REDIS_QUEUE_PORT=full.port)) == []


async def test_a_process_that_cannot_have_its_connections(settle: Settle) -> None:
    (line,) = await refusal(settle(POSTGRES_POOL_SIZE=196))
    assert "this process alone may hold 198, and PostgreSQL has 197" in line
    assert "lower POSTGRES_POOL_SIZE" in line
    assert await refusal(settle(POSTGRES_POOL_SIZE=195)) == []
    assert await refusal(settle(POSTGRES_POOL_SIZE=196, POSTGRES_POOL_MODE="transaction")) == []


async def test_a_worker_that_cannot_have_its_connections(settle: Settle) -> None:
    await refuse_certain_faults(settle(), connections_of_worker(128))
    with pytest.raises(SettingsError, match=r"may hold 199, .*of a worker: max_jobs"):
        await refuse_certain_faults(settle(), connections_of_worker(130))


async def test_another_encoding(settle: Settle, execute: Execute) -> None:
    options = "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
    await asyncio.to_thread(execute, f"CREATE DATABASE in_plain_ascii {options}")
    (line,) = await refusal(settle(POSTGRES_DB="in_plain_ascii"))
    await asyncio.to_thread(execute, "DROP DATABASE in_plain_ascii WITH (FORCE)")
    assert "ENCODING 'UTF8'" in line


async def test_what_merely_should_be_better_is_logged(settle: Settle) -> None:
    with capture_logs() as logged:
        assert await refusal(settle(REDIS_CACHE_HOST="0.0.0.0")) == []  # noqa: S104 -- this machine, and not loopback
    (line,) = [line for line in logged if line["event"] == "not as it should be"]
    assert line["check"] == "valkey (cache): password"
    assert "set requirepass" in line["remedy"]


async def test_what_is_away_is_no_reason_not_to_start(settle: Settle) -> None:
    away = {f"REDIS_{use}_PORT": free_port() for use in ("CACHE", "QUEUE", "RATE_LIMIT")}
    assert await refusal(settle(POSTGRES_PORT=free_port(), **away)) == []


async def test_what_hangs_does_not_hold_up_the_start_for_long(settle: Settle) -> None:
    async with SMTPServer(answers={"CONNECT": ""}) as hanging:  # It takes the connection, and says nothing.
        begun = time.monotonic()
        await refuse_certain_faults(settle(POSTGRES_PORT=hanging.port, REDIS_QUEUE_PORT=hanging.port))
        assert time.monotonic() - begun < 4


async def test_without_servers_there_is_nothing_to_ask() -> None:
    class Bare(ProxySettings, CORSSettings):
        pass

    await refuse_certain_faults(Bare())


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_a_server_ends_with_a_line_for_each_fault(settle: Settle, full: Node, server: str) -> None:
    settle(POSTGRES_POOL_SIZE=500, REDIS_RATE_LIMIT_PORT=full.port)
    port = free_port()
    words = {
        "uvicorn": f"uvicorn app.main:app --port {port}",
        "gunicorn": f"gunicorn app.main:app -k uvicorn_worker.UvicornWorker --no-control-socket -b 127.0.0.1:{port}",
    }
    done = ended(*words[server].split())
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "lower POSTGRES_POOL_SIZE" in said
    assert "have REDIS_RATE_LIMIT_URL name another" in said
    assert "Traceback" not in said
    assert os.environ["POSTGRES_PASSWORD"] not in said


def test_a_worker_ends_with_a_line_for_each_fault(settle: Settle, full: Node) -> None:
    settle(REDIS_QUEUE_PORT=full.port)
    done = ended("arq", "app.core.worker.settings.WorkerSettings")
    assert done.returncode == 1
    assert "have REDIS_QUEUE_URL name another" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def ended(*words: str) -> subprocess.CompletedProcess[str]:
    """A process of ours, once it has ended by itself."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]], cwd=ROOT / "src", capture_output=True, text=True, check=False, timeout=30
    )
