"""`/metrics`, for Prometheus. What is counted is defined next to what counts it."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr
from starlette.responses import Response

from app.core.exceptions.http_exceptions import Unauthorized
from app.core.metrics.processes import registry

PATH = "/metrics"

COUNT_SECONDS = 2.0  # that an answer waits for what is counted elsewhere

log = structlog.stdlib.get_logger("slipway.metrics")

_bearer = HTTPBearer(auto_error=False)


class MetricsUnauthorized(Unauthorized):
    text = "The metrics are for those who have their token."


def add_metrics(
    app: FastAPI,
    token: SecretStr | None,
    *,
    open_to_all: bool,
    counts: Sequence[Callable[[], Awaitable[None]]] = (),
) -> None:
    """Adds the route, unless nobody could read it.

    Args:
        app: the app.
        token: what readers have to send as a bearer token.
        open_to_all: whether, without a token, everybody may read it.
        counts: brings what is counted elsewhere up to date. While that is away, the last count stands.
    """
    if token is None and not open_to_all:
        return

    async def metrics(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Response:
        """What has been counted since the start: by all processes behind this port, or by this one."""
        if token is not None and not _is_same(sent.credentials if sent else "", token):
            raise MetricsUnauthorized
        await asyncio.gather(*map(_up_to_date, counts))
        # In a thread: of several processes there are files to lock, to read and to add up.
        text = await asyncio.to_thread(generate_latest, registry())
        return Response(text, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})

    app.add_api_route(PATH, metrics, include_in_schema=False)


async def _up_to_date(count: Callable[[], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(COUNT_SECONDS):
            await count()
    except Exception as error:  # Whatever is wrong there, the rest can be told.
        log.warning("metrics not up to date", why=repr(error))


def _is_same(sent: str, token: SecretStr) -> bool:
    return hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), token.get_secret_value().encode())
