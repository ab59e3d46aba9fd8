"""Tells clients and proxies what they may keep."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.credential_headers import ALWAYS
from app.middleware.headers import has_header, header, with_headers

_PRIVATE = (b"cache-control", b"private, no-store")


class ClientCacheMiddleware:
    """Anonymous 200 answers to GET and HEAD may be kept for `max_age` seconds; nothing else may be kept at all.

    A 304 says what the 200 it stands for would say. An answer that has an `Age` may be kept for as much longer: what
    our own cache keeps is as good as new. A route that sets its own `Cache-Control` is left alone.
    """

    def __init__(self, app: ASGIApp, max_age: int, credentials: Collection[bytes] = ALWAYS) -> None:
        """
        Args:
            app: what answers.
            max_age: seconds.
            credentials: the headers that make a request other than anonymous; more may be added later.
        """
        self.app = app
        self.max_age = max_age
        self.credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        anonymous_get = scope["method"] in {"GET", "HEAD"} and not has_header(scope, self.credentials)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = [name for name, _ in message["headers"]]
                if b"cache-control" not in names:
                    if anonymous_get and message["status"] in {200, 304} and b"set-cookie" not in names:
                        message = self._public(message)
                    else:
                        message = {**message, "headers": [*message["headers"], _PRIVATE]}
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _public(self, message: Message) -> Message:
        age = header(message, b"age") or b""
        lifetime = self.max_age + (int(age) if age.isdigit() else 0)
        told = [name.strip() for given, value in message["headers"] if given == b"vary" for name in value.split(b",")]
        known = {name.lower() for name in told}
        vary = b", ".join([*told, *(name.title() for name in sorted(self.credentials) if name not in known)])
        return with_headers(message, (b"cache-control", b"public, max-age=%d" % lifetime), (b"vary", vary))
