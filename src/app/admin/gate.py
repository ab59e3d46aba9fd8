"""What stands before every page of the console: who asks, whether they may, and one transaction for all of it."""

import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Self
from urllib.parse import urlsplit

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette._utils import get_route_path
from starlette.datastructures import URLPath
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_admin.auth import AdminUser

from app.admin.cookie import (
    cookie_name,
    create_visitor,
    csrf_token,
    is_csrf_token,
    is_visitor,
    parse_cookie,
)
from app.admin.policy import security_headers
from app.api.sign_in import lifetimes
from app.core.config import EnvironmentOption, Settings, environment_of
from app.core.db.database import reading, transaction
from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Forbidden
from app.core.logger import note_user
from app.crud.crud_login_session import crud_login_sessions
from app.middleware.headers import RawHeader, has_header, with_headers
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User

FIELD: Final = "csrftoken"  # in a form, as the library calls it
HEADER: Final = "X-CSRFToken"
LIVE: Final = b"x-console-live"  # sent by a page that refreshes itself
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
NOTED_EVERY: Final = timedelta(minutes=1)
# Where to go back to after an action: the library's script sends a whole address, of which the path is kept.
_ORIGIN: Final = re.compile(rb"(?<=\b_origin=)(?:https?%3A%2F%2F[^%&]*(?:%3A[0-9]+)?)?([^&]*)", re.IGNORECASE)
# Browsers leave them out of an address: after "/", a tab and another "/" they would go to another host.
_CONTROL: Final = re.compile(rb"[\x00-\x1f]|%(?:25)*[01][0-9a-f]", re.IGNORECASE)
REFUSED: Final = "This form is not from your own console, or too old. Load the page again and repeat what you did."
SIGNED_OUT: Final = "You are signed out: nothing was changed. Sign in again, and repeat what you did."
SIGNED_IN: Final = "You are signed in already."

Refuse = Callable[[Request, int, str], Response]

log = structlog.stdlib.get_logger("slipway.console")


class Operator(AdminUser):
    """Who uses the console.

    Attributes:
        user: a superuser.
        session: the login.
    """

    def __init__(self, user: User, session: LoginSession) -> None:
        super().__init__(user.username)
        self.user = user
        self.session = session


class _RolledBack(Exception):  # noqa: N818 -- no error: the way out of a transaction
    """The answer is a refusal: nothing of it is kept."""


class Gate:
    """Lets superusers in by the console's own cookie, and changes with the token that belongs to it.

    Each request is one transaction, which is committed before its answer starts; a refusal (400 and above) is rolled
    back. When PostgreSQL is away nobody can be let in: 503.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refuse: Refuse) -> None:
        """
        Args:
            app: the console behind it.
            settings: the app's.
            refuse: makes the page that says no.
        """
        self.app = app
        self._settings = settings
        self._refuse = refuse
        self._cookie = cookie_name(settings)
        self._secure = environment_of(settings) is not EnvironmentOption.LOCAL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["csp_nonce"] = secrets.token_urlsafe(16)
        is_live = has_header(scope, {LIVE})
        is_file = get_route_path(scope).startswith("/static/")
        answering = _Answer(
            send, security_headers(state["csp_nonce"]), secure=self._secure, cookies=not (is_live or is_file)
        )
        origin = _Origin.of(Request(scope))
        scope = _with_paths_for_addresses(scope)
        if is_file:
            answering.is_public = True
            state["operator"] = None
            await self.app(scope, receive, answering.send)
            return
        try:
            await self._let_in(scope, receive, answering, origin)
        except HTTPException as refusal:
            await self._say(scope, answering, refusal.status_code, str(refusal.detail))
        except Exception:
            log.exception("unhandled error", method=scope["method"], path=scope["path"])
            await self._say(scope, answering, 500, "Something went wrong here. The log has it under this request's id.")

    async def _let_in(self, scope: Scope, receive: Receive, answering: "_Answer", origin: "_Origin") -> None:
        request, state = Request(scope, receive), scope["state"]
        if not (origin.is_own or (request.method in SAFE and origin.is_navigation)):
            await self._say(scope, answering, 403, REFUSED)
            return
        cookie = request.cookies.get(self._cookie, "")
        body = b""
        if request.method not in SAFE:
            body = await request.body()  # First: who sends it slowly may be let in no more by its end.
            receive = _replaying(body)
        operator = await self._operator(cookie)
        if operator is None and not is_visitor(cookie):
            cookie = create_visitor()
            answering.set_cookie(self._cookie, cookie)
            may_change = False  # Nobody has a token for it yet.
        else:
            may_change = True
        state |= {"csrf_token": csrf_token(self._settings, cookie), "operator": operator}
        is_login = get_route_path(scope) == "/login"
        if request.method not in SAFE and not (
            may_change and await self._has_token(Request(scope, _replaying(body)), cookie)
        ):
            # Another tab has signed in, or out, since the form was loaded.
            texts = {(True, True): SIGNED_IN, (False, False): SIGNED_OUT}
            await self._say(scope, answering, 403, texts.get((is_login, operator is not None), REFUSED))
            return
        if operator is not None:
            note_user(state, operator.user.id)
        if is_login:  # What it counts has to stay when it refuses.
            await self.app(scope, receive, answering.send)
        else:
            await self._in_a_transaction(scope, receive, answering, operator)

    async def _operator(self, cookie: str) -> Operator | None:
        said = parse_cookie(cookie)
        if said is None:
            return None
        async with reading() as db:
            found = await crud_login_sessions.get_of_console(db, said.session_id)
        if found is None or not said.is_genuine(found[0].salt, self._settings):
            return None
        session, user = found
        return Operator(user, session)

    async def _has_token(self, request: Request, cookie: str) -> bool:
        token = request.headers.get(HEADER)
        if token is None:
            async with request.form() as form:
                token = str(form.get(FIELD, ""))
        return is_csrf_token(self._settings, cookie, token)

    async def _in_a_transaction(
        self, scope: Scope, receive: Receive, answering: "_Answer", operator: Operator | None
    ) -> None:
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        with suppress(_RolledBack):
            async with transaction() as db:
                scope["state"]["session"] = db
                if operator is not None:
                    await self._hold(db, operator, scope)
                await self.app(scope, receive, hold)
                if held[0]["status"] >= 400:
                    raise _RolledBack
        for message in held:
            await answering.send(message)

    async def _hold(self, db: AsyncSession, operator: Operator, scope: Scope) -> None:
        """For a change, keeps them a superuser until it is made: of two who take each other's rank, one keeps it."""
        if scope["method"] not in SAFE and not await crud_login_sessions.hold_of_console(db, operator.session.id):
            raise Forbidden
        if not has_header(scope, {LIVE}):
            await self._put_off_its_end(db, operator.session)

    async def _put_off_its_end(self, db: AsyncSession, session: LoginSession) -> None:
        """A page that refreshes itself is no use of the console."""
        now = utc_now()
        if now - session.last_used_at > NOTED_EVERY:
            ends = session.end_if_used(now, *lifetimes(self._settings, LoginKind.CONSOLE))
            await crud_login_sessions.note_use(db, session.id, now, ends)

    async def _say(self, scope: Scope, answering: "_Answer", status: int, text: str) -> None:
        response = self._refuse(Request(scope), status, text)
        await response(scope, _replaying(b""), answering.send)


class _Answer:
    """An answer on its way out, with the headers of all of them."""

    def __init__(self, send: Send, headers: list[RawHeader], *, secure: bool, cookies: bool) -> None:
        """`cookies`: whether it may change any. What refreshes a part of a page must not use up a flash message."""
        self._send = send
        self._headers = headers
        self._cookies: list[RawHeader] = []
        self._secure = secure
        self._sets_cookies = cookies
        self.is_public = False

    def set_cookie(self, name: str, value: str) -> None:
        response = Response()
        response.set_cookie(name, value, path="/", secure=self._secure, httponly=True, samesite="lax")
        self._cookies += [pair for pair in response.raw_headers if pair[0] == b"set-cookie"]

    async def send(self, message: Message) -> None:
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


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a request comes from, as far as a browser tells."""

    site: str | None
    mode: str | None
    origin: str | None
    host: str | None

    @classmethod
    def of(cls, request: Request) -> Self:
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


def _with_paths_for_addresses(scope: Scope) -> Scope:
    """What builds an address goes by the Host header, which is the caller's, and by a scheme that is wrong behind a
    proxy. In this scope there is neither."""
    return {
        **scope,
        "server": None,
        "headers": [pair for pair in scope["headers"] if pair[0] != b"host"],
        "query_string": _ORIGIN.sub(lambda found: _CONTROL.sub(b"", found[1]), scope["query_string"]),
        "router": _Paths(scope["router"]),
    }


def _replaying(body: bytes) -> Receive:
    """Gives a body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
