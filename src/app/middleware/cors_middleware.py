"""Lets pages of other origins use the API (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware import cors
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.exceptions.http_exceptions import Problem
from app.core.exceptions.problem_response import answer_to

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "X-Request-ID",
    "Idempotency-Key",
    "If-None-Match",
    "Cache-Control",
)
RESPONSE_HEADERS = ("X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", "ETag", "Age", "X-Cache")
MAX_AGE = 600  # seconds a browser may keep the answer to a preflight


class PreflightRefused(Problem):
    status = 400
    text = "The origin, the method or a header is not allowed."


class CORSMiddleware(cors.CORSMiddleware):
    """Starlette's, but a refused preflight is a problem document, and an origin that is not allowed is told nothing."""

    def __init__(self, app: ASGIApp, origins: Collection[str], allow_credentials: bool) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_credentials=allow_credentials,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
            max_age=MAX_AGE,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except PreflightRefused as refusal:
            await answer_to(Request(scope), refusal)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer that allows what is asked for. Raises: PreflightRefused, which says what is not allowed."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        refusal = PreflightRefused(f"{bytes(answer.body).decode()}.")
        allowed = self.is_allowed_origin(request_headers["origin"])
        kept = ("vary", "access-control-") if allowed else ("vary",)
        refusal.headers = {name: value for name, value in answer.headers.items() if name.startswith(kept)}
        raise refusal

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Passes an answer on with its CORS headers; without an allowed origin that is `Vary: Origin` alone."""
        allowed = self.is_allowed_origin(request_headers.get("origin", ""))
        await super().send(message, send, request_headers if allowed else Headers())
