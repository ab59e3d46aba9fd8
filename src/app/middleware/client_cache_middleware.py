"""Tells browsers and shared caches what they may keep."""

from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.client_cache import ClientCachePolicies, ClientCachePolicy
from app.core.harmless_headers import HARMLESS
from app.core.utils.cache.entry import NOT_IN_304, etag_of, matches
from app.middleware.headers import has_header, header, with_headers

_PRIVATE: Final = (b"cache-control", b"private, no-store")
# With one of these an answer is for its caller: it opens a session, or is a step of signing in.
_OF_ONE_CALLER: Final = frozenset(
    {b"set-cookie", b"www-authenticate", b"authentication-info", b"proxy-authenticate", b"proxy-authentication-info"}
)


class ClientCacheMiddleware:
    """Anonymous 200 answers to GET and HEAD may be kept for a while, where nothing can tell callers apart.

    That is: the route takes what it declares and not the whole request (`ClientCachePolicy`), the request has no header
    that could identify its caller, and the answer sets no cookie. Everything else may not be kept at all, and an answer
    that sets a cookie not even where its route says so. A 304 says what the 200 it stands for would say.

    An answer that has an `Age` may be kept for as much longer: what our own cache keeps is as good as new. A route that
    sets its own `Cache-Control` is left alone otherwise.

    It has to be outside of the application's own middleware, to see what that adds.
    """

    def __init__(self, app: ASGIApp, max_age: int, ignored_headers: Collection[str] = ()) -> None:
        """
        Args:
            app: what answers.
            max_age: seconds, for routes that do not declare their own.
            ignored_headers: more request headers that identify no caller, in lower case.
        """
        self.app = app
        self.max_age = max_age
        self._harmless = HARMLESS | {name.encode() for name in ignored_headers}
        self._policies = ClientCachePolicies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None

        async def send_with_policy(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                message, wants_validator = self._with_policy(scope, message)
                if wants_validator:
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    start, message = _validated(scope, start, message)
                await send(start)
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _with_policy(self, scope: Scope, message: Message) -> tuple[Message, bool]:
        """The start of the answer with its `Cache-Control`, and whether it needs an `ETag` as well."""
        if header(message, b"cache-control") is not None:
            is_leak = has_header(message, {b"set-cookie"}) and not _is_private(message)
            return (with_headers(message, _PRIVATE) if is_leak else message), False
        if scope["method"] in {"GET", "HEAD"} and message["status"] in {200, 304}:
            policy = self._policies.of(scope)
            if policy.is_shareable and self._is_anonymous(scope, policy) and _is_for_all(message):
                wants_validator = policy.max_age is not None and message["status"] == 200 and scope["method"] == "GET"
                return self._public(message, policy), wants_validator and not has_header(message, {b"etag"})
        return {**message, "headers": [*message["headers"], _PRIVATE]}, False

    def _is_anonymous(self, scope: Scope, policy: ClientCachePolicy) -> bool:
        names = [name for name, _ in scope["headers"]]
        if not self._harmless.issuperset(names) or (policy.key_headers and not policy.key_headers.isdisjoint(names)):
            return False
        if not policy.key_queries:
            return True
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return policy.key_queries.isdisjoint(name for name, _ in query)

    def _public(self, message: Message, policy: ClientCachePolicy) -> Message:
        max_age = self.max_age if policy.max_age is None else policy.max_age
        age = header(message, b"age") or b""
        lifetime = max_age + (int(age) if age.isdigit() else 0)
        allowed = b"public, max-age=%d" % lifetime if max_age else b"public, no-cache"
        told = [name.strip() for given, value in message["headers"] if given == b"vary" for name in value.split(b",")]
        vary = policy.vary_line
        if told:
            known = {name.lower() for name in told}
            vary = b", ".join([*told, *(name.title() for name in sorted(policy.vary - known))])
        return with_headers(message, (b"cache-control", allowed), (b"vary", vary))


def _is_private(message: Message) -> bool:
    """Whether its own `Cache-Control` keeps it, and so its cookies, out of shared caches (RFC 9111, section 3)."""
    own = b",".join(value.lower() for name, value in message["headers"] if name == b"cache-control")
    return not {b"private", b"no-store"}.isdisjoint(part.strip() for part in own.split(b","))


def _is_for_all(message: Message) -> bool:
    return not any(name in _OF_ONE_CALLER or (name == b"vary" and b"*" in value) for name, value in message["headers"])


def _validated(scope: Scope, start: Message, body: Message) -> tuple[Message, Message]:
    """The answer with an `ETag` of its content, or the 304 for a caller that has this version."""
    etag = etag_of(body.get("body", b""))
    start = with_headers(start, (b"etag", etag))
    wanted = header(scope, b"if-none-match")
    if wanted is None or not matches(wanted.decode("latin-1"), etag):
        return start, body
    kept = [pair for pair in start["headers"] if pair[0] not in {*NOT_IN_304, b"content-length"}]
    return {**start, "status": 304, "headers": kept}, {**body, "body": b""}
