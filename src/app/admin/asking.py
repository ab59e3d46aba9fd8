"""A request as the console sees it: where it comes from, with addresses that are paths, and a body to read twice."""

import re
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import Message, Receive, Scope

# Where to go back to after an action: the library's script sends a whole address, of which the path is kept.
_ORIGIN: Final = re.compile(rb"(?<=\b_origin=)(?:https?%3A%2F%2F[^%&]*(?:%3A[0-9]+)?)?([^&]*)", re.IGNORECASE)
# Browsers leave them out of an address: after "/", a tab and another "/" they would go to another host.
_CONTROL: Final = re.compile(rb"[\x00-\x1f]|%(?:25)*[01][0-9a-f]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as far as a browser tells."""

    site: str | None
    mode: str | None
    origin: str | None
    host: str | None

    @classmethod
    def of(cls, request: Request) -> Self:
        """As its headers say."""
        names = ("Sec-Fetch-Site", "Sec-Fetch-Mode", "Origin", "Host")
        return cls(*(request.headers.get(name) for name in names))

    @property
    def is_own(self) -> bool:
        """Whether it can be a page of this very host, or a person, who asks (W3C's Fetch Metadata).

        Not another host of the same site, and none that CORS lets ask the API.
        """
        if self.site is not None:
            return self.site in {"same-origin", "none"}
        try:
            return self.origin is None or urlsplit(self.origin).netloc == self.host
        except ValueError:
            return False

    @property
    def is_navigation(self) -> bool:
        """Whether somebody has followed a link, and no script reads what is answered."""
        return self.mode == "navigate"


class _Paths:
    """A router whose addresses are paths."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        return URLPath(str(self._router.url_path_for(name, **path_params)))


def with_paths_for_addresses(scope: Scope) -> Scope:
    """What builds an address goes by the Host header, which is the caller's, and by a scheme that is wrong behind a
    proxy. In this scope there is neither."""
    return {
        **scope,
        "server": None,
        "headers": [pair for pair in scope["headers"] if pair[0] != b"host"],
        "query_string": _ORIGIN.sub(lambda found: _CONTROL.sub(b"", found[1]), scope["query_string"]),
        "router": _Paths(scope["router"]),
    }


def replaying(body: bytes) -> Receive:
    """Gives a body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
