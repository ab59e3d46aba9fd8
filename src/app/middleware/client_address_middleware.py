"""Puts the client's address where the app looks for it: `scope["client"]`."""

from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.client_address import TrustedProxies
from app.middleware.headers import has_header

VIA_TRUSTED_PROXY = "slipway.via_trusted_proxy"  # in a request's scope, where it is so

_FORWARDED_FOR = b"x-forwarded-for"

log = structlog.stdlib.get_logger("slipway.client_address")


class ClientAddressMiddleware:
    """Believes `X-Forwarded-For` when a trusted proxy sends it, and nobody else, whatever the server in front believes.

    uvicorn has its own mind (`FORWARDED_ALLOW_IPS`, by default everybody on this machine), and has put what it
    believes into the scope by now; who is really connected is asked of its transport.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self.app = app
        self.proxies = proxies
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and has_header(scope, {_FORWARDED_FOR}):
            peer = _peer(scope, receive)
            host = peer[0] if peer else None
            if host in self.proxies:
                said = [value.decode("latin-1") for name, value in scope["headers"] if name == _FORWARDED_FOR]
                client = self.proxies.client_of(host, said)
                scope["client"] = (client, 0) if client is not None else None
                scope[VIA_TRUSTED_PROXY] = True
            else:
                scope["client"] = peer
                self._warn(host)
        await self.app(scope, receive, send)

    def _warn(self, peer: str | None) -> None:
        if not self._warned:
            self._warned = True
            log.warning("X-Forwarded-For is not believed: its sender is not among TRUSTED_PROXIES", sender=peer)


def _peer(scope: Scope, receive: Receive) -> tuple[str, int] | None:
    """Who is connected to us. Of a server that has not changed the scope, that is what the scope says."""
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        client = scope.get("client")
        return tuple(client) if client else None
    name = transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if isinstance(name, tuple | list) else None
