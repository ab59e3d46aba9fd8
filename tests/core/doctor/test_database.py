"""Faults of a PostgreSQL server, provoked on a real one, and what their lines say to do."""

import asyncio
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from app.core.doctor import database_facts
from scripts.embedded import Postgres, scratch_folder
from scripts.unprivileged import data_folder
from tests import postgres_topologies
from tests.conftest import Execute
from tests.doctor_kit import BEYOND, FAILED, OK, SECRET, WARNING, Settle, lines
from tests.smtp_server import self_signed_certificate

pytestmark = pytest.mark.anyio


async def test_a_read_only_database(settle: Settle, execute: Execute, database: str) -> None:
    await asyncio.to_thread(execute, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    found = (await lines(settle()))["database: writing"]
    assert found.outcome is FAILED
    assert "RESET default_transaction_read_only" in found.remedy


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
