"""Where PostgreSQL is: a URL in the form of libpq, with all its parameters, translated for asyncpg.

    postgresql://user:password@host:5432,host:5432/database?name=value&name=value

The parameters are those of https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS. Each is
translated, ignored where that changes nothing that was asked for, or refused. Parameters of other drivers are, too.
"""

import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import URL

from app.core.db.address_parameters import AddressError, Parameters
from app.core.db.tls import MODES, SYSTEM, TLS, VERSIONS

DRIVER: Final = "postgresql+asyncpg"
PORT: Final = 5432

Host = tuple[str, int]  # a name, an address or the folder of a socket; a port

_FORM: Final = re.compile(
    r"postgres(?:ql)?(?:\+\w+)?://(?:(?P<user>[^:/@?]*)(?::(?P<password>[^@]*))?@)?(?P<hosts>[^/?@]*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")

_SESSION_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_ENCRYPTED: Final = MODES[MODES.index("require") :]
_FILES: Final = ("sslcert", "sslkey", "sslpassword", "sslcrl", "sslcrldir")
_VERSIONS: Final = ("ssl_min_protocol_version", "ssl_max_protocol_version")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """An address, for SQLAlchemy with asyncpg.

    Attributes:
        url: hosts, user, password and database.
        tls: how connections are encrypted.
        arguments: further arguments of `asyncpg.connect`.
        server_settings: what the server is told at the start of each connection.
        notes: a text for each parameter that has no effect, or another one than its name says.
        is_pgbouncer: whether the URL says that PgBouncer is in between, in transaction mode.
    """

    url: URL
    tls: TLS = field(default_factory=TLS)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    server_settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_pgbouncer: bool = False

    def connect_arguments(self) -> dict[str, Any]:
        """Return the arguments of `asyncpg.connect` that the URL does not have, but for `server_settings`.

        They are complete: an environment variable of libpq (`PGSSLMODE`, ...) changes nothing that the address says
        or leaves at its default.

        Raises: TLSFileError.
        """
        return {
            "ssl": self.tls.argument(),
            "direct_tls": self.tls.direct,
            "target_session_attrs": "any",
            "gsslib": "sspi" if os.name == "nt" else "gssapi",
            **self.arguments,
        }


def parse_address(text: str) -> PostgresAddress:
    """Return the address that a URL names.

    Raises: AddressError about one parameter; ValueError where it is no such URL. Neither has a value of it.
    """
    text = text.strip()
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise ValueError("not a URL of PostgreSQL")
    if _BAD_ESCAPE.search(text):
        raise AddressError("must have %25 in place of a % that does not begin an escape such as %40")
    parameters = Parameters(parts["query"] or "")
    hosts = _hosts(parts["hosts"], parameters)
    user = parameters.take("user") or unquote(parts["user"] or "") or _system_user()
    password = parameters.take("password") or unquote(parts["password"] or "") or None
    database = parameters.take("dbname") or parameters.take("database") or unquote(parts["database"] or "") or user
    tls = _tls(parameters, hosts)
    hosts = _with_addresses(hosts, parameters.take("hostaddr"), tls)
    arguments = _arguments(parameters)
    server_settings = {
        name: value for name in ("application_name", "options") if (value := parameters.take(name)) is not None
    }
    is_pgbouncer = parameters.choice("pgbouncer", ("false", "true")) == "true"
    parameters.end()
    if hosts[0][0]:
        names, ports = zip(*hosts, strict=True)
        arguments |= {"host": list(names), "port": list(ports)}
    url = _url(hosts, tls).set(username=user, password=password, database=database)
    return PostgresAddress(url, tls, arguments, server_settings, tuple(parameters.notes), is_pgbouncer)


def _url(hosts: list[Host], tls: TLS) -> URL:
    host, port = hosts[0]
    url = URL.create(DRIVER, host=host or None, port=port)
    if len(hosts) > 1 or host.startswith("/"):
        names, ports = zip(*hosts, strict=True)
        url = URL.create(DRIVER, query={"host": ",".join(names), "port": ",".join(map(str, ports))})
    return url if tls.mode == TLS().mode else url.update_query_dict({"ssl": tls.mode})


def _system_user() -> str:
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (KeyError, OSError):
        raise AddressError("has to name a user: the system has no name for the one that runs this process") from None


# ---- Hosts ----


def _hosts(authority: str, parameters: Parameters) -> list[Host]:
    """The hosts with their ports; one without a name where none is given, for asyncpg to look for a socket."""
    written = parameters.take("host")
    names = [unquote(part) for part in authority.split(",")] if written is None else written.split(",")
    hosts = [_host(name) for name in names]
    if len(hosts) > 1 and not all(name for name, _ in hosts):
        raise AddressError("must not have an empty name in its list of hosts")
    ports = parameters.take("port")
    if ports is None:
        return [(name, _port(port)) for name, port in hosts]
    listed = ports.split(",")
    if len(listed) not in (1, len(hosts)):
        raise AddressError("must have one port, or as many as it has hosts")
    each = listed * len(hosts) if len(listed) == 1 else listed
    return [(name, _port(port)) for (name, _), port in zip(hosts, each, strict=True)]


def _host(text: str) -> tuple[str, str]:
    if text.startswith("/") or (text.count(":") > 1 and not text.startswith("[")):
        return text, ""  # the folder of a socket, or an IPv6 address of the `host` parameter
    parts = _HOST.fullmatch(text)
    if parts is None or text.startswith("@"):  # an abstract socket, which asyncpg cannot open
        raise AddressError("must have host names, IP addresses (IPv6 in brackets) or folders of sockets as its host")
    return parts["host"].strip("[]"), parts["port"] or ""


def _port(text: str) -> int:
    if text and not (text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise AddressError("must have a number from 1 to 65535 as its port")
    return int(text or PORT)


def _with_addresses(hosts: list[Host], written: str | None, tls: TLS) -> list[Host]:
    """`hostaddr` has the addresses to connect to, and `host` the names that certificates are checked for."""
    if written is None:
        return hosts
    addresses = written.split(",")
    is_named = any(name for name, _ in hosts)
    if is_named and tls.mode == "verify-full":
        raise AddressError("must not have the parameter hostaddr with sslmode=verify-full: leave it out")
    if not is_named:
        hosts *= len(addresses)
    if len(addresses) != len(hosts):
        raise AddressError("must have as many addresses in hostaddr as it has hosts")
    return [(address, port) for address, (_, port) in zip(addresses, hosts, strict=True)]


# ---- TLS ----


def _tls(parameters: Parameters, hosts: list[Host]) -> TLS:
    mode = _mode(parameters)
    root = parameters.take("sslrootcert")
    if root == SYSTEM and mode is None:
        mode = "verify-full"
    if root == SYSTEM and mode != "verify-full":
        raise AddressError(f"must have sslmode=verify-full where sslrootcert is {SYSTEM}")
    if parameters.pop_if("channel_binding", "require"):
        mode = _instead_of_channel_binding(mode, hosts, parameters)
    files = {name: parameters.take(name) for name in _FILES}
    versions = {name: parameters.choice(name, tuple(VERSIONS)) for name in _VERSIONS}
    direct = parameters.choice("sslnegotiation", ("postgres", "direct")) == "direct"
    certificates = parameters.choice("sslcertmode", ("allow", "disable"))
    given = {"sslrootcert": root, **files, **versions, "sslnegotiation=direct": direct or None}
    for name, value in given.items():
        if value is not None and mode not in _ENCRYPTED:
            raise AddressError(f"needs sslmode=require, verify-ca or verify-full for its {name}")
    return TLS(
        mode or TLS().mode,
        root=root,
        certificate="" if certificates == "disable" else files["sslcert"],
        key=files["sslkey"],
        key_password=files["sslpassword"] or "",
        crl=files["sslcrl"],
        crl_folder=files["sslcrldir"],
        minimum=versions["ssl_min_protocol_version"],
        maximum=versions["ssl_max_protocol_version"],
        direct=direct,
    )


def _mode(parameters: Parameters) -> str | None:
    """`ssl=true` is of JDBC and libpq takes it; `ssl` with a mode is of asyncpg; `requiressl` is of old releases."""
    others = {"true": "require", "false": "disable"}
    short = parameters.choice("ssl", (*others, *MODES))
    required = parameters.choice("requiressl", ("0", "1"))
    mode = parameters.choice("sslmode", MODES) or others.get(short or "", short)
    return mode or ("require" if required == "1" else None)


def _instead_of_channel_binding(mode: str | None, hosts: list[Host], parameters: Parameters) -> str:
    """Channel binding proves that nobody is in between. asyncpg has none, and the server's certificate proves that too.

    See docs/decisions/0038-channel-binding-becomes-verify-full.md.
    """
    if mode in {"disable", "allow"} or any(name.startswith("/") for name, _ in hosts):
        raise AddressError("must be one of TLS for channel_binding=require: with sslmode=require and no socket")
    parameters.notes.append("channel_binding=require is replaced by sslmode=verify-full, as asyncpg has none")
    return "verify-full"


# ---- Further arguments ----


def _arguments(parameters: Parameters) -> dict[str, Any]:
    found: dict[str, Any] = {
        "target_session_attrs": parameters.choice("target_session_attrs", _SESSION_ATTRIBUTES),
        "gsslib": parameters.choice("gsslib", ("gssapi", "sspi")),
        "krbsrvname": parameters.take("krbsrvname"),
        "passfile": parameters.take("passfile"),
        "statement_cache_size": parameters.number("statement_cache_size"),
        "prepared_statement_cache_size": parameters.number("prepared_statement_cache_size"),
    }
    seconds = parameters.number("connect_timeout")
    if seconds is not None and seconds > 0:
        found["timeout"] = float(seconds)
    elif seconds is not None:
        parameters.notes.append("connect_timeout without a limit is ignored")
    return {name: value for name, value in found.items() if value is not None}
