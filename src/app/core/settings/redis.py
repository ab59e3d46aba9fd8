"""Redis/Valkey for the cache, for the queue, and for the limits."""

from enum import StrEnum
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr

from app.core.settings.base import Port, PositiveInt, RefusedValueError, SettingsGroup
from app.core.utils.redis_link.address import CLUSTER, OptionError, check_certificates
from app.core.utils.redis_link.address import parse as parse_redis_url


def _redis_url(url: SecretStr | None, host: str, port: int) -> str:
    return url.get_secret_value() if url is not None else f"redis://{quote(host)}:{port}/0"


def _is_redis(url: SecretStr) -> SecretStr:
    try:
        check_certificates(url.get_secret_value())
    except OptionError as error:
        raise RefusedValueError(str(error)) from None
    return url


def _is_no_cluster(url: SecretStr) -> SecretStr:
    if parse_redis_url(_is_redis(url).get_secret_value()).kind == CLUSTER:
        raise ValueError("a cluster")
    return url


_ONE_SERVER = "of the form redis://user:password@host:port/0 (rediss:// for TLS, unix:// for a socket)"
_BY_SENTINELS = "redis+sentinel://user:password@host:port,host:port/name"
_CLUSTER = "redis+cluster://user:password@host:port,host:port"

RedisUrl = Annotated[
    Annotated[SecretStr, AfterValidator(_is_redis)] | None,
    Field(description=f"{_ONE_SERVER}, {_CLUSTER} or {_BY_SENTINELS}"),
]
QueueUrl = Annotated[
    Annotated[SecretStr, AfterValidator(_is_no_cluster)] | None, Field(description=f"{_ONE_SERVER} or {_BY_SENTINELS}")
]


class RedisCacheSettings(SettingsGroup):
    """Switches the cache's connection. `REDIS_CACHE_URL` wins over the parts."""

    REDIS_CACHE_HOST: str = "localhost"
    REDIS_CACHE_PORT: Port = 6379
    REDIS_CACHE_URL: RedisUrl = None

    @property
    def redis_cache_url(self) -> str:
        """The address, password included."""
        return _redis_url(self.REDIS_CACHE_URL, self.REDIS_CACHE_HOST, self.REDIS_CACHE_PORT)


class RedisQueueSettings(SettingsGroup):
    """Switches the job queue. `REDIS_QUEUE_URL` wins over the parts."""

    REDIS_QUEUE_HOST: str = "localhost"
    REDIS_QUEUE_PORT: Port = 6379
    REDIS_QUEUE_URL: QueueUrl = None
    JOB_KEEP_DAYS: int = Field(7, ge=1, le=3650, description="for how many days jobs are kept after their end")
    JOB_UNKNOWN_HOURS: float = Field(
        24, gt=0, le=8760, description="for how many hours a job waits for a worker that has its function"
    )
    DEAD_JOB_KEEP_DAYS: int = Field(30, ge=1, le=3650, description="for how many days dead letters are kept")

    @property
    def redis_queue_url(self) -> str:
        """The address, password included."""
        return _redis_url(self.REDIS_QUEUE_URL, self.REDIS_QUEUE_HOST, self.REDIS_QUEUE_PORT)


class RateLimitMode(StrEnum):
    """Whether requests over their limit are refused, only reported, or nothing is counted at all."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


class RedisRateLimiterSettings(SettingsGroup):
    """Switches the rate limiter. `REDIS_RATE_LIMIT_URL` wins over the parts."""

    REDIS_RATE_LIMIT_HOST: str = "localhost"
    REDIS_RATE_LIMIT_PORT: Port = 6379
    REDIS_RATE_LIMIT_URL: RedisUrl = None
    RATE_LIMIT_MODE: RateLimitMode = Field(RateLimitMode.ENFORCE, description="one of enforce, shadow, off")

    @property
    def redis_rate_limit_url(self) -> str:
        """The address, password included."""
        return _redis_url(self.REDIS_RATE_LIMIT_URL, self.REDIS_RATE_LIMIT_HOST, self.REDIS_RATE_LIMIT_PORT)


class DefaultRateLimitSettings(SettingsGroup):
    """The rule for callers and routes that no tier's rule names."""

    DEFAULT_RATE_LIMIT_LIMIT: PositiveInt = Field(100, description="a number of requests, 1 or more")
    DEFAULT_RATE_LIMIT_PERIOD: PositiveInt = Field(60, description="a number of seconds, 1 or more")
