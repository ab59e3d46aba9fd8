"""What stands before every page of the console: who asks, whether they may, and one transaction for all of it."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_admin.auth import AdminUser

from app.admin.answering import Answer
from app.admin.asking import Origin, replaying, with_paths_for_addresses
from app.admin.cookie import (
    cookie_name,
    create_visitor,
    csrf_token,
    is_csrf_token,
    is_secure,
    is_visitor,
    parse_cookie,
)
from app.admin.policy import security_headers
from app.api.sign_in import lifetimes
from app.core.config import Settings
from app.core.db.data_errors import problem_of
from app.core.db.database import reading, transaction
from app.core.db.models import utc_now
from app.core.db.schema_version import report_schema_error
from app.core.exceptions.http_exceptions import Forbidden
from app.core.logger import note_user
from app.crud.crud_login_session import crud_login_sessions
from app.middleware.headers import has_header
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User

FIELD: Final = "csrftoken"  # in a form, as the library calls it
HEADER: Final = "X-CSRFToken"
LIVE: Final = b"x-console-live"  # sent by a page that refreshes itself
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
NOTED_EVERY: Final = timedelta(minutes=1)
REFUSED: Final = "This form is not from your own console, or too old. Load the page again and repeat what you did."
SIGNED_OUT: Final = "You are signed out: nothing was changed. Sign in again, and repeat what you did."
UNEXPECTED: Final = "Something went wrong here. The log has it under this request's id."
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
        self._secure = is_secure(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["csp_nonce"] = secrets.token_urlsafe(16)
        is_live = has_header(scope, {LIVE})
        is_file = get_route_path(scope).startswith("/static/")
        answering = Answer(
            send, security_headers(state["csp_nonce"]), secure=self._secure, cookies=not (is_live or is_file)
        )
        origin = Origin.of(Request(scope))
        scope = with_paths_for_addresses(scope)
        if is_file:
            answering.is_public = True
            state["operator"] = None
            await self.app(scope, receive, answering.send)
            return
        try:
            await self._let_in(scope, receive, answering, origin)
        except HTTPException as refusal:
            await self._say(scope, answering, refusal.status_code, str(refusal.detail))
        except Exception as error:
            if (problem := problem_of(error)) is not None:
                await self._say(scope, answering, problem.status_code, str(problem.detail))
                return
            log.exception("unhandled error", method=scope["method"], path=scope["path"])
            reason = await report_schema_error(error, self._settings)
            await self._say(scope, answering, 500, reason or UNEXPECTED)

    async def _let_in(self, scope: Scope, receive: Receive, answering: Answer, origin: Origin) -> None:
        request, state = Request(scope, receive), scope["state"]
        if not (origin.is_own or (request.method in SAFE and origin.is_navigation)):
            await self._say(scope, answering, 403, REFUSED)
            return
        cookie = request.cookies.get(self._cookie, "")
        body = b""
        if request.method not in SAFE:
            body = await request.body()  # First: who sends it slowly may be let in no more by its end.
            receive = replaying(body)
        operator = await self._operator(cookie)
        if operator is None and not is_visitor(cookie):
            cookie = create_visitor()
            answering.set_cookie(self._settings, cookie)
            may_change = False  # Nobody has a token for it yet.
        else:
            may_change = True
        state |= {"csrf_token": csrf_token(self._settings, cookie), "operator": operator}
        is_login = get_route_path(scope) == "/login"
        if request.method not in SAFE and not (
            may_change and await self._has_token(Request(scope, replaying(body)), cookie)
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
        self, scope: Scope, receive: Receive, answering: Answer, operator: Operator | None
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

    async def _say(self, scope: Scope, answering: Answer, status: int, text: str) -> None:
        response = self._refuse(Request(scope), status, text)
        await response(scope, replaying(b""), answering.send)
