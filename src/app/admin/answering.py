"""What every answer of the console gets on its way out: headers, and cookies that are for TLS only."""

from starlette.responses import Response
from starlette.types import Message, Send

from app.admin.cookie import put_cookie
from app.core.config import CryptSettings
from app.middleware.headers import RawHeader, with_headers


class Answer:
    """An answer on its way out, with the headers of all of them.

    Attributes:
        is_public: whether everybody may keep it, once it is a good one.
    """

    def __init__(self, send: Send, headers: list[RawHeader], *, secure: bool, cookies: bool) -> None:
        """
        Args:
            send: where it goes.
            headers: those of all answers.
            secure: whether cookies are for TLS only.
            cookies: whether it may change any. What refreshes a part of a page must not use up a flash message.
        """
        self._send = send
        self._headers = headers
        self._cookies: list[RawHeader] = []
        self._secure = secure
        self._sets_cookies = cookies
        self.is_public = False

    def set_cookie(self, settings: CryptSettings, value: str) -> None:
        """Has the browser keep this as the console's cookie, unless the answer itself says otherwise."""
        response = Response()
        put_cookie(response, settings, value)
        self._cookies += [pair for pair in response.raw_headers if pair[0] == b"set-cookie"]

    async def send(self, message: Message) -> None:
        """Passes on a part of the answer."""
        if message["type"] == "http.response.start":
            kept_by_all = self.is_public and message["status"] in {200, 206, 304}
            policy = b"public, max-age=3600" if kept_by_all else b"no-store"
            message = with_headers(message, *self._headers, (b"cache-control", policy))
            own = {value.partition(b"=")[0] for name, value in message["headers"] if name == b"set-cookie"}
            message["headers"] += [pair for pair in self._cookies if pair[1].partition(b"=")[0] not in own]
            kept = [pair for pair in message["headers"] if self._sets_cookies or pair[0] != b"set-cookie"]
            message["headers"] = [self._secured(pair) for pair in kept]
        await self._send(message)

    def _secured(self, pair: RawHeader) -> RawHeader:
        """The library's own cookies: it goes by the scheme, which a proxy hides."""
        name, value = pair
        if self._secure and name == b"set-cookie" and b"; secure" not in value.lower():
            return name, value + b"; Secure"
        return pair
