"""The application class: FastAPI with the engine's middleware around the application's own."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from app.core.connection import APPLICATION
from app.core.db.before_answers import end_transactions_before_answers
from app.core.exceptions.problem_response import problem_response
from app.core.mounts import mount_templates, raise_again, share_errors


class Application(FastAPI):
    """A FastAPI application whose own middleware, whenever it is added, is inside of the engine's.

    So an answer or an error of it has a request id, a log line and a client address, and is a problem document.

    Attributes:
        outer_middleware: the engine's, the outermost first.
        inner_middleware: the engine's that is next to the routes.
        engine_handlers: of errors, for which the application has no handlers of its own.
        mount_templates: the mounts whose paths have parameters, from `mounts.mount_templates`.
        mounted_middleware: those of `outer_middleware` that are there also where it is mounted in another application.
        uses_fastapis_telemetry: whether FastAPI makes spans and metrics of its own.
        user_middleware: the application's, from `middleware=`, `add_middleware` and `@app.middleware`.
    """

    outer_middleware: Sequence[Middleware] = ()
    inner_middleware: Sequence[Middleware] = ()
    mounted_middleware: Sequence[Middleware] = ()
    engine_handlers: Mapping[type[Exception], ExceptionHandler] = {}
    mount_templates: Sequence[tuple[re.Pattern[str], str]] = ()
    uses_fastapis_telemetry: bool = False
    _mounted_stack: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers. Mounted in another `Application`, it leaves to that one's middleware what the engine's does."""
        if scope["type"] == "lifespan" or scope.setdefault(APPLICATION, self) is self:
            if self.middleware_stack is None or self.uses_fastapis_telemetry or scope["type"] == "lifespan":
                await super().__call__(scope, receive, send)
                return
            stack = self.middleware_stack  # At once: FastAPI and Starlette take two calls more to do this.
            if self.root_path:
                scope["root_path"] = self.root_path
        else:
            stack = self._mounted_stack = self._mounted_stack or self._build(self.mounted_middleware)
        scope["app"] = self
        await stack(scope, receive, send)

    def mount(self, path: str, app: ASGIApp, name: str | None = None) -> None:
        """Mounts an application, also one that is mounted while requests are answered."""
        super().mount(path, app, name)
        if self.middleware_stack is not None:
            self.prepare_routes()

    def build_middleware_stack(self) -> ASGIApp:
        """The engine's middleware, the application's, and the routes."""
        self.prepare_routes()
        return self._build(self.outer_middleware)

    def prepare_routes(self) -> None:
        """Makes all routes ours that are there by now, those of mounted applications included. Can be repeated."""
        end_transactions_before_answers(self)
        share_errors(self)
        self.mount_templates = mount_templates(self)

    def _build(self, outer: Sequence[Middleware]) -> ASGIApp:
        own = self.user_middleware
        handlers = {error: handle for error, handle in self.exception_handlers.items() if error not in (500, Exception)}
        # FastAPI handles errors inside of the application's middleware only; what that raises is handled here.
        around_own = [Middleware(ExceptionMiddleware, handlers=handlers)] if own else []
        self.user_middleware = [*outer, *around_own, *map(_with_problems, own), *self.inner_middleware]
        try:
            return super().build_middleware_stack()
        finally:
            self.user_middleware = own


def handler_of_unexpected_errors(app: FastAPI) -> Callable[[Request, Exception], Any] | None:
    """What the application has registered for `Exception` or 500, the last one if there are two."""
    handlers: list[Any] = [handler for error, handler in app.exception_handlers.items() if error in (500, Exception)]
    return handlers[-1] if handlers and handlers[-1] is not raise_again else None


def _with_problems(middleware: Middleware) -> Middleware:
    """The same, with a problem document where Starlette's default is a text that cannot be told from the app's own."""
    cls, args, kwargs = middleware
    if isinstance(cls, type) and issubclass(cls, AuthenticationMiddleware) and len(args) < 2:
        kwargs = {"on_error": _on_authentication_error} | kwargs
    return Middleware(cls, *args, **kwargs)


def _on_authentication_error(connection: HTTPConnection, error: Exception) -> Response:
    return problem_response(connection.scope["state"]["request_id"], 400, detail=str(error) or None)
