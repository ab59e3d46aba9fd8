"""The limit of a request's body while the request is handled.

FastAPI and Starlette announce the limits of routes, routers and mounted apps (`max_body_size`) to the object that the
scope has under `SCOPE_KEY`, the outermost limit. Ours is that object, so that their limits count for it:
docs/decisions/0036.
"""

from typing import Final

from starlette.middleware.body_limit import _BODY_LIMIT_RESPONDER_SCOPE_KEY
from starlette.types import Message, Receive, Scope

from app.core.exceptions.http_exceptions import PayloadTooLarge

SCOPE_KEY: Final = _BODY_LIMIT_RESPONDER_SCOPE_KEY
_MAX_DIGITS: Final = 18  # of a length; Python refuses to read thousands of them


class BodyLimit:
    """Counts the body of one request.

    Attributes:
        max_body_size: in bytes; None is no limit. What routes the request sets it, the innermost last.
        total_size: how many bytes have arrived.
    """

    __slots__ = ("_declared", "_receive", "_was_asked", "max_body_size", "total_size")

    def __init__(self, max_body_size: int | None, content_length: bytes | None, receive: Receive) -> None:
        """
        Args:
            max_body_size: in bytes; None is no limit.
            content_length: the header.
            receive: passes on what arrives.
        """
        self.max_body_size = max_body_size
        self.total_size = 0
        self._declared = _length(content_length) if content_length is not None else 0
        self._receive = receive
        self._was_asked = False

    def refuses(self, status: int) -> bool:
        """Whether 413 replaces an answer with this status.

        Not where a route without the body has done its work: who is told 413 sends the request again.
        """
        return self.is_exceeded and (self._was_asked or status >= 400)

    @property
    def is_exceeded(self) -> bool:
        """Whether the body is too large for the route, by what has arrived or by its declared length."""
        limit = self.max_body_size
        return limit is not None and (self._declared > limit or self.total_size > limit)

    async def receive(self) -> Message:
        """Passes on the next part of the body. Raises: PayloadTooLarge before a part that exceeds the limit."""
        self._was_asked = True
        if self.is_exceeded:
            raise PayloadTooLarge
        message = await self._receive()
        self.total_size += len(message.get("body", b""))
        if self.is_exceeded:
            raise PayloadTooLarge
        return message


def _length(content_length: bytes) -> int:
    if not content_length.isdigit():
        return 0  # The server has refused it, or its body is counted.
    return int(content_length[: _MAX_DIGITS + 1])


def check_body_size(scope: Scope, max_body_size: int | None) -> None:
    """Refuses a body whose declared length exceeds the limit of the route that was found, before anything is run.

    Args:
        scope: of a request with a body; it has a `BodyLimit`.
        max_body_size: the route's own, in bytes; None is that of the application.

    Raises: PayloadTooLarge.
    """
    limit: BodyLimit = scope[SCOPE_KEY]
    if max_body_size is not None:
        limit.max_body_size = max_body_size
    if limit.is_exceeded:
        raise PayloadTooLarge
