"""The path under which a proxy has put the application: ASGI's `root_path`.

A server sets it (`uvicorn --root-path /svc`), or the setting ROOT_PATH does, for servers without such an option.
"""

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.settings.base import SettingsError


def root_path_of(scope: Scope) -> str:
    """The root path of the outermost application, without a slash at its end; "" for none."""
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    return root.rstrip("/")


class RootPathMiddleware:
    """Sets the root path, and has `path` include it as ASGI requires, whether the proxy has stripped it or not."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            scope["root_path"] = self.root_path
            if not _is_within(scope["path"], self.root_path):
                scope["path"] = self.root_path + scope["path"]
                if scope.get("raw_path") is not None:
                    scope["raw_path"] = self.root_path.encode() + scope["raw_path"]
        await self.app(scope, receive, send)


def check_root_path(app: FastAPI, root_path: str) -> None:
    """Raises: SettingsError when a route of the app begins with its ROOT_PATH, which makes such a path ambiguous."""
    for route in iter_route_contexts(app.routes):
        if root_path and route.path and _is_within(route.path, root_path):
            raise SettingsError(
                f"ROOT_PATH must not be the beginning of a path of the application itself: {route.path} begins with "
                f"{root_path}. Choose another one, or start the server with --root-path behind a proxy that strips it."
            )


def _is_within(path: str, root_path: str) -> bool:
    return path == root_path or path.startswith(f"{root_path}/")
