"""A stored answer: its bytes, and how long they are good."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self

from starlette.responses import Response

MAGIC: Final = b"slipway\x01"  # the last byte is the version of the format
_HEAD: Final = struct.Struct(">8sHQQQII")

RawHeaders = Sequence[tuple[bytes, bytes]]

# Of this answer alone, set by whatever sends it, or never to be repeated.
_NOT_KEPT: Final = frozenset(
    {b"content-length", b"set-cookie", b"date", b"connection", b"transfer-encoding", b"x-request-id"}
)
NOT_IN_304: Final = (b"content-type", b"content-encoding", b"content-language")


class ReadyResponse(Response):
    """An answer whose bytes and headers are there already."""

    def __init__(self, body: bytes, status_code: int, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self.body = body
        self.status_code = status_code
        self.raw_headers = raw_headers
        self.background = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer as it is stored. Times are in milliseconds since 1970.

    Attributes:
        created: when it was computed.
        soft: until when it is fresh.
        hard: until when it may be served, while somebody computes a fresh one.
    """

    status: int
    created: int
    soft: int
    hard: int
    headers: RawHeaders
    body: bytes

    @classmethod
    def of(cls, response: Response, more_headers: RawHeaders, created: int, fresh: int, stale: int) -> Self:
        """
        Args:
            response: the answer; its body is complete.
            more_headers: those that the handler set on the injected response.
            created: now.
            fresh: for how many milliseconds it is.
            stale: for how many more it may be served.
        """
        headers = [pair for pair in (*response.raw_headers, *more_headers) if pair[0] not in _NOT_KEPT]
        body = bytes(response.body)
        if not any(name == b"etag" for name, _ in headers):
            headers.append((b"etag", etag_of(body)))
        soft = created + fresh
        return cls(response.status_code, created, soft, soft + stale, headers, body)

    def dump(self) -> bytes:
        """The bytes to store."""
        headers = b"\n".join(b"%s\0%s" % pair for pair in self.headers)
        head = _HEAD.pack(MAGIC, self.status, self.created, self.soft, self.hard, len(headers), len(self.body))
        return head + headers + self.body

    @classmethod
    def load(cls, stored: bytes | None) -> Self | None:
        """The reverse of `dump`; None for anything else."""
        if stored is None or len(stored) < _HEAD.size:
            return None
        magic, status, created, soft, hard, headers_size, body_size = _HEAD.unpack_from(stored)
        start = _HEAD.size + headers_size
        if magic != MAGIC or len(stored) != start + body_size:
            return None
        lines = stored[_HEAD.size : start].split(b"\n")
        headers = [(name, value) for name, _, value in (line.partition(b"\0") for line in lines)]
        return cls(status, created, soft, hard, headers, stored[start:])

    def answer(
        self, state: bytes, now: int, if_none_match: str | None, more_headers: Iterable[tuple[bytes, bytes]]
    ) -> Response:
        """The answer to send, or 304 when the caller has it.

        Args:
            state: what `X-Cache` says; a stored answer (HIT, STALE) also has its `Age`.
            now: the time.
            if_none_match: the request's header.
            more_headers: what was set for this very answer; what is stored wins.
        """
        headers = list(self.headers)
        names = {name for name, _ in headers} - {b"vary"}
        headers += [pair for pair in more_headers if pair[0] not in names]
        headers.append((b"x-cache", state))
        if state in {b"HIT", b"STALE"}:
            headers.append((b"age", b"%d" % max(0, (now - self.created) // 1000)))
        if if_none_match is not None and matches(if_none_match, self._etag()):
            return ReadyResponse(b"", 304, [pair for pair in headers if pair[0] not in NOT_IN_304])
        if self.status != 204:
            headers.append((b"content-length", b"%d" % len(self.body)))
        return ReadyResponse(self.body, self.status, headers)

    def _etag(self) -> bytes:
        return next(value for name, value in self.headers if name == b"etag")


def etag_of(body: bytes) -> bytes:
    """A strong validator: the same for the same bytes only."""
    return b'"%s"' % blake2b(body, digest_size=12).hexdigest().encode()


def matches(if_none_match: str, etag: bytes) -> bool:
    """Whether a caller has this version (RFC 9110, section 13.1.2; the comparison is the weak one)."""
    wanted = etag.decode("latin-1").removeprefix("W/")
    candidates = (candidate.strip().removeprefix("W/") for candidate in if_none_match.split(","))
    return any(candidate in {"*", wanted} for candidate in candidates)
