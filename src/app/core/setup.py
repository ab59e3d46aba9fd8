"""Builds an application of what its settings switch on; `lifespan` opens, checks and closes that."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends
from fastapi.telemetry import TelemetryConfig
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.core.application import Application
from app.core.application_options import FIXED_OPTIONS, refuse_options
from app.core.config import (
    AppSettings,
    ClientSideCacheSettings,
    CORSSettings,
    EnvironmentOption,
    EnvironmentSettings,
    MetricsSettings,
    PostgresSettings,
    ProxySettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    SettingsGroup,
    environment_of,
)
from app.core.declared_requests import declared_requests
from app.core.docs import add_docs
from app.core.doctor import say_in_short_why_it_does_not_start
from app.core.events import Subscription
from app.core.exceptions.http_exceptions import ServiceUnavailable
from app.core.exceptions.problem_response import PROBLEM_HANDLERS, add_handlers, answer_to
from app.core.lifespan import lifespan
from app.core.metrics import add_metrics
from app.core.metrics.readiness import look_at
from app.core.openapi import add_openapi
from app.core.root_path import RootPathMiddleware
from app.core.route_table import add_route_table
from app.core.tracing import is_traced
from app.core.utils import queue
from app.core.utils.cache import check_cached_routes
from app.middleware.body_limit_middleware import BodyLimitMiddleware
from app.middleware.client_cache_middleware import ClientCacheMiddleware
from app.middleware.cors_middleware import CORSMiddleware
from app.middleware.error_middleware import ErrorMiddleware
from app.middleware.head_middleware import HeadMiddleware
from app.middleware.proxy_headers_middleware import ProxyHeadersMiddleware
from app.middleware.rate_limit_middleware import RateLimitMiddleware
from app.middleware.replica_middleware import ReplicaMiddleware
from app.middleware.request_context_middleware import RequestContextMiddleware
from app.middleware.tracing_middleware import TracingMiddleware

# FastAPI's own spans and metrics, which it asks its providers about at each request: docs/decisions/0015.
_NO_TELEMETRY: Final = TelemetryConfig(tracing=False, metrics=False, logs=False)


def create_application(
    router: APIRouter,
    settings: SettingsGroup,
    *,
    docs_guard: Sequence[Depends] = (),
    subscriptions: Sequence[Subscription] = (),
    workers: Callable[[], Iterable[type]] = tuple,
    **fastapi_kwargs: Any,
) -> Application:
    """An app with this router and every feature that its settings switch on.

    Args:
        router: the routes, prefix included.
        settings: an instance of a class that inherits the groups of the wanted features.
        docs_guard: who may read the documentation in `staging`; without it, nobody may.
        subscriptions: what is called when a request changes something (`app.core.events`).
        workers: returns the settings of the workers that run the jobs of this app, such as `WorkerSettings`. Called
            when the app starts with a queue. A job for a function that none of them has is then refused.
        fastapi_kwargs: passed on to FastAPI. A `lifespan` and the handlers of `on_event` run inside of ours, with
            everything open; `middleware` is inside of ours, and `exception_handlers` come before ours.

    Raises: ValueError for an option that cannot be had, with what to do instead.
    """
    refuse_options(fastapi_kwargs)
    max_body_size = fastapi_kwargs.pop("max_body_size", None)  # FastAPI's own answer to it is no problem document.
    own_lifespan = fastapi_kwargs.pop("lifespan", None)
    # FastAPI's own finds no mounted application when the proxy has stripped it.
    root_path = fastapi_kwargs.pop("root_path", "") or getattr(settings, "ROOT_PATH", "")
    app = Application(**{"telemetry": _NO_TELEMETRY} | _metadata(settings) | fastapi_kwargs | FIXED_OPTIONS)
    app.uses_fastapis_telemetry = "telemetry" in fastapi_kwargs
    app.state.settings = settings
    app.state.dependencies = []
    app.state.root_path = root_path
    app.state.subscriptions = subscriptions
    app.state.workers = workers
    app.include_router(router)
    _add_lifespan(app, own_lifespan)
    say_in_short_why_it_does_not_start(app)
    check_cached_routes(app)
    outage: dict[type[Exception], Any] = dict.fromkeys((RedisConnectionError, RedisTimeoutError), _on_redis_outage)
    app.engine_handlers = {**PROBLEM_HANDLERS, **outage}
    add_handlers(app, app.engine_handlers)
    add_openapi(app)
    add_route_table(app)
    _add_docs_where_allowed(app, settings, docs_guard)
    if isinstance(settings, MetricsSettings):
        counts = [lambda: look_at(app.state.dependencies)]
        if settings.inherits(PostgresSettings, RedisQueueSettings):
            counts.append(queue.count_jobs)
        is_local = environment_of(settings) is EnvironmentOption.LOCAL
        add_metrics(app, settings.METRICS_TOKEN, open_to_all=is_local, counts=counts)
    _add_middleware(app, settings, max_body_size)
    return app


def _metadata(settings: SettingsGroup) -> dict[str, Any]:
    if not isinstance(settings, AppSettings):
        return {}
    contact = {"name": settings.CONTACT_NAME, "email": settings.CONTACT_EMAIL}
    return {
        "title": settings.APP_NAME,
        "description": settings.APP_DESCRIPTION or "",
        "version": settings.APP_VERSION,
        "contact": {key: value for key, value in contact.items() if value} or None,
        "license_info": {"name": settings.LICENSE_NAME} if settings.LICENSE_NAME else None,
    }


def _add_docs_where_allowed(app: FastAPI, settings: SettingsGroup, guard: Sequence[Depends]) -> None:
    environment = settings.ENVIRONMENT if isinstance(settings, EnvironmentSettings) else None
    if environment is EnvironmentOption.LOCAL:
        add_docs(app)
    elif environment is EnvironmentOption.STAGING and guard:
        add_docs(app, guard)


def _add_lifespan(app: FastAPI, own: Any) -> None:
    """Puts ours around the application's and around the handlers of `on_event`, its own and its routers'.

    FastAPI runs those handlers only when there is no `lifespan`; here both run.
    """
    inner = [app.router.lifespan_context]
    if own is not None:
        inner.insert(0, APIRouter(lifespan=own).lifespan_context)  # makes a context manager of a plain generator
    context: Any = partial(lifespan, inner=inner)
    app.router.lifespan_context = context


def _add_middleware(app: Application, settings: SettingsGroup, max_body_size: int | None) -> None:
    """The last one added is the outermost: it sees the answers of all others."""
    own, app.user_middleware = app.user_middleware, []
    app.inner_middleware = [Middleware(HeadMiddleware)]  # The application's own middleware sees a HEAD as what it is.
    if max_body_size is None and isinstance(settings, AppSettings):
        max_body_size = settings.MAX_BODY_BYTES
    app.add_middleware(BodyLimitMiddleware, max_bytes=max_body_size)
    app.mounted_middleware = list(app.user_middleware)
    if is_traced(settings):
        app.add_middleware(TracingMiddleware)
    app.add_middleware(ErrorMiddleware)
    if isinstance(settings, RedisRateLimiterSettings):
        app.add_middleware(RateLimitMiddleware)
    if isinstance(settings, CORSSettings) and settings.CORS_ORIGINS:
        # Around whatever can refuse or fail: a page of another origin cannot read an error without these headers.
        app.add_middleware(CORSMiddleware, settings=settings, declared=lambda: declared_requests(app))
    if isinstance(settings, PostgresSettings) and settings.POSTGRES_READ_URL is not None:
        app.add_middleware(ReplicaMiddleware)
    app.add_middleware(RequestContextMiddleware)
    if isinstance(settings, ClientSideCacheSettings):
        ignored = settings.CLIENT_CACHE_IGNORED_HEADERS
        app.add_middleware(ClientCacheMiddleware, max_age=settings.CLIENT_CACHE_MAX_AGE, ignored_headers=ignored)
    if app.state.root_path:
        app.add_middleware(RootPathMiddleware, root_path=app.state.root_path)
    if isinstance(settings, ProxySettings):
        app.add_middleware(ProxyHeadersMiddleware, proxies=settings.trusted_proxies)
    app.outer_middleware, app.user_middleware = app.user_middleware, own


def _on_redis_outage(request: HTTPConnection, error: Exception) -> Response:
    outage = ServiceUnavailable()
    outage.__cause__ = error
    return answer_to(request, outage)
