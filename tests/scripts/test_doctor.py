"""The doctor: each fault is provoked on real servers, and its line says what to do; no line ever holds a secret."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from ssl import CERT_OPTIONAL, CERT_REQUIRED, PROTOCOL_TLS_SERVER, SSLContext, VerifyMode
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.config import AppSettings, Settings, get_settings
from app.core.db import engine as engines
from app.core.db.replica import REMEMBERED
from app.core.doctor import (
    Finding,
    Fleet,
    Outcome,
    clock,
    connections_of_web,
    connections_of_worker,
    database_facts,
    examination,
    examine,
    mail,
    valkey_facts,
)
from app.core.doctor.clock import Clock
from app.core.doctor.database import judge_version
from app.core.doctor.replica import judge_lag
from app.core.doctor.valkey import judge_server, servers_of
from app.core.setup import create_application
from app.core.worker.opened import open_worker
from scripts import doctor
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from scripts.unprivileged import data_folder
from tests import postgres_topologies
from tests.conftest import Execute, a_postgres, connect
from tests.postgres_topologies import standby_of
from tests.processes import ROOT, process, running_worker, wait_for_worker
from tests.redis_topologies import Node, redis_cluster, watched_by_sentinels
from tests.smtp_server import SMTPServer, self_signed_certificate

pytestmark = pytest.mark.anyio

STRONG = "kP3-vb8Qz_LwX0rT7uYc1mN5sJ2hG4fD"
SECRET = "canary-7f3a9c-of-the-doctor"
BEYOND = "0.0.0.0"  # noqa: S104 -- reaches this machine as well, and is no loopback address
OK, WARNING, FAILED = Outcome.OK, Outcome.WARNING, Outcome.FAILED
Settle = Callable[..., Settings]


@pytest.fixture
def settle(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settle]:
    """Settings in which these values have changed."""

    def settle(**values: object) -> Settings:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        get_settings.cache_clear()
        return get_settings()

    yield settle
    monkeypatch.undo()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A Valkey of this module alone, for tests to set up in any way; `as_it_was` undoes that."""
    with scratch_folder() as folder, Node(folder / "valkey") as node:
        yield node


@pytest.fixture
def server(node: Node) -> Iterator[Node]:
    """The same, as it was."""
    yield node
    node.client.execute_command("REPLICAOF", "NO", "ONE")
    node.client.config_set("maxmemory", 0)
    node.client.config_set("maxmemory-policy", "noeviction")
    node.client.config_set("requirepass", "")


async def lines(settings: Settings, fleet: Fleet | None = None) -> dict[str, Finding]:
    """What is found, by the check."""
    return {finding.check: finding for finding in await examine(settings, fleet or Fleet())}


def outcomes(found: dict[str, Finding], *but: str) -> set[Outcome]:
    """How all checks ended whose names do not begin with one of these."""
    return {finding.outcome for check, finding in found.items() if not check.startswith(but or ("nothing",))}


# ---- The command ----


def run(*words: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "src.scripts.doctor", *words],
        cwd=ROOT,
        env=os.environ | values,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_where_all_is_well_no_line_says_otherwise(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch_folder() as folder, ExitStack() as stack:
        valkey = stack.enter_context(Valkey(folder / "valkey", port=free_port(), durable=True))
        for use in ("CACHE", "QUEUE", "RATE_LIMIT"):
            monkeypatch.setenv(f"REDIS_{use}_PORT", str(valkey.port))
        settings = "src.app.core.worker.settings."
        stack.enter_context(running_worker(valkey.port, f"{settings}WorkerSettings"))
        wait_for_worker(stack.enter_context(process("arq", f"{settings}LongWorkerSettings")), valkey.port)

        done = run()
        assert (done.returncode, done.stderr) == (0, "")
        found = done.stdout.splitlines()
        assert len(found) > 15
        assert [line for line in found if not line.startswith("ok ")] == []
        assert [line for line in found if "workers: arq:queue: 1 seen, the last" in line]
        assert [line for line in found if "workers: arq:queue:long: 1 seen, the last" in line]

        told = json.loads(run("--json", "--workers", "2", WEB_CONCURRENCY="3").stdout)
        assert told["ok"] is True
        (connections,) = [finding for finding in told["findings"] if finding["check"] == "database: connections"]
        assert connections["text"].startswith("3 web x 12 + 2 worker x 34 + 1 long worker x 11 = 115 of ")


def test_a_number_of_processes_is_a_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", "--workers", "many"])
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    assert stopped.value.code == 2
    assert "'many' is not a number of processes" in capsys.readouterr().err


def test_a_failure_is_an_exit_code(settings: Settings) -> None:
    done = run(POSTGRES_PORT=str(free_port()), REDIS_QUEUE_PORT=str(free_port()))
    assert done.returncode == 1
    assert "Remedy: start PostgreSQL there, or correct POSTGRES_SERVER and POSTGRES_PORT" in done.stdout
    assert "valkey (queue): 127.0.0.1:" in done.stdout
    assert "Remedy: start it, or correct REDIS_QUEUE_URL" in done.stdout
    assert "schema" not in done.stdout  # Of a database that is away there is nothing more to say.


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_broken_settings_are_all_there_is_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "x")
    monkeypatch.setenv("SECRET_KEY", "short")
    monkeypatch.setattr(sys, "argv", ["doctor", *form])
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    get_settings.cache_clear()
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "POSTGRES_PORT must be a TCP port, 1 to 65535" in said
    assert "SECRET_KEY must be at least 32 random characters" in said
    assert "src/.env" in said
    assert "short" not in said


async def test_weak_settings_are_refused_in_production_and_warned_of_before(settle: Settle) -> None:
    found = await examine(settle(ADMIN_PASSWORD="admin", PASSWORD_RESET_URL="http://front.example/reset"), Fleet())
    weak = [finding for finding in found if finding.check == "settings" and finding.outcome is WARNING]
    assert [finding.remedy.split()[1] for finding in weak] == ["ADMIN_PASSWORD", "PASSWORD_RESET_URL"]

    done = run(ENVIRONMENT="production", SECRET_KEY=STRONG, ADMIN_PASSWORD="admin")
    assert done.returncode == 1
    assert "failed   settings: ADMIN_PASSWORD must not be an example" in done.stdout


# ---- PostgreSQL ----


async def test_a_database_that_is_not_migrated(settle: Settle, empty_database: str) -> None:
    found = await lines(settle())
    assert found["schema"].outcome is FAILED
    assert "run `make migrate`" in found["schema"].remedy


async def test_a_schema_that_is_behind_or_ahead(settle: Settle, database: str) -> None:
    settings = settle()
    await in_database(database, "UPDATE alembic_version SET version_num = '0001'")
    found = await lines(settings)
    assert (found["schema"].outcome, found["schema"].text[:17]) == (FAILED, "at 0001, behind 0")
    assert "alembic upgrade head" in found["schema"].remedy

    await in_database(database, "UPDATE alembic_version SET version_num = 'of tomorrow'")
    assert (await lines(settings))["schema"].outcome is WARNING


async def in_database(name: str, statement: str) -> None:
    connection = await connect(name)
    await connection.execute(statement)
    await connection.close()


async def test_a_read_only_database(settle: Settle, execute: Execute, database: str) -> None:
    await asyncio.to_thread(execute, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    found = (await lines(settle()))["database: writing"]
    assert found.outcome is FAILED
    assert "RESET default_transaction_read_only" in found.remedy


async def test_more_connections_than_there_are(settle: Settle, execute: Execute, database: str) -> None:
    found = (await lines(settle(), Fleet(web=9)))["database: connections"]
    assert (found.outcome, found.is_certain) == (OK, False)

    found = (await lines(settle(), Fleet(web=20)))["database: connections"]
    assert found.outcome is FAILED
    assert "20 web x 12 + 1 worker x 34 + 1 long worker x 11 = 285 of 19" in found.text
    assert "max_connections 200, 3 reserved" in found.text
    assert "set max_connections to 28" in found.remedy
    assert "POSTGRES_POOL_SIZE" in found.remedy

    behind = (await lines(settle(POSTGRES_POOL_MODE="transaction"), Fleet(web=20)))["database: connections"]
    assert behind.outcome is OK
    assert "its max_client_conn has to be 285 or more" in behind.text

    settle(POSTGRES_POOL_MODE="session")
    await asyncio.to_thread(execute, f"ALTER DATABASE {database} CONNECTION LIMIT 50")
    found = (await lines(settle()))["database: connections"]
    assert found.outcome is FAILED
    assert "= 57 of 50" in found.text
    assert "50 for the database" in found.text


async def test_another_encoding(settle: Settle, execute: Execute) -> None:
    options = "ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
    await asyncio.to_thread(execute, f"CREATE DATABASE in_ascii {options}")
    found = (await lines(settle(POSTGRES_DB="in_ascii")))["database: encoding"]
    await asyncio.to_thread(execute, "DROP DATABASE in_ascii WITH (FORCE)")
    assert (found.outcome, found.is_certain) == (FAILED, True)
    assert "ENCODING 'UTF8'" in found.remedy


async def test_a_superuser_and_a_socket(settle: Settle, postgres: Postgres, database: str) -> None:
    where = f"host={quote(str(postgres._socket_folder))}&port={postgres.port}"
    found = await lines(settle(POSTGRES_URL=f"postgresql://embedded_owner@/{database}?{where}"))
    assert found["database: role"].outcome is WARNING
    assert "NOSUPERUSER" in found["database: role"].remedy
    assert found["database: TLS"].outcome is OK


async def test_a_database_beyond_this_machine_without_tls(settle: Settle) -> None:
    found = (await lines(settle(POSTGRES_SERVER=BEYOND)))["database: TLS"]
    assert found.outcome is WARNING
    assert "sslmode=require" in found.remedy


async def test_a_host_in_the_query_is_a_host(settle: Settle, database: str) -> None:
    where = f"host={BEYOND}&port={os.environ['POSTGRES_PORT']}"
    url = f"postgresql://tester:{quote(os.environ['POSTGRES_PASSWORD'])}@/{database}?{where}"
    found = await lines(settle(POSTGRES_URL=url))
    assert BEYOND in found["database"].text
    assert found["database: TLS"].outcome is WARNING


async def test_tls_is_that_of_our_own_connection(
    settle: Settle, postgres: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PgBouncer here, which speaks none with the server; pg_stat_ssl knows of that only."""
    where = {"POSTGRES_SERVER": BEYOND, "POSTGRES_DB": database, "POSTGRES_POOL_MODE": "transaction"}
    with scratch_folder() as folder:
        certificate = data_folder(folder / "tls") / "certificate.pem"
        certificate.write_bytes(self_signed_certificate(tmp_path).read_bytes())
        certificate.chmod(0o644)  # PgBouncer runs as somebody else where we are root.
        tls = f"client_tls_sslmode = allow\nclient_tls_key_file = {certificate}\nclient_tls_cert_file = {certificate}\n"
        monkeypatch.setattr(postgres_topologies, "BOUNCER", postgres_topologies.BOUNCER + tls)
        with postgres_topologies.pgbouncer_before(postgres.port) as port:
            settings = settle(**where, POSTGRES_PORT=port)
            async with database_facts.connected(settings) as connection:
                theirs = await connection.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
                assert not theirs.scalar_one()
            assert (await lines(settings))["database: TLS"].text == "encrypted"

            login = f"tester:{quote(os.environ['POSTGRES_PASSWORD'])}"
            url = f"postgresql://{login}@{BEYOND}:{port}/{database}?sslmode=disable"
            found = (await lines(settle(POSTGRES_URL=url)))["database: TLS"]
            assert found.outcome is WARNING
            assert "client_tls_sslmode" in found.remedy


async def test_a_wrong_password(settle: Settle) -> None:
    right = os.environ["POSTGRES_PASSWORD"]
    found = (await lines(settle(POSTGRES_PASSWORD=SECRET)))["database"]
    settle(POSTGRES_PASSWORD=right)
    assert found.outcome is FAILED
    assert 'password authentication failed for user "tester"' in found.text


async def test_a_limit_of_the_role(settle: Settle, postgres: Postgres) -> None:
    as_owner(postgres, "ALTER ROLE tester CONNECTION LIMIT 40")
    found = (await lines(settle()))["database: connections"]
    as_owner(postgres, "ALTER ROLE tester CONNECTION LIMIT -1")
    assert found.outcome is FAILED
    assert "= 57 of 40" in found.text
    assert "40 for the role" in found.text


def as_owner(postgres: Postgres, statement: str) -> None:
    """Has the cluster's superuser run this."""
    where = ["-h", str(postgres._socket_folder), "-p", str(postgres.port), "-U", "embedded_owner", "-d", "postgres"]
    postgres._run(["psql", "-X", "-q", *where, "-c", statement])


async def test_servers_that_are_too_old(settle: Settle) -> None:
    facts = await database_facts.ask(settle())
    old = judge_version(replace(facts, version=130_020, version_name="13.20"))
    assert (judge_version(facts).outcome, old.outcome, old.is_certain) == (OK, FAILED, True)
    assert "upgrade to PostgreSQL 14" in old.remedy

    (used,) = servers_of(settle())
    (answered,) = await valkey_facts.ask(used.url)
    assert answered.info is not None
    of_redis = {"redis_version": "6.2.14", "role": "master"}
    assert [finding.outcome for finding in judge_server(used, answered)] == [OK]
    (old,) = judge_server(used, replace(answered, info=of_redis))
    assert old.outcome is FAILED
    assert "run Redis 7 or newer, or any Valkey" in old.remedy


# ---- The replica ----


async def test_a_replica(settle: Settle, postgres: Postgres, database: str) -> None:
    with standby_of(postgres) as standby:
        url = f"postgresql://tester:{quote(os.environ['POSTGRES_PASSWORD'])}@{BEYOND}:{standby.port}/{database}"
        found = await lines(settle(POSTGRES_READ_URL=url))
        assert outcomes({check: line for check, line in found.items() if "replica" in check}, "replica: TLS") == {OK}
        assert found["replica: origin"].text == "a replica of the primary"
        assert found["replica: TLS"].outcome is WARNING

        found = await lines(settle(POSTGRES_POOL_SIZE=500))
        assert found["replica: connections"].outcome is FAILED
        settle(POSTGRES_POOL_SIZE=10)

        # What is not flushed is sent to nobody, and these servers take their time by default.
        await in_database(database, "SET synchronous_commit = on; CREATE TABLE new (number int)")
        await _lag_once(settle(), lambda lag: lag.text == "it has all that the primary has")
        await asyncio.to_thread(standby.pause)
        await in_database(database, "SET synchronous_commit = on; DROP TABLE new")
        lag = (await lines(settle()))["replica: lag"]
        assert "bytes behind the primary; it has taken over the last transaction" in lag.text
        assert lag.outcome is OK  # It is paused for less than seconds.
        await asyncio.to_thread(standby.resume)

        assert postgres.process is not None
        postgres.process.send_signal(signal.SIGSTOP)
        try:
            found = await lines(settle())
        finally:
            postgres.process.send_signal(signal.SIGCONT)
        of_replica = {check: line.outcome for check, line in found.items() if "replica" in check}
        assert found["database"].outcome is FAILED
        assert of_replica.pop("replica: origin") is of_replica.pop("replica: lag") is WARNING
        assert of_replica == {
            "replica": OK,
            "replica: TLS": WARNING,
            "replica: connections": OK,
            "clock: replica": OK,
        }

        found = await lines(settle(POSTGRES_SERVER="127.0.0.1", POSTGRES_URL=url))
        assert found["database: writing"].outcome is FAILED
        assert "POSTGRES_READ_URL" in found["database: writing"].remedy


async def test_a_replica_that_has_lost_its_primary(settle: Settle, postgres: Postgres, database: str) -> None:
    with standby_of(postgres) as standby:
        url = f"postgresql://tester:{quote(os.environ['POSTGRES_PASSWORD'])}@127.0.0.1:{standby.port}/{database}"
        assert (await lines(settle(POSTGRES_READ_URL=url)))["replica: lag"].text == "it has all that the primary has"

        await asyncio.to_thread(standby.ask, "ALTER SYSTEM SET primary_conninfo = ''")
        await asyncio.to_thread(standby.ask, "SELECT pg_reload_conf()")
        await in_database(database, "CREATE TABLE new (number int)")
        found = await _lag_once(settle(), lambda lag: "bytes behind" in lag.text and lag.outcome is WARNING)
        assert "is not connected to where its log comes from" in found.text
        assert "primary_conninfo" in found.remedy


async def _lag_once(settings: Settings, holds: Callable[[Finding], bool]) -> Finding:
    """The finding, as soon as it is such."""
    patience = time.monotonic() + 20
    while not holds(found := (await lines(settings))["replica: lag"]):
        assert time.monotonic() < patience, found
    return found


async def test_a_replica_that_is_none(settle: Settle, postgres: Postgres, database: str) -> None:
    password = quote(os.environ["POSTGRES_PASSWORD"])
    itself = f"postgresql://tester:{password}@127.0.0.1:{postgres.port}/{database}"
    found = (await lines(settle(POSTGRES_READ_URL=itself)))["replica: origin"]
    assert (found.outcome, found.is_certain) == (WARNING, False)

    with scratch_folder() as folder, a_postgres(data_folder(folder / "other"), free_port()) as other:
        url = f"postgresql://tester:{password}@127.0.0.1:{other.port}/tester"
        found = (await lines(settle(POSTGRES_READ_URL=url)))["replica: origin"]
    assert (found.outcome, found.is_certain) == (FAILED, True)
    assert "have POSTGRES_READ_URL name a streaming replica" in found.remedy

    found = (await lines(settle()))["replica"]
    assert found.outcome is FAILED
    assert "correct POSTGRES_READ_URL" in found.remedy


@pytest.mark.parametrize(
    ("seconds", "position", "is_receiving", "outcome"),
    [
        (0.5, 100, True, OK),
        (60, 100, True, WARNING),
        (REMEMBERED + 1, 100, True, FAILED),
        (None, 100, True, WARNING),  # It has taken over nothing since its start.
        (REMEMBERED + 1, 200, True, OK),  # Nobody has written anything since.
        (REMEMBERED + 1, 200, False, WARNING),
        (0.5, 100, False, WARNING),
        (REMEMBERED + 1, 100, False, FAILED),
    ],
)
async def test_a_lag(
    settle: Settle, seconds: float | None, position: int, is_receiving: bool, outcome: Outcome
) -> None:
    primary = replace(await database_facts.ask(settle()), position=200)
    facts = replace(primary, is_replica=True, lag=seconds, position=position, is_receiving=is_receiving)
    assert judge_lag(facts, primary).outcome is outcome


# ---- Redis/Valkey ----


@pytest.mark.parametrize(
    ("policy", "maxmemory", "cache", "limits", "queue", "is_certain"),
    [
        ("noeviction", 0, OK, OK, OK, False),
        ("noeviction", 10**8, WARNING, OK, OK, False),
        ("allkeys-lru", 0, OK, WARNING, WARNING, False),
        ("allkeys-lru", 10**8, OK, FAILED, FAILED, True),
        ("volatile-ttl", 10**8, OK, FAILED, FAILED, False),
    ],
)
async def test_what_a_full_server_does(
    settle: Settle,
    server: Node,
    policy: str,
    maxmemory: int,
    cache: Outcome,
    limits: Outcome,
    queue: Outcome,
    is_certain: bool,
) -> None:
    server.client.config_set("maxmemory-policy", policy)
    server.client.config_set("maxmemory", maxmemory)
    found = await lines(settle(**dict.fromkeys(PORTS, server.port)))
    of = {use: found[f"valkey {use}: eviction"] for use in ("cache", "limits", "queue")}
    assert [of[use].outcome for use in of] == [cache, limits, queue]
    assert [of[use].is_certain for use in of] == [False, is_certain, is_certain]
    for use in ("limits", "queue"):
        if of[use].outcome is not OK:
            assert "CONFIG SET maxmemory-policy noeviction" in of[use].remedy
    if cache is WARNING:
        assert "have REDIS_CACHE_URL name a server of its own" in of["cache"].remedy


PORTS = ("REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT")


async def test_a_cache_of_its_own_is_to_evict(settle: Settle, server: Node) -> None:
    server.client.config_set("maxmemory", 10**8)
    found = (await lines(settle(REDIS_CACHE_PORT=server.port)))["valkey cache: eviction"]
    assert found.outcome is WARNING
    assert "CONFIG SET maxmemory-policy allkeys-lru" in found.remedy


async def test_a_server_without_password(settle: Settle, server: Node) -> None:
    check = "valkey (cache): password"
    found = (await lines(settle(REDIS_CACHE_HOST=BEYOND, REDIS_CACHE_PORT=server.port)))[check]
    assert found.outcome is WARNING
    assert "set requirepass" in found.remedy
    assert "REDIS_CACHE_URL" in found.remedy
    assert (await lines(settle(ENVIRONMENT="production", SECRET_KEY=STRONG)))[check].outcome is FAILED

    # Whoever says a password may be let in for it, and everybody else as well.
    server.client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "allkeys", "+@all")
    url = f"redis://app:{SECRET}@{BEYOND}:{server.port}/0"
    assert (await lines(settle(REDIS_CACHE_URL=url)))[check].outcome is FAILED


async def test_a_server_with_a_password(settle: Settle, server: Node) -> None:
    server.client.config_set("requirepass", SECRET)
    found = await lines(settle(REDIS_CACHE_URL=f"redis://:{SECRET}@{BEYOND}:{server.port}/0"))
    server.client.execute_command("AUTH", SECRET)
    assert found["valkey (cache): password"].outcome is OK
    assert found["valkey (cache): TLS"].outcome is WARNING
    assert "begin with rediss" in found["valkey (cache): TLS"].remedy

    for login in ("", f":not-{SECRET}@"):
        found = await lines(settle(REDIS_CACHE_URL=f"redis://{login}127.0.0.1:{server.port}/0"))
        assert found["valkey (cache)"].outcome is FAILED
        assert "password" in found["valkey (cache)"].remedy
        assert SECRET not in repr(found)


async def test_a_server_that_asks_for_a_certificate(settle: Settle, server: Node, tmp_path: Path) -> None:
    certificate = self_signed_certificate(tmp_path)
    query = f"ssl_cert_reqs=none&ssl_certfile={certificate}&ssl_keyfile={certificate}"
    for asks, outcome, words in ((CERT_REQUIRED, OK, "it asks for a certificate"), (CERT_OPTIONAL, FAILED, "lets in")):
        async with _behind_tls(server.port, certificate, asks) as port:
            url = f"rediss://{BEYOND}:{port}/0?{query}"
            found = await lines(settle(ENVIRONMENT="production", SECRET_KEY=STRONG, REDIS_CACHE_URL=url))
        assert found["valkey (cache)"].outcome is OK
        assert found["valkey (cache): password"].outcome is outcome
        assert words in found["valkey (cache): password"].text


@asynccontextmanager
async def _behind_tls(behind: int, certificate: Path, asks: VerifyMode) -> AsyncIterator[int]:
    """TLS before a server, for whoever has the certificate. Yields the port. The wheel's Valkey speaks none itself."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = asks

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", behind)
        with suppress(OSError):
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    listening = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("cache", "queue"),
    [
        ("redis://{host}/0", "redis://{host}/1"),
        ("redis://cache:one@{host}/0", "redis://queue:two@{host}/0"),
        ("redis://localhost:{port}/0", "redis://127.0.0.1:{port}"),
        ("redis+cluster://{host},other:7000", "redis://{host}/0"),
        ("redis+sentinel://one,two/name/1", "redis+sentinel://:two@two:26379/name/0"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock"),
    ],
)
def test_one_server_is_one_whatever_the_login_and_the_database(settle: Settle, cache: str, queue: str) -> None:
    where = {"host": "valkey.example:7000", "port": 7000}
    urls = {"REDIS_CACHE_URL": cache.format(**where), "REDIS_QUEUE_URL": queue.format(**where)}
    found = {used.url: used.is_shared for used in servers_of(settle(**urls))}
    assert found == {
        urls["REDIS_CACHE_URL"]: True,
        urls["REDIS_QUEUE_URL"]: True,
        get_settings().redis_rate_limit_url: False,
    }


@pytest.mark.parametrize(
    "queue", ["redis://valkey.example:7001/0", "redis://other.example:7000/0", "redis+sentinel://valkey.example:7000/a"]
)
def test_two_servers_are_two(settle: Settle, queue: str) -> None:
    used = servers_of(settle(REDIS_CACHE_URL="redis://valkey.example:7000/0", REDIS_QUEUE_URL=queue))
    assert [server.is_shared for server in used] == [False] * 3


async def test_what_would_mend_the_cache_does_not_break_the_queue(settle: Settle, server: Node) -> None:
    server.client.config_set("maxmemory", 10**8)
    server.client.execute_command("ACL", "SETUSER", "cache", "on", f">{SECRET}", "allkeys", "+@all")
    cache, queue = f"redis://cache:{SECRET}@127.0.0.1:{server.port}/1", f"redis://cache:wrong@localhost:{server.port}/0"
    found = await lines(settle(REDIS_CACHE_URL=cache, REDIS_QUEUE_URL=queue))
    assert found["valkey cache: eviction"].outcome is WARNING
    assert "have REDIS_CACHE_URL name a server of its own" in found["valkey cache: eviction"].remedy
    assert (found["valkey (cache)"].outcome, found["valkey (queue)"].outcome) == (OK, FAILED)


async def test_who_may_not_ask_everything_is_told_so(settle: Settle, server: Node) -> None:
    server.client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "allkeys", "+@all", "-info", "-dbsize")
    found = await lines(settle(REDIS_QUEUE_URL=f"redis://app:{SECRET}@127.0.0.1:{server.port}/0"))
    assert found["valkey (queue)"].outcome is WARNING
    assert "cannot be seen" in found["valkey (queue)"].text
    assert "+info" in found["valkey (queue)"].remedy
    assert found["workers: arq:queue"].outcome is FAILED


async def test_a_replica_takes_no_changes(settle: Settle, server: Node, valkey: Valkey) -> None:
    server.client.execute_command("REPLICAOF", "127.0.0.1", valkey.port)
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["valkey (queue)"]
    assert found.outcome is FAILED
    assert "have REDIS_QUEUE_URL name the primary" in found.remedy


async def test_a_queue_that_forgets(settle: Settle, server: Node) -> None:
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["valkey queue: persistence"]
    assert found.outcome is WARNING
    assert "CONFIG SET appendonly yes" in found.remedy


async def test_every_primary_of_a_cluster_is_asked(settle: Settle) -> None:
    with redis_cluster() as cluster:
        cluster.primaries[2].client.config_set("maxmemory", 10**8)
        cluster.primaries[2].client.config_set("maxmemory-policy", "allkeys-lfu")
        gone = f"127.0.0.1:{free_port()}"
        url = cluster.url(nodes=cluster.primaries[:1]).replace("//", f"//{gone},")
        found = await examine(settle(REDIS_RATE_LIMIT_URL=url), Fleet())
        servers = [finding for finding in found if finding.check == "valkey (limits)"]
        assert [finding.outcome for finding in servers] == [OK] * 3
        evictions = [finding.outcome for finding in found if finding.check == "valkey limits: eviction"]
        assert sorted(evictions) == [FAILED, OK, OK]

        broken = cluster.primaries[2]
        replica = cluster.replica_of(broken)
        replica.stop()
        broken.stop()
        patience = time.monotonic() + 20
        while not any(FAILED is line.outcome for line in await examine(settle(), Fleet()) if "(limits)" in line.check):
            assert time.monotonic() < patience


async def test_the_primary_is_the_sentinels_word(settle: Settle) -> None:
    with watched_by_sentinels(SECRET, f"{SECRET}2") as watched:
        found = await lines(settle(REDIS_QUEUE_URL=watched.url(), REDIS_CACHE_URL=watched.url("unknown")))
        assert found["valkey (queue)"].text.endswith(watched.primary.address)
        assert found["valkey (queue): password"].text == "it asks for one"
        assert found["valkey (cache)"].outcome is FAILED
        assert SECRET not in repr(found)


# ---- Time ----


async def test_a_clock_that_is_wrong(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall_clock", lambda: time.time() - 60)
    found = await lines(settle())
    for server in ("database", "valkey (cache, limits, queue)"):
        assert found[f"clock: {server}"].outcome is FAILED
        assert "60.0" in found[f"clock: {server}"].text
        assert "NTP" in found[f"clock: {server}"].remedy


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "outcome"), [(1.9, 0, OK), (2.1, 0, FAILED), (-2.1, 0, FAILED), (9, inf, OK), (3, 2, OK)]
)
def test_a_slow_answer_says_little_about_a_clock(ahead: float, uncertainty: float, outcome: Outcome) -> None:
    assert clock.judge_clock("server", Clock(ahead, uncertainty)).outcome is outcome


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


# ---- Proxies, mail, workers, and what it all adds up to ----


@pytest.mark.parametrize(
    ("trusted", "outcome"),
    [
        ("", OK),
        ("10.0.0.0/8,fc00::/7,unix", OK),
        ("104.16.0.0/13,2400:cb00::/32", OK),
        ("0.0.0.0/0", FAILED),
        ("10.0.0.0/8,::/0", FAILED),
        ("20.0.0.0/8", FAILED),
        ("0.0.0.0/1", FAILED),
    ],
)
async def test_whom_one_believes(settle: Settle, trusted: str, outcome: Outcome) -> None:
    found = (await lines(settle(TRUSTED_PROXIES=trusted)))["proxies"]
    assert found.outcome is outcome
    if outcome is FAILED:
        assert "have TRUSTED_PROXIES name the networks of your own proxies" in found.remedy


async def test_production_is_asked_more(settle: Settle) -> None:
    found = await examine(settle(ENVIRONMENT="production", SECRET_KEY=STRONG, RATE_LIMIT_MODE="shadow"), Fleet())
    remedies = [finding.remedy for finding in found if finding.outcome is WARNING]
    for expected in ("set TRUSTED_PROXIES", "set SMTP_HOST", "set RATE_LIMIT_MODE=enforce"):
        assert [remedy for remedy in remedies if remedy.startswith(expected)], expected


async def test_a_mail_server(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SMTPServer(login=("app", SECRET)) as mails:
        where: dict[str, Any] = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": mails.port, "SMTP_SECURITY": "none"}
        assert (await lines(settle(**where, SMTP_USERNAME="app", SMTP_PASSWORD=SECRET)))["mail"].outcome is OK
        found = (await lines(settle(SMTP_PASSWORD=f"{SECRET}2")))["mail"]
        assert found.outcome is WARNING
        assert "SMTP_PASSWORD" in found.remedy
        assert mails.mails == []
        mails.answers["CONNECT"] = ""
        monkeypatch.setattr(mail, "SECONDS", 0.2)
        assert "does not answer" in (await lines(settle()))["mail"].text
    assert (await lines(settle(SMTP_PORT=free_port())))["mail"].outcome is WARNING


async def test_arqs_own_worker_says_it_in_words(settle: Settle, server: Node) -> None:
    server.client.set("arq:queue:health-check", "Nov-25 12:00:00 j_complete=0", px=31_000)
    found = (await lines(settle(REDIS_QUEUE_PORT=server.port)))["workers: arq:queue"]
    server.client.flushall()
    assert found.outcome is OK


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


# ---- What a process holds ----


async def test_what_is_added_up_is_what_is_opened(settle: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = create_async_engine

    def noted(*words: Any, **values: Any) -> Any:
        opened.append(values["pool_size"] + values["max_overflow"])
        return real(*words, **values)

    monkeypatch.setattr(engines, "create_async_engine", noted)
    settings = get_settings()
    app = create_application(APIRouter(), settings)
    async with app.router.lifespan_context(app):
        assert sum(opened) == connections_of_web(settings)
    opened.clear()
    async with open_worker(settings, max_jobs=7):
        assert sum(opened) == connections_of_worker(7)
