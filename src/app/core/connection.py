"""What a request or a WebSocket belongs to: the application that `create_application` made, also below a mount."""

from typing import Any, Final

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.requests import HTTPConnection
from starlette.types import Scope

APPLICATION: Final = "slipway.application"  # in a scope, put there by the outermost application


def application_of(scope: Scope) -> FastAPI:
    """The outermost application; `scope["app"]` is the mounted one, below a mount."""
    found: Any = scope.get(APPLICATION)
    application: FastAPI = scope["app"] if found is None else found
    return application


def state_of(connection: HTTPConnection) -> State:
    """The state of the outermost application, which has the settings and what the lifespan has opened."""
    return application_of(connection.scope).state
