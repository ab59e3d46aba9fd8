"""Answers the errors that nothing else has made a problem document of."""

import structlog
from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from app.core.application import handler_of_unexpected_errors
from app.core.config import EnvironmentOption, environment_of
from app.core.connection import application_of, state_of
from app.core.db.schema_version import explain_schema_error
from app.core.exceptions.framework_errors import can_be_the_frameworks, problem_instead_of
from app.core.exceptions.problem_response import INTERNAL, problem_response
from app.core.exceptions.response_errors import explain_not_loaded, hide_values_of_answer

log = structlog.stdlib.get_logger("slipway.error")


class ErrorMiddleware:
    """Answers an unexpected error with 500, the request id and nothing else; the log has the rest, under that id.

    A handler that the application has registered for `Exception` or 500 makes the answer instead. It also makes a
    problem document of what Starlette answers in plain text. A WebSocket is refused or closed with what it answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False
        held: list[Message] = []  # the messages of an answer that can be the framework's own error

        async def send_noticed(message: Message) -> None:
            nonlocal begun
            if held or (message["type"] == "http.response.start" and message["status"] >= 400):
                held.append(message)
                if can_be_the_frameworks(held):
                    return
                answer = held.copy()
                held.clear()
                begun = True
                if len(answer) > 1 and (problem := problem_instead_of(scope, answer)) is not None:
                    await problem(scope, receive, send)
                    return
                for one in answer:
                    await send(one)
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_noticed)
        except Exception as error:
            hide_values_of_answer(error)
            log.exception("unhandled error", method=scope["method"], path=scope["path"])
            if (reason := await explain_schema_error(error)) is not None:
                log.error("schema error", reason=reason)
            elif (reason := explain_not_loaded(error)) is not None:
                log.error("attribute not loaded", reason=reason)
            if begun:
                raise  # Too late for another answer: the server must break the connection off.
            answer = await _answer_to(Request(scope, receive), error, reason)
            await answer(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except WebSocketDisconnect:
            pass  # The client has left, and the handler waited for its next message.
        except Exception as error:
            log.exception("unhandled error", method="WEBSOCKET", path=scope["path"])
            if (reason := await explain_schema_error(error)) is not None:
                log.error("schema error", reason=reason)
            answer = problem_response(scope["state"]["request_id"], 500, detail=INTERNAL)
            await answer(scope, receive, send)


async def _answer_to(request: Request, error: Exception, reason: str | None) -> Response:
    handler = handler_of_unexpected_errors(application_of(request.scope))
    if handler is not None:
        try:
            if is_async_callable(handler):
                answer = await handler(request, error)
            else:
                answer = await run_in_threadpool(handler, request, error)
            if isinstance(answer, Response):
                return answer
        except Exception:
            log.exception("handler of unhandled errors failed")
    is_local = environment_of(state_of(request).settings) is EnvironmentOption.LOCAL
    detail = reason if reason is not None and is_local else INTERNAL
    return problem_response(request.scope["state"]["request_id"], 500, detail=detail)
