"""The app as it is, but for the cache: what a request costs whose answer is not kept.

Left out as users leave it out, by its group of settings.
"""

import src  # noqa: F401 isort: skip  (makes `app` importable)

from app.api import build_router
from app.core.config import (
    AppSettings,
    ClientSideCacheSettings,
    CORSSettings,
    CryptSettings,
    DefaultRateLimitSettings,
    EnvironmentSettings,
    MetricsSettings,
    PostgresSettings,
    ProxySettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    SMTPSettings,
    TracingSettings,
)
from app.core.setup import create_application
from app.main import settled


class Settings(
    AppSettings,
    CryptSettings,
    PostgresSettings,
    ClientSideCacheSettings,
    CORSSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    DefaultRateLimitSettings,
    ProxySettings,
    SMTPSettings,
    MetricsSettings,
    TracingSettings,
    EnvironmentSettings,
):
    """Those of a web server without `RedisCacheSettings`."""


settings = Settings()
app = create_application(router=build_router(settings), settings=settings, lifespan=settled)
