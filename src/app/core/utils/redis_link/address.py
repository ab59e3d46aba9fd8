"""Where Redis/Valkey is: one server, a cluster, or whoever the sentinels say.

    redis://user:password@host:6379/0                            one server; rediss:// for TLS, unix:// for a socket
    redis+cluster://user:password@host:7000,host:7001            a cluster, by some of its nodes
    redis+sentinel://user:password@host:26379,host:26379/name/0  the primary called `name`, by its sentinels, whose own
                                                                 password is ?sentinel_password=...

With TLS, the latter two begin with `rediss+`. `valkey` and `valkeys` mean the same as `redis` and `rediss`.
"""

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

Host = tuple[str, int]  # name or address, port

SCHEMES = ("redis", "rediss", "unix")
_ALIASES = {"valkey": "redis", "valkeys": "rediss"}
CLUSTER, SENTINEL = "cluster", "sentinel"
_PORTS = {CLUSTER: 6379, SENTINEL: 26379}
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_OPTIONS = {
    *("host", "port", "path", "db", "username", "password", "connection_class", *_SENTINEL_OPTIONS),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout", "health_check_interval"),
    *("max_connections", "client_name", "lib_name", "lib_version", "protocol"),
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_ciphers"),
    "ssl_min_version",
}
_IGNORED = ("family",)  # of ioredis: which IP version to use
_CERT_REQS = ("none", "optional", "required")
SENTINEL_TIMEOUT = 0.5  # seconds for one sentinel to answer, before the next one is asked


class OptionError(ValueError):
    """An option of a URL that cannot be used. The text names it and holds no value."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says.

    Attributes:
        kind: `cluster`, `sentinel`, or nothing for a single server.
        hosts: some nodes of the cluster, or the sentinels.
        service: what the sentinels call the primary.
        options: how to connect to the servers: user, password, database, TLS. In redis-py's words.
    """

    kind: str
    hosts: tuple[Host, ...]
    service: str
    options: dict[str, Any]

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.options.get("connection_class") is SSLConnection


def parse(url: str) -> Address:
    """Reads a URL of any of the forms.

    Raises: OptionError about one option; ValueError, which does not repeat the URL, since there can be a password.
    """
    try:
        address = _parse(url)
        options = {name: value for name, value in address.options.items() if name not in _SENTINEL_OPTIONS}
        ConnectionPool(**options).make_connection()  # type: ignore[no-untyped-call]  # knows its options
    except OptionError:
        raise
    except (ValueError, TypeError):
        raise ValueError("not a Redis URL of a known form") from None
    return address


def _parse(url: str) -> Address:
    scheme, found, rest = url.partition("://")
    transport, _, kind = scheme.partition("+")
    transport = _ALIASES.get(transport, transport)
    if not found or transport not in SCHEMES or (kind and (kind not in _PORTS or transport == "unix")):
        raise ValueError("not a Redis URL")
    if not kind:
        return Address("", (), "", _options(f"{transport}://{rest}"))
    where, _, query = rest.partition("?")
    authority, _, path = where.partition("/")
    login, _, hosts = authority.rpartition("@")
    service, _, database = path.partition("/") if kind == SENTINEL else ("", "", path)
    if (kind == SENTINEL and not service) or (database and not database.isdecimal()):
        raise ValueError("no name, or no database")
    plain = f"{transport}://{login}{'@' if login else ''}server/{database}?{query}"
    options = _options(plain)
    del options["host"]
    if kind == CLUSTER and options.get("db"):
        raise ValueError("a cluster has no other database than 0")
    return Address(kind, tuple(_host(host, _PORTS[kind]) for host in hosts.split(",")), unquote(service), options)


def _options(url: str) -> dict[str, Any]:
    """redis-py's, but for those that would change what comes back. Raises: OptionError, ValueError."""
    options: dict[str, Any] = dict(parse_url(url))
    for name in _IGNORED:
        options.pop(name, None)
    for name in options.keys() - _OPTIONS:
        # Of a password that is written as it is, a part can look like a name.
        if "@" in url.partition("?")[2] or not name.isidentifier():
            raise ValueError("not an option")
        raise OptionError(f"must not have the option {name}")
    if options.get("protocol", "2") != "2":
        raise OptionError("can have only 2 as its protocol")
    options.pop("protocol", None)
    if "ssl_cert_reqs" in options:
        options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
        if options["ssl_cert_reqs"] not in _CERT_REQS:
            raise OptionError(f"must have one of {', '.join(_CERT_REQS)} as its ssl_cert_reqs")
    if "ssl_min_version" in options:
        options["ssl_min_version"] = _tls_version(options["ssl_min_version"])
    return options


def _tls_version(text: str) -> ssl.TLSVersion:
    if text not in ("TLSv1.2", "TLSv1.3"):
        raise OptionError("must have TLSv1.2 or TLSv1.3 as its ssl_min_version")
    return ssl.TLSVersion[text.replace(".", "_")]


def _host(text: str, usual_port: int) -> Host:
    name, found, port = text.strip().rpartition(":")
    if not found or port.endswith("]"):
        name, port = text.strip(), str(usual_port)
    bare = name.removeprefix("[").removesuffix("]")
    if ":" in name and len(name) != len(bare) + 2:
        raise ValueError("an IPv6 address without brackets")
    name = bare
    if not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("not a list of hosts")
    return name, int(port)


def check_certificates(url: str) -> None:
    """Raises: OptionError when a file of certificates that the URL names cannot be used."""
    options = parse(url).options
    files = {name: options.get(name) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if files["ssl_ca_certs"]:
            context.load_verify_locations(cafile=files["ssl_ca_certs"])
        if files["ssl_certfile"]:
            context.load_cert_chain(files["ssl_certfile"], files["ssl_keyfile"], password=lambda: "")
    except OSError:  # ssl.SSLError is one.
        names = " or ".join(name for name, file in files.items() if file)
        raise OptionError(f"names a file that is no certificate or cannot be read in {names}") from None


def connections_to(url: str, timeout: float, **more: Any) -> ConnectionPool:
    """What makes connections to the server, or to whichever is the primary now.

    Args:
        url: of one server, or of sentinels.
        timeout: seconds for connecting.
        more: further options, in redis-py's words. Those of the URL win.

    Raises: ValueError.
    """
    address = parse(url)
    options: dict[str, Any] = {"socket_connect_timeout": timeout, **more, **address.options}
    if address.kind != SENTINEL:
        return ConnectionPool(**options)
    theirs = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
    timeouts = {"socket_connect_timeout": SENTINEL_TIMEOUT, "socket_timeout": SENTINEL_TIMEOUT}
    tls = options.pop("connection_class", None) is SSLConnection
    theirs |= {name: value for name, value in options.items() if tls and name.startswith("ssl_")}
    sentinels = Sentinel(address.hosts, sentinel_kwargs={**theirs, **timeouts, "ssl": tls})  # type: ignore[no-untyped-call]
    managed = SentinelManagedSSLConnection if tls else SentinelManagedConnection
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.service, sentinels, connection_class=managed, **options
    )


async def forget_sentinels(pool: ConnectionPool) -> None:
    """Closes the connections to the sentinels: they are asked again when the primary is lost."""
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.connection_pool.disconnect()
