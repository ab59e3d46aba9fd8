"""What a WebSocket gets at the edge: sign-in by subprotocol, refusals as HTTP answers, close codes with reasons."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isclass, isroutine
from typing import Any, Final

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app.core.db.database import end_open_sessions
from app.core.exceptions.problem_response import INTERNAL, MEDIA_TYPE, problem_response
from app.core.exceptions.statuses import phrase_of
from app.core.route_table import route_of
from app.middleware.headers import header

log = structlog.stdlib.get_logger("slipway.websocket")

BEARER: Final = "bearer"
_PROTOCOLS: Final = b"sec-websocket-protocol"
_SESSIONS: Final = "slipway.handshake_sessions"  # in a scope
_EXTENSION: Final = "websocket.http.response"
_MAX_REASON_BYTES: Final = 123  # RFC 6455, section 5.5
_TRY_AGAIN, _INTERNAL, _POLICY = 1013, 1011, 1008  # RFC 6455, section 7.4.1, and its registry


def read_bearer_protocol(scope: Scope) -> bool:
    """Makes an `Authorization` header of the subprotocols `bearer, <access token>`, which a browser can send.

    The token is taken out of what the application sees of the subprotocols. Returns whether the client offers `bearer`.
    """
    offered = list(scope.get("subprotocols") or ())
    if BEARER not in offered:
        return False
    place = offered.index(BEARER) + 1
    token = "".join(offered[place : place + 1])  # Without one, the credentials are broken, and not absent.
    del offered[place : place + 1]
    scope["subprotocols"] = offered
    scope["headers"] = [
        *(pair for pair in scope["headers"] if pair[0] != _PROTOCOLS),
        (_PROTOCOLS, ", ".join(offered).encode("latin-1", "replace")),
        (b"authorization", f"Bearer {token}".encode("latin-1", "replace")),
    ]
    return True


def end_at_handshake(scope: Scope, db: AsyncSession) -> None:
    """Has a session of a handshake closed when the WebSocket is accepted. Does nothing for requests."""
    if scope["type"] == "websocket":
        scope.setdefault(_SESSIONS, []).append(db)


class WebSocketEdge:
    """Passes on what an application sends to one WebSocket.

    A refusal before the socket is accepted is an HTTP answer, a problem document where the application has none of its
    own. After that it is a close with 4000 + the status, 1013 for 503, or 1011 for other errors of the server; the
    reason is the problem's detail. Where a server cannot answer a handshake (the ASGI extension
    `websocket.http.response`), it is a close before the socket is accepted, which servers answer with 403.

    Attributes:
        status: of the handshake: 101, or what it was refused with; 0 when it has no answer.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._offers_bearer = read_bearer_protocol(scope)
        self._has_left = False
        self._is_over = False
        self._refusal: tuple[int, str, list[bytes]] | None = None  # status, media type and body, until it is whole
        self._kinds: dict[str, Callable[[Message], Awaitable[None]]] = {
            "websocket.accept": self._accept,
            "websocket.close": self._close,
            "websocket.http.response.start": self._start_refusal,
            "websocket.http.response.body": self._continue_refusal,
        }

    async def send(self, message: Message) -> None:
        """Passes a message on; nothing after the socket is closed or refused."""
        if not self._is_over:
            await self._kinds.get(message["type"], self._send)(message)

    async def receive(self) -> Message:
        """Passes on what arrives."""
        message = await self._receive()
        self._has_left = self._has_left or message["type"] == "websocket.disconnect"
        return message

    async def end(self) -> None:
        """Closes or refuses the socket, where the application has not: servers would break the connection off."""
        if self.status == 0 and not self._is_over and not self._has_left:
            log.error("handshake not answered", path=self._scope["path"])
            refusal = problem_response(self._scope["state"]["request_id"], 500, detail=INTERNAL)
            await refusal(self._scope, self._receive, self.send)
        if self.status == 101 and not self._is_over and not self._has_left:
            with suppress(OSError, RuntimeError):  # The client may have left just now.
                await self.send({"type": "websocket.close", "code": 1000})

    async def _accept(self, message: Message) -> None:
        await end_open_sessions()
        for db in self._scope.pop(_SESSIONS, ()):
            await db.close()
        if self._offers_bearer and not message.get("subprotocol"):
            message = {**message, "subprotocol": BEARER}
        self.status = 101
        await self._send(message)

    async def _close(self, message: Message) -> None:
        code, reason = message.get("code", 1000), message.get("reason")
        if self.status == 101:
            self._is_over = True
            await self._send({**message, "reason": _shortened(reason or "")})
            return
        members = {} if code == 1000 else {"close_code": code}
        state = self._scope["state"]
        status = 403 if self._is_routed else 404
        refusal = problem_response(state["request_id"], status, detail=reason or None, members=members)
        await refusal(self._scope, self._receive, self.send)

    @property
    def _is_routed(self) -> bool:
        endpoint = self._scope.get("endpoint")
        return route_of(self._scope) is not None or isroutine(endpoint) or isclass(endpoint)

    async def _start_refusal(self, message: Message) -> None:
        if self.status != 101 and _EXTENSION in (self._scope.get("extensions") or {}):
            self.status = message["status"]
            await self._send(message)
            return
        media_type = header({"headers": (), **message}, b"content-type") or b""
        self._refusal = message["status"], media_type.decode("latin-1"), []

    async def _continue_refusal(self, message: Message) -> None:
        if self._refusal is None:
            self._is_over = not message.get("more_body", False)
            await self._send(message)
            return
        status, media_type, body = self._refusal
        body.append(message.get("body", b""))
        if not message.get("more_body", False):
            self._is_over = True
            if self.status != 101:
                self.status = status
            reason = _reason_of(status, media_type, b"".join(body))
            if not self._has_left:
                with suppress(OSError, RuntimeError):  # The client may have left just now.
                    await self._send({"type": "websocket.close", "code": _close_code_of(status), "reason": reason})


def _close_code_of(status: int) -> int:
    if status >= 500:
        return _TRY_AGAIN if status == 503 else _INTERNAL
    return 4000 + status if status >= 400 else _POLICY


def _reason_of(status: int, media_type: str, body: bytes) -> str:
    detail: Any = None
    if media_type == MEDIA_TYPE:
        with suppress(ValueError, AttributeError):  # An application's own can be anything.
            detail = json.loads(body).get("detail")
    return _shortened(str(detail or phrase_of(status)))


def _shortened(reason: str) -> str:
    """As much of a reason as fits into a close frame, without half a letter at its end."""
    return reason.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
