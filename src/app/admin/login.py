"""Signing in to the console, and out of it: as to the API, for superusers only, and with a cookie of its own."""

from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates
from starlette_admin.auth import AdminUser, BaseAuthProvider
from starlette_admin.helpers import safe_redirect_url

from app.admin.cookie import create_cookie, drop_cookie, put_cookie
from app.api.dependencies import get_client
from app.api.sign_in import WrongCredentials, sign_in
from app.api.v1.login import login
from app.core.config import Settings
from app.core.db.database import transaction
from app.core.passwords import HashingBusy
from app.core.route_table import path_of
from app.core.utils.rate_limit import Limiter, RateLimited, limit_as
from app.crud.crud_login_session import crud_login_sessions
from app.crud.crud_security_event import crud_security_events
from app.models.login_session import LoginKind
from app.models.security_event import EventKind
from app.models.token import LoginForm

if TYPE_CHECKING:
    from app.admin.gate import Operator


class Provider(BaseAuthProvider):
    """What the library asks about who is there. The gate has found that out by then."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    async def authenticate(self, request: Request) -> AdminUser | None:
        """The superuser whose cookie it is; None sends the browser to the form."""
        operator: Operator | None = request.state.operator
        return operator

    def get_routes(self, templates: Jinja2Templates) -> list[Route]:
        """The form, and the way out."""
        self._templates = templates
        return [
            Route("/login", self._login, methods=["GET", "POST"], name="login"),
            Route("/logout", self._logout, methods=["POST"], name="logout"),
        ]

    async def _login(self, request: Request) -> Response:
        home = str(request.url_for("admin:index"))
        try:
            wanted = safe_redirect_url(request.query_params.get("next") or home, request, home)
        except ValueError:  # Half of an IPv6 address, say.
            wanted = home
        if request.state.operator is not None:
            return RedirectResponse(wanted, 303)
        if request.method == "GET":
            return self._form(request)
        try:
            await self._count(request)
        except RateLimited as refusal:
            return self._form(request, str(refusal.detail), refusal.status_code)
        async with request.form() as form:
            sent = {name: form.get(name) for name in ("username", "password")}
        try:
            values = LoginForm.model_validate(sent)
            async with transaction() as db:
                _, session = await sign_in(values, db, self._settings, await get_client(request), LoginKind.CONSOLE)
        except (WrongCredentials, ValidationError):
            return self._form(request, WrongCredentials.text, 401)
        except HashingBusy as busy:
            return self._form(request, str(busy.detail), busy.status_code)
        response = RedirectResponse(wanted, 303)
        put_cookie(response, self._settings, create_cookie(self._settings, session.id, session.salt))
        return response

    async def _count(self, request: Request) -> None:
        """As one sign-in to the API more: who tries passwords here has no more tries than there."""
        main: FastAPI = request.app.state.main
        limiter: Limiter | None = getattr(main.state, "rate_limiter", None)
        if limiter is not None and (path := path_of(main, login)) is not None:
            await limit_as(request, limiter, path)

    async def _logout(self, request: Request) -> Response:
        operator: Operator = request.state.operator
        db = request.state.session
        if await crud_login_sessions.end(db, operator.session.id, operator.user.id):
            await crud_security_events.record(
                db,
                EventKind.LOGOUT,
                await get_client(request),
                user_id=operator.user.id,
                session_id=operator.session.id,
                console=True,
            )
        response = RedirectResponse(str(request.url_for("admin:login")), 303)
        drop_cookie(response, self._settings)
        return response

    def _form(self, request: Request, error: str | None = None, status: int = 200) -> Response:
        return self._templates.TemplateResponse(request, "login.html", {"error": error}, status_code=status)
