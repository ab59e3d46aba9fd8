"""Puts the client's address, scheme and host into the scope as the trusted proxies report them."""

from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.client_address import TrustedProxies
from app.core.forwarded_headers import forwarded_host, forwarded_scheme
from app.middleware.headers import has_header

VIA_TRUSTED_PROXY = "slipway.via_trusted_proxy"  # in a request's scope, where it is so

_FOR: Final = b"x-forwarded-for"
_PROTO: Final = b"x-forwarded-proto"
_HOST: Final = b"x-forwarded-host"
_READ: Final = frozenset({_FOR, _PROTO, _HOST})
_WEBSOCKET_SCHEMES: Final = {"http": "ws", "https": "wss"}

log = structlog.stdlib.get_logger("slipway.client_address")


class ProxyHeadersMiddleware:
    """Believes `X-Forwarded-For`, `-Proto` and `-Host` of a trusted proxy and of no other sender.

    uvicorn has a setting of its own for this (`FORWARDED_ALLOW_IPS`, by default this machine) and has changed the scope
    by now. So the peer's address and whether the connection uses TLS are read from the connection.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self.app = app
        self.proxies = proxies
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and has_header(scope, _READ):
            transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
            peer = _peer(scope, transport)
            host = peer[0] if peer else None
            if transport is not None:
                _set_scheme(scope, "https" if transport.get_extra_info("sslcontext") else "http")
            if host in self.proxies:
                self._believe(scope, host)
            else:
                scope["client"] = peer
                self._warn(host)
        await self.app(scope, receive, send)

    def _believe(self, scope: Scope, peer: str | None) -> None:
        scope[VIA_TRUSTED_PROXY] = True
        hops = 1
        if addresses := _values(scope, _FOR):
            client, hops = self.proxies.trace(peer, addresses)
            scope["client"] = (client, 0) if client is not None else None
        if (schemes := _values(scope, _PROTO)) and (scheme := forwarded_scheme(schemes, hops)):
            _set_scheme(scope, scheme)
        if (hosts := _values(scope, _HOST)) and (host := forwarded_host(hosts, hops)):
            others = [pair for pair in scope["headers"] if pair[0] != b"host"]
            scope["headers"] = [(b"host", host.encode()), *others]

    def _warn(self, peer: str | None) -> None:
        if not self._warned:
            self._warned = True
            log.warning("X-Forwarded-* is not believed: its sender is not among TRUSTED_PROXIES", sender=peer)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for given, value in scope["headers"] if given == name]


def _set_scheme(scope: Scope, scheme: str) -> None:
    scope["scheme"] = _WEBSOCKET_SCHEMES[scheme] if scope["type"] == "websocket" else scheme


def _peer(scope: Scope, transport: Any) -> tuple[str, int] | None:
    """The connected peer. Where the server does not show its connection, the scope has it unchanged."""
    if transport is None:
        client = scope.get("client")
        return tuple(client) if client else None
    name = transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if isinstance(name, tuple | list) else None
