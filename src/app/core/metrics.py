"""`/metrics`, for Prometheus. What is counted is defined next to what counts it."""

import hmac
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr
from starlette.responses import Response

from app.core.exceptions.http_exceptions import Unauthorized

PATH = "/metrics"

_bearer = HTTPBearer(auto_error=False)


class MetricsUnauthorized(Unauthorized):
    text = "The metrics are for those who have their token."


def add_metrics(app: FastAPI, token: SecretStr | None, *, open_to_all: bool) -> None:
    """Adds the route, unless nobody could read it.

    Args:
        app: the app.
        token: what readers have to send as a bearer token.
        open_to_all: whether, without a token, everybody may read it.
    """
    if token is None and not open_to_all:
        return

    async def metrics(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Response:
        """What this process has counted since it started."""
        if token is not None and not _is_same(sent.credentials if sent else "", token):
            raise MetricsUnauthorized
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})

    app.add_api_route(PATH, metrics, include_in_schema=False)


def _is_same(sent: str, token: SecretStr) -> bool:
    return hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), token.get_secret_value().encode())
