"""TLS with PostgreSQL, on a real PgBouncer whose certificate is for 127.0.0.1 and of its own authority."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api import build_router
from app.core.config import Settings, get_settings
from app.core.db.engine import DatabaseUnavailable, create_engine, create_migration_engine
from app.core.setup import create_application
from scripts.embedded import Postgres, scratch_folder
from scripts.unprivileged import data_folder
from tests import postgres_topologies
from tests.conftest import client_of
from tests.smtp_server import self_signed_certificate

pytestmark = pytest.mark.anyio

Engine = Callable[[Settings], AsyncEngine]
ENGINES: list[Engine] = [
    lambda settings: create_engine(settings, pool_size=1),
    lambda settings: create_migration_engine(settings, 5.0),
]


@dataclass(frozen=True)
class Server:
    """PgBouncer with TLS.

    Attributes:
        port: where it listens.
        certificate: the file with its certificate.
        other: a file with a certificate that has not signed it.
    """

    port: int
    certificate: Path
    other: Path

    def url(self, query: str, host: str = "127.0.0.1") -> str:
        login = f"{os.environ['POSTGRES_USER']}:{quote(os.environ['POSTGRES_PASSWORD'])}"
        query = query.format(certificate=self.certificate, other=self.other)
        return f"postgresql://{login}@{host}:{self.port}/{os.environ['POSTGRES_DB']}?pgbouncer=true&{query}"


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, scratch_folder() as folder:
        file = data_folder(folder / "tls") / "certificate.pem"
        file.write_bytes(self_signed_certificate(tmp_path_factory.mktemp("own")).read_bytes())
        file.chmod(0o644)  # PgBouncer runs as another user where we are root.
        tls = f"client_tls_sslmode = allow\nclient_tls_key_file = {file}\nclient_tls_cert_file = {file}\n"
        patch.setattr(postgres_topologies, "BOUNCER", postgres_topologies.BOUNCER + tls)
        other = self_signed_certificate(tmp_path_factory.mktemp("other"))
        with postgres_topologies.pgbouncer_before(postgres.port) as port:
            yield Server(port, file, other)


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


async def is_encrypted(engine: AsyncEngine) -> bool:
    try:
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            return driver._transport.get_extra_info("ssl_object") is not None
    finally:
        await engine.dispose()


@pytest.mark.parametrize("engine_of", ENGINES, ids=["requests", "migrations"])
@pytest.mark.parametrize(
    "query",
    [
        "sslmode=require",
        "sslmode=prefer",
        "",
        "ssl=true",
        "sslmode=verify-ca&sslrootcert={certificate}",
        "sslmode=verify-full&sslrootcert={certificate}",
        "sslmode=require&channel_binding=require&sslrootcert={certificate}",
    ],
)
async def test_an_encrypted_connection(database: str, server: Server, query: str, engine_of: Engine) -> None:
    assert await is_encrypted(engine_of(Settings(POSTGRES_URL=server.url(query))))


@pytest.mark.parametrize("engine_of", ENGINES, ids=["requests", "migrations"])
@pytest.mark.parametrize(
    ("query", "host"),
    [
        ("sslmode=require&sslrootcert={other}", "127.0.0.1"),
        ("sslmode=verify-ca&sslrootcert={other}", "127.0.0.1"),
        ("sslmode=verify-full&sslrootcert={other}", "127.0.0.1"),
        ("sslmode=verify-full&sslrootcert={certificate}", "localhost"),
        ("sslmode=verify-full", "127.0.0.1"),
        ("sslmode=verify-full&sslrootcert=system", "127.0.0.1"),
        ("sslmode=require&channel_binding=require", "127.0.0.1"),
    ],
)
async def test_a_server_that_is_not_the_right_one_is_refused(
    database: str, server: Server, query: str, host: str, engine_of: Engine
) -> None:
    with pytest.raises((DatabaseUnavailable, OSError)) as refused:
        await is_encrypted(engine_of(Settings(POSTGRES_URL=server.url(query, host))))
    assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value.__cause__ or refused.value)


async def test_the_certificate_of_another_host_is_enough_where_only_the_authority_counts(
    database: str, server: Server
) -> None:
    url = server.url("sslmode=verify-ca&sslrootcert={certificate}", host="localhost")
    assert await is_encrypted(create_engine(Settings(POSTGRES_URL=url), pool_size=1))


async def test_required_tls_is_not_weakened_by_a_server_without(settings: Settings, database: str) -> None:
    url = settings.postgres_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable):
        await is_encrypted(create_engine(Settings(POSTGRES_URL=f"{url}?sslmode=require"), pool_size=1))


async def test_variables_of_libpq_change_nothing(settings: Settings, database: str) -> None:
    variables = {
        "PGSSLMODE": "verify-full",
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "x",
        "PGSERVICE": "x",
    }
    variables |= {"PGPASSWORD": "x", "PGSSLNEGOTIATION": "direct", "PGDATABASE": "x"}
    with pytest.MonkeyPatch.context() as patched:  # The tests' own connections go by them.
        for name, value in variables.items():
            patched.setenv(name, value)
        for engine_of in ENGINES:
            assert not await is_encrypted(engine_of(settings))


async def test_the_application_runs_on_the_url_of_a_hoster(
    database: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))  # in place of a public authority
    monkeypatch.setenv("POSTGRES_URL", server.url("sslmode=require&channel_binding=require&connect_timeout=10"))
    get_settings.cache_clear()
    settings = get_settings()
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("ready")).json()["dependencies"]["postgres"] == "up"
        answer = await client.post("login", data={"username": "nobody", "password": "wrong"})
        assert answer.status_code == 401
