"""Lets pages of other origins use the API (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import Callable, Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware import cors
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import CORSSettings
from app.core.declared_requests import DeclaredRequests
from app.core.exceptions.framework_errors import PreflightRefused
from app.core.exceptions.problem_response import answer_to

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "X-Request-ID",
    "Idempotency-Key",
    "If-None-Match",
    "Cache-Control",
)
RESPONSE_HEADERS: Final = ("X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", "ETag", "Age", "X-Cache")


class CORSMiddleware(cors.CORSMiddleware):
    """Starlette's, but a refused preflight is a problem document, and an origin that is not allowed is told nothing.

    Allowed are the methods and headers that the routes declare, and those of the settings. The routes are read at the
    first preflight, and again before one is refused, since routes may have been added since.
    """

    def __init__(self, app: ASGIApp, settings: CORSSettings, declared: Callable[[], DeclaredRequests]) -> None:
        """
        Args:
            app: what answers.
            settings: whose pages may do what.
            declared: reads the application's routes.
        """
        super().__init__(
            app,
            allow_origins=settings.CORS_ORIGINS,
            allow_credentials=settings.CORS_ALLOW_CREDENTIALS,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS + settings.CORS_ALLOW_HEADERS,
            expose_headers=_distinct(RESPONSE_HEADERS + settings.CORS_EXPOSE_HEADERS),
            max_age=settings.CORS_MAX_AGE,
        )
        self._declared = declared
        self._has_read_routes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except PreflightRefused as refusal:
            await answer_to(Request(scope), refusal)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer that allows what is asked for. Raises: PreflightRefused, which says what is not allowed."""
        if not self._has_read_routes:
            self._read_routes()
        answer = super().preflight_response(request_headers)
        if answer.status_code != 200 and self.is_allowed_origin(request_headers["origin"]):
            self._read_routes()
            answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        refusal = PreflightRefused(f"{bytes(answer.body).decode()}.")
        allowed = self.is_allowed_origin(request_headers["origin"])
        kept = ("vary", "access-control-") if allowed else ("vary",)
        refusal.headers = {name: value for name, value in answer.headers.items() if name.startswith(kept)}
        raise refusal

    def _read_routes(self) -> None:
        declared = self._declared()
        methods = [*METHODS, *sorted(declared.methods.difference(METHODS))]
        self.allow_methods = methods
        self.preflight_headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        if not self.allow_all_headers:
            told = self.preflight_headers["Access-Control-Allow-Headers"].split(", ")
            headers = _distinct(sorted([*told, *sorted(declared.headers)], key=str.lower))
            self.allow_headers = [name.lower() for name in headers]
            self.preflight_headers["Access-Control-Allow-Headers"] = ", ".join(headers)
        self._has_read_routes = True

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Passes an answer on with its CORS headers; without an allowed origin that is `Vary: Origin` alone."""
        allowed = self.is_allowed_origin(request_headers.get("origin", ""))
        await super().send(message, send, request_headers if allowed else Headers())


def _distinct(names: Iterable[str]) -> list[str]:
    """The names in their order, each once, in whatever case it is spelled."""
    distinct: dict[str, str] = {}
    for name in names:
        distinct.setdefault(name.lower(), name)
    return list(distinct.values())
