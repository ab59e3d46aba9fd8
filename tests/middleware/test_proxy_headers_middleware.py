"""The client's address, scheme and host in the scope, whatever the server in front has put there."""

from typing import Any

import pytest
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.core.client_address import TrustedProxies
from app.middleware.proxy_headers_middleware import ProxyHeadersMiddleware

pytestmark = pytest.mark.anyio

PROXY, STRANGER, CLIENT = ("10.0.0.1", 4711), ("203.0.113.9", 4712), "192.0.2.7"


class Transport:
    """As much of a connection as is asked for."""

    def __init__(self, peername: Any, *, tls: bool = False) -> None:
        self.extra = {"peername": peername, "sslcontext": object() if tls else None}

    def get_extra_info(self, name: str) -> Any:
        return self.extra.get(name)


class Cycle:
    """A request as uvicorn has it: `receive` is a method of what has the connection."""

    def __init__(self, peername: Any, *, tls: bool = False) -> None:
        self.transport = Transport(peername, tls=tls)

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}


async def nothing() -> Message:
    """The `receive` of a server that does not show its connection."""
    return {"type": "http.disconnect"}


async def nowhere(message: Message) -> None:
    """A `send`."""


class Asked:
    """An app that keeps the scopes it was called with."""

    def __init__(self, *networks: str, hops: int = 1) -> None:
        self.scopes: list[Scope] = []
        self.middleware = ProxyHeadersMiddleware(self.note, TrustedProxies(networks, hops))

    async def note(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)

    async def client(
        self, client: Any, *said: str, receive: Receive = nothing, kind: str = "http", name: str = "x-forwarded-for"
    ) -> Any:
        """Where a request comes from that the server says to come from this client."""
        headers = [(name.encode(), value.encode("latin-1")) for value in said]
        await self.middleware({"type": kind, "client": client, "headers": headers}, receive, nowhere)
        return self.scopes[-1]["client"]

    async def url(
        self, client: Any, *sent: tuple[str, str], receive: Receive = nothing, scheme: str = "http", kind: str = "http"
    ) -> str:
        """The address of a request that the server says to come from this client, with this scheme."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in (("host", "inner:8000"), *sent)]
        scope = {"type": kind, "scheme": scheme, "client": client, "path": "/", "query_string": b"", "headers": headers}
        await self.middleware(scope, receive, nowhere)
        return str(HTTPConnection(self.scopes[-1]).url)


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_trusted_proxy_says_where_a_request_comes_from(kind: str) -> None:
    asked = Asked("10.0.0.0/8")
    assert await asked.client(PROXY, f"1.2.3.4, {CLIENT}", kind=kind) == (CLIENT, 0)
    assert await asked.client(PROXY, "1.2.3.4", CLIENT, kind=kind) == (CLIENT, 0)
    assert await asked.client(PROXY, "2001:db8::1", kind=kind) == ("2001:db8::1", 0)


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_nobody_else_does(kind: str) -> None:
    assert await Asked("10.0.0.0/8").client(STRANGER, CLIENT, kind=kind) == STRANGER
    assert await Asked().client(PROXY, CLIENT, kind=kind) == PROXY


async def test_without_the_header_the_scope_stays_as_it_is() -> None:
    asked = Asked("10.0.0.0/8", "unix")
    for client in (PROXY, STRANGER, None):
        assert await asked.client(client) == client
    for name in ("forwarded", "x-real-ip", "x-forwarded-host", "true-client-ip", "x-forwarded-for-"):
        assert await asked.client(PROXY, CLIENT, name=name) == PROXY


async def test_an_entry_that_is_no_address_leaves_the_proxy() -> None:
    assert await Asked("10.0.0.0/8").client(PROXY, "unknown") == (PROXY[0], 0)
    assert await Asked("10.0.0.0/8").client(PROXY, "\xe9\x00") == (PROXY[0], 0)


async def test_two_proxies() -> None:
    asked = Asked("10.0.0.0/8", hops=2)
    assert await asked.client(PROXY, f"1.2.3.4, {CLIENT}, 10.0.0.2") == (CLIENT, 0)
    assert await asked.client(PROXY, f"1.2.3.4, {CLIENT}", "10.0.0.2") == (CLIENT, 0)


async def test_who_is_connected_is_asked_of_the_connection() -> None:
    """The server has believed the header, and put what it says into the scope: that is not who is connected."""
    believed = ("1.2.3.4", 0)
    proxied, direct = Cycle(PROXY), Cycle(STRANGER)
    asked = Asked("10.0.0.0/8")
    assert await asked.client(believed, f"1.2.3.4, {CLIENT}", receive=proxied.receive) == (CLIENT, 0)
    assert await asked.client(believed, "1.2.3.4", receive=direct.receive) == STRANGER
    assert await asked.client((PROXY[0], 0), PROXY[0], receive=direct.receive) == STRANGER
    assert await Asked().client(believed, "1.2.3.4", receive=proxied.receive) == PROXY


async def test_an_ipv6_connection_has_four_parts() -> None:
    cycle = Cycle(("2001:db8::1", 443, 0, 0))
    assert await Asked("2001:db8::/32").client(("1.2.3.4", 0), CLIENT, receive=cycle.receive) == (CLIENT, 0)
    assert await Asked().client(("1.2.3.4", 0), CLIENT, receive=cycle.receive) == ("2001:db8::1", 443)


@pytest.mark.parametrize("peername", ["", None, b"\0name"])
async def test_a_socket_has_no_address(peername: Any) -> None:
    cycle = Cycle(peername)
    assert await Asked("unix").client(("1.2.3.4", 0), f"1.2.3.4, {CLIENT}", receive=cycle.receive) == (CLIENT, 0)
    assert await Asked("unix").client(None, "unknown", receive=cycle.receive) is None
    assert await Asked("127.0.0.1").client(("127.0.0.1", 0), CLIENT, receive=cycle.receive) is None
    assert await Asked("unix").client(("127.0.0.1", 0), CLIENT) == ("127.0.0.1", 0)
    assert await Asked("unix").client(None, CLIENT) == (CLIENT, 0)


async def test_a_lifespan_passes() -> None:
    asked = Asked("10.0.0.0/8")
    scope = {"type": "lifespan", "state": {}}
    await asked.middleware(scope, nothing, nowhere)
    assert asked.scopes == [{"type": "lifespan", "state": {}}]


async def test_that_a_sender_is_not_believed_is_logged_once() -> None:
    asked = Asked("10.0.0.0/8")
    with capture_logs() as lines:
        await asked.client(PROXY, CLIENT)
        await asked.client(STRANGER)
        assert lines == []
        await asked.client(STRANGER, CLIENT)
        await asked.client(STRANGER, CLIENT)
        await asked.client(("198.51.100.4", 1), CLIENT)
    assert [(line["log_level"], line["sender"]) for line in lines] == [("warning", STRANGER[0])]
    assert "TRUSTED_PROXIES" in lines[0]["event"]
    assert CLIENT not in str(lines)


# ---- Scheme and host ----

PROTO, HOST, FOR = "x-forwarded-proto", "x-forwarded-host", "x-forwarded-for"
OUTSIDE = ((PROTO, "https"), (HOST, "api.example.com"))


async def test_a_trusted_proxy_says_scheme_and_host() -> None:
    asked = Asked("10.0.0.0/8")
    assert await asked.url(PROXY, *OUTSIDE) == "https://api.example.com/"
    assert await asked.url(PROXY, *OUTSIDE, receive=Cycle(PROXY).receive) == "https://api.example.com/"
    assert await asked.url(PROXY, (PROTO, "https")) == "https://inner:8000/"
    assert await asked.url(PROXY, (HOST, "[2001:db8::1]:8443")) == "http://[2001:db8::1]:8443/"
    assert await asked.url(PROXY, (PROTO, "http"), scheme="https") == "http://inner:8000/"
    assert await asked.url(PROXY, *OUTSIDE, kind="websocket", scheme="ws") == "wss://api.example.com/"
    assert asked.scopes[-1]["client"] == PROXY


async def test_no_other_sender_does() -> None:
    asked = Asked("10.0.0.0/8")
    assert await asked.url(STRANGER, *OUTSIDE) == "http://inner:8000/"
    assert await asked.url(STRANGER, *OUTSIDE, kind="websocket", scheme="ws") == "ws://inner:8000/"
    # An address that a stranger claims to have makes no proxy of it.
    assert await asked.url(STRANGER, (FOR, PROXY[0]), *OUTSIDE) == "http://inner:8000/"
    assert await Asked().url(PROXY, *OUTSIDE) == "http://inner:8000/"


async def test_what_the_server_has_believed_is_taken_back() -> None:
    """uvicorn with FORWARDED_ALLOW_IPS=*: the scope has the sender's scheme by now, the connection its own."""
    direct = Cycle(STRANGER)
    asked = Asked("10.0.0.0/8")
    assert await asked.url(("1.2.3.4", 0), *OUTSIDE, receive=direct.receive, scheme="https") == "http://inner:8000/"
    spoken = await asked.url(("1.2.3.4", 0), *OUTSIDE, receive=direct.receive, scheme="wss", kind="websocket")
    assert spoken == "ws://inner:8000/"
    tls = Cycle(STRANGER, tls=True)
    assert await asked.url(STRANGER, (PROTO, "http"), receive=tls.receive, scheme="http") == "https://inner:8000/"
    # A trusted proxy that says nothing understandable: the connection's own scheme.
    proxied = Cycle(PROXY)
    for said in ("", "ftp", "https, ", "wss"):
        assert await asked.url(PROXY, (PROTO, said), receive=proxied.receive, scheme="https") == "http://inner:8000/"


async def test_the_entry_of_the_outermost_trusted_proxy_counts() -> None:
    two = Asked("10.0.0.0/8", hops=2)
    both = ((PROTO, "https, http"), (HOST, "api.example.com, inner.example"))
    assert await two.url(PROXY, (FOR, f"{CLIENT}, 10.0.0.2"), *both) == "https://api.example.com/"
    # Somebody who has asked the inner proxy directly has written the left entries.
    assert await two.url(PROXY, (FOR, f"10.0.0.2, {CLIENT}"), *both) == "http://inner.example/"
    assert await two.url(PROXY, *both) == "http://inner.example/"
    assert await Asked("10.0.0.0/8").url(PROXY, (FOR, "1.2.3.4, 10.0.0.2"), *both) == "http://inner.example/"


async def test_a_host_that_is_none_leaves_the_one_that_was_asked_for() -> None:
    asked = Asked("10.0.0.0/8")
    for host in ("", "user@evil.example", "evil.example/path", "evil.example\x00", "[::1", "a:0", "a b"):
        assert await asked.url(PROXY, (HOST, host)) == "http://inner:8000/"
        assert [value for name, value in asked.scopes[-1]["headers"] if name == b"host"] == [b"inner:8000"]


async def test_no_other_header_says_it() -> None:
    asked = Asked("10.0.0.0/8")
    for name, value in (
        ("forwarded", "for=192.0.2.7;proto=https;host=evil.example"),
        ("x-forwarded-scheme", "https"),
        ("x-forwarded-ssl", "on"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-prefix", "/evil"),
        ("x-original-host", "evil.example"),
        ("front-end-https", "on"),
    ):
        assert await asked.url(PROXY, (name, value)) == "http://inner:8000/"
        assert await asked.url(PROXY, *OUTSIDE, (name, value)) == "https://api.example.com/"
