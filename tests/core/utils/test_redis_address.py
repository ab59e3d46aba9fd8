"""URLs of servers, clusters and sentinels: what they mean, and what is said about a broken one."""

import ssl
from typing import Any

import pytest
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from app.core.config import Settings, SettingsError
from app.core.utils.redis_link import ClusterLink, Link, link_to
from app.core.utils.redis_link.address import CLUSTER, SENTINEL, Address, connections_to, parse

SECRET = "hunter2-long-and-secret"


# ---- What they mean ----


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://", {}),
        ("redis://cache", {"host": "cache"}),
        ("redis://cache:7000/3", {"host": "cache", "port": 7000, "db": 3}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://ada:p%40ss%2F%3A@cache", {"host": "cache", "username": "ada", "password": "p@ss/:"}),
        ("redis://:pw@cache?socket_keepalive=true", {"host": "cache", "password": "pw", "socket_keepalive": True}),
        ("rediss://cache/0", {"host": "cache", "db": 0, "connection_class": SSLConnection}),
        ("unix:///run/valkey.sock?db=2", {"path": "/run/valkey.sock", "db": 2}),
    ],
)
def test_one_server(url: str, options: dict[str, Any]) -> None:
    if url.startswith("unix"):
        options = options | {"connection_class": UnixDomainSocketConnection}
    assert parse(url) == Address("", (), "", options)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("valkey://:pw@cache:7000/1", "redis://:pw@cache:7000/1"),
        ("valkeys://default:pw@cache.aivencloud.com:7000", "rediss://default:pw@cache.aivencloud.com:7000"),
        ("valkey+cluster://a:1,b:2", "redis+cluster://a:1,b:2"),
        ("valkeys+sentinel://a:1/limits", "rediss+sentinel://a:1/limits"),
        ("rediss://cache?ssl_cert_reqs=CERT_NONE", "rediss://cache?ssl_cert_reqs=none"),
        ("redis://default:pw@cache:6379?family=0&protocol=2", "redis://default:pw@cache:6379"),
    ],
)
def test_other_spellings_of_hosters(url: str, meant: str) -> None:
    assert parse(url) == parse(meant)


def test_certificates_are_not_checked_only_where_the_url_says_so() -> None:
    for query, expected in (("", ssl.CERT_REQUIRED), ("?ssl_cert_reqs=none", ssl.CERT_NONE)):
        for url in (f"rediss://cache{query}", f"valkeys://cache{query}"):
            connection: Any = connections_to(url, 2).make_connection()  # type: ignore[no-untyped-call]
            assert connection.ssl_context.get().verify_mode is expected


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (f"no_such_option={SECRET}", "must not have the option no_such_option"),
        ("decode_responses=true", "must not have the option decode_responses"),
        ("protocol=3", "can have only 2 as its protocol"),
        (f"ssl_cert_reqs={SECRET}", "must have one of none, optional, required as its ssl_cert_reqs"),
        (f"ssl_min_version={SECRET}", "must have TLSv1.2 or TLSv1.3 as its ssl_min_version"),
        (f"ssl_ca_certs=/{SECRET}", "names a file that is no certificate or cannot be read in ssl_ca_certs"),
    ],
)
@pytest.mark.parametrize("name", ["REDIS_CACHE_URL", "REDIS_QUEUE_URL", "REDIS_RATE_LIMIT_URL"])
def test_an_option_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, query: str, line: str
) -> None:
    monkeypatch.setenv(name, f"rediss://:{SECRET}@cache:6379?{query}")
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == f"{name} {line}."


@pytest.mark.parametrize(
    ("hosts", "meant"),
    [
        ("node", (("node", 0),)),
        ("node:7000", (("node", 7000),)),
        ("a:7000,b,c:7002", (("a", 7000), ("b", 0), ("c", 7002))),
        ("a:7000, b:7001", (("a", 7000), ("b", 7001))),
        ("10.0.0.1:1,10.0.0.2:65535", (("10.0.0.1", 1), ("10.0.0.2", 65535))),
        ("[::1]:7000,[fe80::2]", (("::1", 7000), ("fe80::2", 0))),
    ],
)
def test_several_hosts_each_with_a_port_or_the_usual_one(hosts: str, meant: tuple[tuple[str, int], ...]) -> None:
    for url, kind, usual in (
        (f"redis+cluster://{hosts}", CLUSTER, 6379),
        (f"redis+sentinel://{hosts}/limits", SENTINEL, 26379),
    ):
        address = parse(url)
        assert address.kind == kind
        assert address.hosts == tuple((name, port or usual) for name, port in meant)
        assert "host" not in address.options


@pytest.mark.parametrize(
    ("login", "options"),
    [
        ("", {}),
        (":pw@", {"password": "pw"}),
        ("ada:pw@", {"username": "ada", "password": "pw"}),
        ("a%40da:p%40ss%2F%3A%3F%23%25@", {"username": "a@da", "password": "p@ss/:?#%"}),
        (":it@has@signs@", {"password": "it@has@signs"}),
    ],
)
def test_user_and_password_are_for_the_servers(login: str, options: dict[str, Any]) -> None:
    assert parse(f"redis+cluster://{login}a:1,b:2").options == options
    assert parse(f"redis+cluster://{login}a:1,b:2/0").options == options | {"db": 0}
    assert parse(f"redis+sentinel://{login}a:1,b:2/limits/3").options == options | {"db": 3}


def test_sentinels_name_the_primary() -> None:
    for path, service, options in (
        ("limits", "limits", {}),
        ("limits/", "limits", {}),
        ("limits/5", "limits", {"db": 5}),
        ("of%20ours%2F1/5", "of ours/1", {"db": 5}),
    ):
        assert parse(f"redis+sentinel://a/{path}") == Address(SENTINEL, (("a", 26379),), service, options)


def test_tls_is_a_matter_of_the_first_word() -> None:
    for url in ("rediss+cluster://:pw@a:1,b:2", "rediss+sentinel://:pw@a:1,b:2/limits"):
        assert parse(url).options == {"password": "pw", "connection_class": SSLConnection}


def test_options_of_the_query_are_for_the_connections() -> None:
    query = "?socket_keepalive=yes&client_name=limits&ssl_ca_certs=%2Fetc%2Fca.pem"
    options = {"socket_keepalive": True, "client_name": "limits", "ssl_ca_certs": "/etc/ca.pem"}
    for url in (f"rediss+cluster://a:1{query}", f"rediss+cluster://a:1/{query}", f"rediss+sentinel://a:1/s{query}"):
        assert parse(url).options == options | {"connection_class": SSLConnection}


def test_the_url_says_which_link_it_takes() -> None:
    for url, kind in (
        ("redis://a", Link),
        ("unix:///run/a", Link),
        ("redis+sentinel://a/limits", Link),
        ("redis+cluster://a", ClusterLink),
        ("rediss+cluster://a", ClusterLink),
    ):
        assert type(link_to(url, "test")) is kind


# ---- Sentinels' own connections ----


def sentinel_options(pool: Any) -> list[dict[str, Any]]:
    assert isinstance(pool, SentinelConnectionPool)
    pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    return [pool.connection_kwargs | {"class": pool.connection_class} for pool in pools]


def test_the_servers_password_is_not_told_to_sentinels_nor_theirs_to_the_servers() -> None:
    pool = connections_to(
        "redis+sentinel://ada:pw@a:1,b:2/limits/4?sentinel_username=eve&sentinel_password=th%2Firs", 2
    )
    kept = pool.connection_kwargs
    assert [kept[name] for name in ("username", "password", "db", "socket_connect_timeout")] == ["ada", "pw", 4, 2]
    assert pool.connection_class is SentinelManagedConnection
    assert not [name for name in kept if name.startswith("sentinel")]
    for port, found in zip((1, 2), sentinel_options(pool), strict=True):
        assert (found["port"], found["username"], found["password"], found["db"]) == (port, "eve", "th/irs", 0)


def test_sentinels_without_a_password_of_their_own_get_none() -> None:
    for found in sentinel_options(connections_to("redis+sentinel://ada:pw@a:1/limits", 2)):
        assert (found["username"], found["password"]) == (None, None)


def test_with_tls_sentinels_are_spoken_to_by_tls_and_by_the_same_certificates() -> None:
    pool = connections_to("rediss+sentinel://a:1,b:2/limits?ssl_ca_certs=%2Fetc%2Fca.pem", 2)
    assert pool.connection_class is SentinelManagedSSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == "/etc/ca.pem"
    for found in sentinel_options(pool):
        assert issubclass(found["class"], SSLConnection)
        assert found["ssl_ca_certs"] == "/etc/ca.pem"


# ---- Broken ones ----

NOT_EVEN_ONE_SERVER = [
    "",
    SECRET,
    "://",
    f"http://:{SECRET}@cache",
    f"redis:/:{SECRET}@cache",
    f"redis+proxy://:{SECRET}@cache",
    f"unix+cluster://:{SECRET}@cache",
    f"redis://:{SECRET}@cache:port",
    f"redis://:{SECRET}@cache:70000",
    f"redis://:{SECRET}@[::1",
]
NO_CLUSTER = [
    "redis+cluster://",
    f"redis+cluster://:{SECRET}@",
    f"redis+cluster://:{SECRET}@a,,b",
    f"redis+cluster://:{SECRET}@a,b,",
    f"redis+cluster://:{SECRET}@a:port",
    f"redis+cluster://:{SECRET}@a:0",
    f"redis+cluster://:{SECRET}@a:65536",
    f"redis+cluster://:{SECRET}@a:-1",
    f"redis+cluster://:{SECRET}@:7000",
    f"redis+cluster://:{SECRET}@a/1",
    f"redis+cluster://:{SECRET}@a/limits",
    f"redis+cluster://:{SECRET}@a?db=1",
    f"redis+cluster://:{SECRET}@fe80::1:7000",
]
NO_SENTINELS = [
    "redis+sentinel://",
    f"redis+sentinel://:{SECRET}@a",
    f"redis+sentinel://:{SECRET}@a/",
    f"redis+sentinel://:{SECRET}@a//0",
    f"redis+sentinel://:{SECRET}@/limits",
    f"redis+sentinel://:{SECRET}@a:port/limits",
    f"redis+sentinel://:{SECRET}@a/limits/database",
    f"redis+sentinel://:{SECRET}@a/limits/0/1",
]
# Somebody wrote the password as it is, where a URL has %2F, %23 or %3F for the sign.
PASSWORD_AS_IT_IS = [
    f"{scheme}://:{password}@a:7000{path}"
    for scheme, path in (("redis", "/0"), ("redis+cluster", ""), ("redis+sentinel", "/limits"))
    for password in (f"{SECRET}/2", f"{SECRET}#2", f"{SECRET}?2", f"{SECRET}℀")
]


@pytest.mark.parametrize("url", [*NOT_EVEN_ONE_SERVER, *NO_CLUSTER, *NO_SENTINELS, *PASSWORD_AS_IT_IS])
def test_a_broken_one_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        link_to(url, "test")
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = None if error.__suppress_context__ else error.__context__


@pytest.mark.parametrize("url", ["redis://a", "redis+cluster://a", "redis+sentinel://a/limits"])
@pytest.mark.parametrize("query", ["socket_timeout=soon", "db=first", "no_such_option=1"])
def test_a_broken_option_is_not_repeated_either(url: str, query: str) -> None:
    """It is said when the URL is read, and not by a task that ends when it first connects."""
    with pytest.raises(ValueError, match=r"."):
        link_to(f"{url}?{query}", "test")


# ---- The settings ----

OF_ANY_KIND = (
    "REDIS_RATE_LIMIT_URL must be of the form redis://user:password@host:port/0 (rediss:// for TLS, unix:// for a "
    "socket), redis+cluster://user:password@host:port,host:port or "
    "redis+sentinel://user:password@host:port,host:port/name."
)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@a/1",
        f"unix://:{SECRET}@/run/valkey.sock",
        f"redis+cluster://:{SECRET}@a:7000,b:7001",
        f"rediss+cluster://:{SECRET}@a:7000,b:7001",
        f"redis+sentinel://:{SECRET}@a,b,c/limits?sentinel_password={SECRET}",
        f"rediss+sentinel://:{SECRET}@a,b,c/limits/0",
    ],
)
def test_rate_limits_can_be_kept_anywhere(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_RATE_LIMIT_URL", url)
    settings = Settings()
    assert settings.redis_rate_limit_url == url
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("url", [*NOT_EVEN_ONE_SERVER[1:], *NO_CLUSTER, *NO_SENTINELS])
def test_a_broken_setting_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_RATE_LIMIT_URL", url)
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == OF_ANY_KIND


@pytest.mark.parametrize("kind", ["redis+cluster://:{}@a:7000,b:7001", "rediss+sentinel://:{}@a,b/name/0"])
def test_so_can_the_cache(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("REDIS_CACHE_URL", url := kind.format(SECRET))
    assert Settings().redis_cache_url == url


def test_the_queue_can_be_kept_at_a_primary_but_not_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_QUEUE_URL", url := f"redis+sentinel://:{SECRET}@a,b/name/0")
    assert Settings().redis_queue_url == url
    monkeypatch.setenv("REDIS_QUEUE_URL", f"redis+cluster://:{SECRET}@a:7000,b:7001")
    with pytest.raises(SettingsError) as stopped:
        Settings()
    assert stopped.value.code == (
        "REDIS_QUEUE_URL must be of the form redis://user:password@host:port/0 (rediss:// for TLS, unix:// for a "
        "socket) or redis+sentinel://user:password@host:port,host:port/name."
    )
