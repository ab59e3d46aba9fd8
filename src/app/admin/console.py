"""The operator's console: starlette-admin, with a gate before it and this app's rules in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from starlette_admin.base import BaseAdmin
from starlette_admin.views import BaseView, CustomView

from app.admin import PATH
from app.admin.gate import HEADER, Gate
from app.admin.login import Provider
from app.admin.policy import StrictPolicy
from app.core.config import AppSettings, Settings
from app.core.exceptions.problem_response import request_id_of

HERE: Final = Path(__file__).parent
# What the library can do besides. Their names stay: its templates build addresses from them.
UNUSED: Final = frozenset({"file", "import", "inline-edit", "inline-edit-row", "relation-lookup"})


class Console(BaseAdmin):
    """The library's console, with the gate in the place of its CSRF protection."""

    def __init__(self, app: FastAPI, settings: Settings, front: CustomView, views: Sequence[BaseView]) -> None:
        super().__init__(
            title=settings.APP_NAME if isinstance(settings, AppSettings) else "Console",
            base_url=PATH,
            templates_dir=str(HERE / "templates"),
            static_dir=str(HERE / "static"),
            index_view=front,
            auth_provider=Provider(settings),
            secret_key=settings.SECRET_KEY.get_secret_value(),
            middlewares=[Middleware(Gate, settings=settings, refuse=self._refusal)],
            timezone_config=None,
        )
        for view in views:
            self.add_view(view)
        self._views.sort(key=lambda view: view is not front)  # The library lists it last.
        self.mount_to(Starlette())  # Which only names it: `app.admin` passes requests on to `self.app`.
        self.app.state.main = app

    def _init_csrf(self) -> None:
        """The gate does it, by tokens that belong to a login."""

    def _collect_core_routes(self) -> list[Route]:
        routes = super()._collect_core_routes()
        for route in routes:
            if route.name in UNUSED:
                route.app = _not_here
        return routes

    def _setup_templates(self) -> None:
        super()._setup_templates()
        self.templates.env.add_extension(StrictPolicy)

    def _refusal(self, request: Request, status: int, text: str) -> Response:
        """What the gate says no with: a page, or JSON where a script has asked."""
        if HEADER in request.headers:
            return JSONResponse({"msg": text}, status)
        values = {"status": status, "text": text, "request_id": request_id_of(request)}
        return self.templates.TemplateResponse(request, "console/refused.html", values, status_code=status)


async def _not_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)
