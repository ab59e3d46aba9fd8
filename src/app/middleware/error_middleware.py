"""Gives an answer to the errors that nobody expected."""

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.exceptions.problem_response import INTERNAL, problem_response

log = structlog.stdlib.get_logger("slipway.error")


class ErrorMiddleware:
    """Answers 500 with the request id and nothing else; the log has the rest, under that id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_noticed(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_noticed)
        except Exception:
            log.exception("unhandled error", method=scope["method"], path=scope["path"])
            if begun:
                raise  # Too late for another answer: the server must break the connection off.
            problem = problem_response(scope["state"]["request_id"], 500, detail=INTERNAL)
            await problem(scope, receive, send)
