"""The cookie that holds the refresh token: where browsers send it, and whether over TLS only."""

from os.path import commonpath
from typing import Any, Final, TypedDict
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from fastapi.security import APIKeyCookie

from app.core.config import EnvironmentOption, SettingsGroup, environment_of
from app.core.connection import state_of

NAME: Final = "refresh_token"
refresh_cookie: Final = APIKeyCookie(name=NAME, scheme_name="RefreshCookie", auto_error=False)


class _Attributes(TypedDict):
    path: str
    secure: bool
    httponly: bool
    samesite: Any


def put_refresh_cookie(request: Request, response: Response, token: str, max_age: int) -> None:
    """Has the browser keep the token for so many seconds."""
    response.set_cookie(NAME, token, max_age=max_age, **_attributes(request))


def drop_refresh_cookie(request: Request, response: Response) -> None:
    """Has the browser delete it."""
    response.delete_cookie(NAME, **_attributes(request))


def _attributes(request: Request) -> _Attributes:
    settings: SettingsGroup = state_of(request).settings
    # Browsers do not send Secure cookies over plain HTTP, which is all that `local` has by itself.
    secure = environment_of(settings) is not EnvironmentOption.LOCAL or request.url.scheme == "https"
    return {"path": _path(request), "secure": secure, "httponly": True, "samesite": "lax"}


def _path(request: Request) -> str:
    """The path that all routes which read the cookie have in common, as the browser sees it."""
    state = request.app.state
    if not hasattr(state, "refresh_cookie_path"):
        state.refresh_cookie_path = _common_path(request.app)
    path = state.refresh_cookie_path.format_map(request.path_params)
    return quote(f"{request.scope.get('root_path', '').rstrip('/')}{path}", safe="/!$&'()*+,:=@~") or "/"


def _common_path(app: FastAPI) -> str:
    routes = (route for route in iter_route_contexts(app.routes) if _reads_cookie(getattr(route, "dependant", None)))
    paths = {route.path_format.rpartition("/")[0] or "/" for route in routes if route.path_format}
    return commonpath(paths).rstrip("/") if paths else ""


def _reads_cookie(dependant: Dependant | None) -> bool:
    if dependant is None:
        return False
    return dependant.call is refresh_cookie or any(map(_reads_cookie, dependant.dependencies))
