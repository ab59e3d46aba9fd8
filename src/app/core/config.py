"""Settings, in groups: a feature is on when `Settings` inherits its group.

Values come from the environment, then from `src/.env` (or the file that the variable `ENV_FILE` names).
A field's description completes the sentence "NAME must be ...", which a person with a broken value gets to read.
"""

import json
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from email_validator import validate_email
from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core.client_address import TrustedProxies
from app.core.keyring import Keyring, keyring, parse_key
from app.core.utils.redis_link.address import parse as parse_redis_url

ENV_FILE = Path(os.environ.get("ENV_FILE") or Path(__file__).resolve().parents[2] / ".env")

Port = Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]


class SettingsError(SystemExit):
    """A setting is missing or broken. Uncaught, it ends the process with one line per fault, exit code 1."""


class SettingsGroup(BaseSettings):
    """Base of every group."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    def __init__(self, **values: Any) -> None:
        """Raises: SettingsError naming each faulty variable, never its value, or the file that can't be read."""
        try:
            if ENV_FILE.is_dir():  # Which pydantic would take for no file.
                raise SettingsError(f"{ENV_FILE} must be a file, not a folder.")
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("\n".join(self._faults(error))) from None
        except UnicodeDecodeError:
            raise SettingsError(f"{ENV_FILE} must be a UTF-8 text file.") from None
        except OSError as error:
            raise SettingsError(f"{ENV_FILE} must be readable for this user: {error.strerror}.") from None

    def inherits(self, *groups: type["SettingsGroup"]) -> bool:
        """Whether all of these groups are among this class's bases, that is, their features are on."""
        return all(isinstance(self, group) for group in groups)

    @classmethod
    def _faults(cls, error: ValidationError) -> list[str]:
        faults = []
        for fault in error.errors(include_input=False, include_url=False):
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if not name:
                faults.append(fault["msg"].removeprefix("Value error, "))
                continue
            expected = cls.model_fields[name].description or fault["msg"]
            missing = " It is not set." if fault["type"] == "missing" else ""
            faults.append(f"{name} must be {expected}.{missing}")
        return faults


class EnvironmentOption(StrEnum):
    """Where the app runs: decides who sees the documentation and how strict the start is."""

    LOCAL = "local"
    STAGING = "staging"
    PRODUCTION = "production"


class EnvironmentSettings(SettingsGroup):
    """Switches the documentation pages; without it the app behaves as in production."""

    ENVIRONMENT: EnvironmentOption = Field(EnvironmentOption.LOCAL, description="one of local, staging, production")

    @model_validator(mode="after")
    def _refuse_weak_secrets_in_production(self) -> Self:
        if self.ENVIRONMENT is EnvironmentOption.PRODUCTION:
            weak = [name for name, value in self._secrets_in_use() if _WEAK[name](value)]
            if weak:
                raise ValueError(
                    "; ".join(f"{name} must not be an example, a default or guessable in production" for name in weak)
                    + "."
                )
        return self

    def _secrets_in_use(self) -> Iterator[tuple[str, str]]:
        for name in _WEAK:
            secret: SecretStr | None = getattr(self, name, None)
            replaced = name == "POSTGRES_PASSWORD" and getattr(self, "POSTGRES_URL", None) is not None
            if secret is not None and not replaced:
                yield name, secret.get_secret_value()


def environment_of(settings: SettingsGroup) -> EnvironmentOption:
    """Where the app runs; without `EnvironmentSettings` it is taken for production."""
    return settings.ENVIRONMENT if isinstance(settings, EnvironmentSettings) else EnvironmentOption.PRODUCTION


def _is_weak_key(value: str) -> bool:
    return len(set(value)) < 12 or value.lower().startswith(_EXAMPLES)


def _has_weak_key(words: str) -> bool:
    return any(_is_weak_key(parse_key(word).secret) for word in words.split())


def _is_weak_password(value: str) -> bool:
    return len(value) < 12 or value.lower().startswith(_EXAMPLES)


_EXAMPLES = ("change", "secret", "example", "password", "postgres", "admin")


def _has_weak_password(url: str) -> bool:
    password = make_url(url).password
    return password is not None and _is_weak_password(str(password))


_WEAK = {
    "SECRET_KEY": _is_weak_key,
    "OTHER_SECRET_KEYS": _has_weak_key,
    "POSTGRES_PASSWORD": _is_weak_password,
    "POSTGRES_URL": _has_weak_password,
    "ADMIN_PASSWORD": _is_weak_password,
    "METRICS_TOKEN": _is_weak_key,
}


class AppSettings(SettingsGroup):
    """What the API calls itself, and the size of what it accepts."""

    APP_NAME: str = "Slipway"
    APP_DESCRIPTION: str | None = None
    APP_VERSION: str = "0.1.0"
    CONTACT_NAME: str | None = None
    CONTACT_EMAIL: str | None = None
    LICENSE_NAME: str | None = None
    MAX_BODY_BYTES: PositiveInt = Field(1_048_576, description="the largest request body, in bytes")


class CryptSettings(SettingsGroup):
    """Switches sign-in."""

    SECRET_KEY: SecretStr = Field(
        min_length=32, description="at least 32 random characters (`openssl rand -hex 32` makes 64)"
    )
    OTHER_SECRET_KEYS: SecretStr = Field(
        SecretStr(""),
        description="keys that verify but do not sign, with spaces between: at least 32 characters each, "
        "and possibly @ and when to stop, such as KEY@2026-12-31T00:00:00+00:00",
    )
    ALGORITHM: Literal["HS256", "HS384", "HS512"] = Field("HS256", description="one of HS256, HS384, HS512")
    ACCESS_TOKEN_EXPIRE_MINUTES: int = Field(15, ge=1, le=1440, description="a number of minutes, 1 to 1440")
    TOKEN_ISSUER: str = Field("slipway", min_length=1, description="the name in the tokens' iss and aud")
    REFRESH_TOKEN_EXPIRE_DAYS: int = Field(
        7, ge=1, le=3650, description="the number of days after which an unused login ends, 1 to 3650"
    )
    SESSION_EXPIRE_DAYS: int = Field(
        30, ge=1, le=3650, description="the number of days after which any login ends, 1 to 3650"
    )
    REFRESH_GRACE_SECONDS: int = Field(
        10, ge=0, le=60, description="for how many seconds a refresh may be repeated, 0 to 60"
    )
    # OWASP's minimum for argon2id: 19 MiB, two passes, one lane. That is some 20 ms and 19 MiB per hash.
    PASSWORD_HASH_MEMORY_KIB: int = Field(
        19_456, ge=19_456, le=4_194_304, description="a number of KiB per hash, 19456 or more"
    )
    PASSWORD_HASH_TIME_COST: int = Field(2, ge=2, le=100, description="a number of passes, 2 or more")
    PASSWORD_HASH_PARALLELISM: int = Field(1, ge=1, le=64, description="a number of lanes, 1 or more")
    SECURITY_EVENT_DAYS: int = Field(90, ge=1, le=36_500, description="for how many days security events are kept")

    @field_validator("OTHER_SECRET_KEYS")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        for word in value.get_secret_value().split():
            parse_key(word)
        return value

    @property
    def keyring(self) -> Keyring:
        """The key that signs, and those that verify."""
        return keyring(self.SECRET_KEY.get_secret_value(), self.OTHER_SECRET_KEYS.get_secret_value())


class PostgresSettings(SettingsGroup):
    """Switches the database. `POSTGRES_URL` wins over the parts."""

    POSTGRES_USER: str = "postgres"
    POSTGRES_PASSWORD: SecretStr = SecretStr("postgres")
    POSTGRES_SERVER: str = "localhost"
    POSTGRES_PORT: Port = 5432
    POSTGRES_DB: str = "postgres"
    POSTGRES_URL: SecretStr | None = Field(
        None, description="of the form postgresql://user:password@host:port/database"
    )
    POSTGRES_POOL_SIZE: PositiveInt = Field(10, description="the number of connections a process may hold, 1 or more")

    @field_validator("POSTGRES_URL")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                backend = make_url(value.get_secret_value()).get_backend_name()
            except ArgumentError:
                raise ValueError("not a URL") from None
            if backend not in {"postgresql", "postgres"}:
                raise ValueError("not PostgreSQL")
        return value

    @property
    def postgres_url(self) -> URL:
        """The address for SQLAlchemy with asyncpg, whose name for libpq's `sslmode` is `ssl`."""
        if self.POSTGRES_URL is None:
            return URL.create(
                "postgresql+asyncpg",
                username=self.POSTGRES_USER,
                password=self.POSTGRES_PASSWORD.get_secret_value(),
                host=self.POSTGRES_SERVER,
                port=self.POSTGRES_PORT,
                database=self.POSTGRES_DB,
            )
        url = make_url(self.POSTGRES_URL.get_secret_value()).set(drivername="postgresql+asyncpg")
        sslmode = url.query.get("sslmode")
        return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": sslmode}) if sslmode else url


class FirstUserSettings(SettingsGroup):
    """Who `create_first_superuser` creates."""

    ADMIN_NAME: str = "Admin"
    ADMIN_EMAIL: str = "admin@example.com"
    ADMIN_USERNAME: str = "admin"
    ADMIN_PASSWORD: SecretStr | None = None


class FirstTierSettings(SettingsGroup):
    """What `create_first_tier` creates."""

    TIER_NAME: str = "free"


def _redis_url(url: SecretStr | None, host: str, port: int) -> str:
    return url.get_secret_value() if url is not None else f"redis://{quote(host)}:{port}/0"


def _is_redis(url: SecretStr) -> SecretStr:
    if parse_redis_url(url.get_secret_value()).kind:
        raise ValueError("not a single server")
    return url


def _is_redis_of_any_kind(url: SecretStr) -> SecretStr:
    parse_redis_url(url.get_secret_value())
    return url


RedisUrl = Annotated[
    Annotated[SecretStr, AfterValidator(_is_redis)] | None,
    Field(description="of the form redis://user:password@host:port/0 (rediss:// for TLS, unix:// for a socket)"),
]


AnyRedisUrl = Annotated[
    Annotated[SecretStr, AfterValidator(_is_redis_of_any_kind)] | None,
    Field(
        description="of the form redis://user:password@host:port/0 (rediss:// for TLS, unix:// for a socket), "
        "redis+cluster://user:password@host:port,host:port or redis+sentinel://user:password@host:port,host:port/name"
    ),
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


class ClientSideCacheSettings(SettingsGroup):
    """Switches the `Cache-Control` middleware."""

    CLIENT_CACHE_MAX_AGE: int = Field(60, ge=0, le=31_536_000, description="a number of seconds, 0 to a year")


def _items(value: Any) -> list[str]:
    """The items of a list: comma-separated, or JSON, or one already."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    return [text for item in value if (text := str(item).strip())]


_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")


def _origin(text: str) -> str:
    """An origin the way browsers write it, which is how it is compared: in lower case, without the usual port."""
    if text == "*":
        return text
    parts = _ORIGIN.fullmatch(text.lower())
    if not parts:
        raise ValueError("not an origin")
    scheme, host, port = parts[1], parts[2], int(parts[3] or _USUAL_PORTS[parts[1]])
    if not 1 <= port <= 65535:
        raise ValueError("not a port")
    return f"{scheme}://{host}" if port == _USUAL_PORTS[scheme] else f"{scheme}://{host}:{port}"


_USUAL_PORTS = {"http": 80, "https": 443}


class CORSSettings(SettingsGroup):
    """Switches the CORS middleware, when it names an origin: whose pages may use the API."""

    CORS_ORIGINS: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="a comma-separated list of origins, each scheme://host or scheme://host:port (http, https), or *",
    )
    CORS_ALLOW_CREDENTIALS: bool = Field(False, description="true or false")

    @field_validator("CORS_ORIGINS", mode="before")
    @classmethod
    def _read_origins(cls, value: Any) -> Any:
        return [_origin(item) for item in _items(value)]

    @model_validator(mode="after")
    def _refuse_credentials_for_everybody(self) -> Self:
        if self.CORS_ALLOW_CREDENTIALS and "*" in self.CORS_ORIGINS:
            raise ValueError("CORS_ORIGINS must be a list without * when CORS_ALLOW_CREDENTIALS is true.")
        return self


class RedisQueueSettings(SettingsGroup):
    """Switches the job queue. `REDIS_QUEUE_URL` wins over the parts."""

    REDIS_QUEUE_HOST: str = "localhost"
    REDIS_QUEUE_PORT: Port = 6379
    REDIS_QUEUE_URL: RedisUrl = None
    JOB_KEEP_DAYS: int = Field(7, ge=1, le=3650, description="for how many days jobs are kept after their end")
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
    REDIS_RATE_LIMIT_URL: AnyRedisUrl = None
    RATE_LIMIT_MODE: RateLimitMode = Field(RateLimitMode.ENFORCE, description="one of enforce, shadow, off")

    @property
    def redis_rate_limit_url(self) -> str:
        """The address, password included."""
        return _redis_url(self.REDIS_RATE_LIMIT_URL, self.REDIS_RATE_LIMIT_HOST, self.REDIS_RATE_LIMIT_PORT)


class DefaultRateLimitSettings(SettingsGroup):
    """The rule for callers and routes that no tier's rule names."""

    DEFAULT_RATE_LIMIT_LIMIT: PositiveInt = Field(100, description="a number of requests, 1 or more")
    DEFAULT_RATE_LIMIT_PERIOD: PositiveInt = Field(60, description="a number of seconds, 1 or more")


class ProxySettings(SettingsGroup):
    """Switches the reading of `X-Forwarded-For`: whose word counts about where a request comes from."""

    TRUSTED_PROXIES: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="a comma-separated list of the networks and addresses of your proxies, such as 10.0.0.0/8; "
        "unix for those that connect through a socket",
    )
    TRUSTED_PROXY_HOPS: int = Field(
        1, ge=1, le=10, description="the number of proxies that a request passes one after the other, 1 to 10"
    )

    @field_validator("TRUSTED_PROXIES", mode="before")
    @classmethod
    def _read_networks(cls, value: Any) -> Any:
        return _items(value)

    @field_validator("TRUSTED_PROXIES")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        TrustedProxies(value, 1)
        return value

    @property
    def trusted_proxies(self) -> TrustedProxies:
        """The proxies, as `ClientAddressMiddleware` needs them."""
        return TrustedProxies(self.TRUSTED_PROXIES, self.TRUSTED_PROXY_HOPS)


class MetricsSettings(SettingsGroup):
    """Switches `/metrics`: in `local` for everybody, elsewhere for whoever has the token, once one is set."""

    METRICS_TOKEN: SecretStr | None = Field(
        None, min_length=16, description="at least 16 random characters, which Prometheus sends as a bearer token"
    )
    WORKER_METRICS_PORT: Port | None = Field(None, description="a TCP port, 1 to 65535, where a worker has its metrics")
    WORKER_METRICS_HOST: str = Field("127.0.0.1", description="an address of this machine; they are open to all there")


def _is_email_address(value: str) -> str:
    validate_email(value, check_deliverability=False)
    return value


FrontEndPage = Annotated[
    Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?]*)?$")] | None,
    Field(description="an http(s) URL without a query, to which ?token=... is added"),
]


class SMTPSettings(SettingsGroup):
    """Switches mail once `SMTP_HOST` is set; in `local` the log stands in for a host."""

    SMTP_HOST: Annotated[str, Field(pattern=r"^[^\s/]+$")] | None = Field(
        None, description="a host name or an IP address"
    )
    SMTP_PORT: Port = 587
    SMTP_USERNAME: str | None = None
    SMTP_PASSWORD: SecretStr | None = None
    SMTP_SECURITY: Literal["starttls", "tls", "none"] = Field("starttls", description="one of starttls, tls, none")
    SMTP_FROM: Annotated[str, AfterValidator(_is_email_address)] = Field(
        "noreply@example.com", description="an e-mail address"
    )
    PASSWORD_RESET_URL: FrontEndPage = None
    EMAIL_VERIFICATION_URL: FrontEndPage = None

    @model_validator(mode="after")
    def _refuse_half_a_login(self) -> Self:
        for given, missing in permutations(("SMTP_USERNAME", "SMTP_PASSWORD")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise ValueError(f"{missing} must be set where {given} is.")
        return self


class Settings(
    AppSettings,
    CryptSettings,
    PostgresSettings,
    FirstUserSettings,
    FirstTierSettings,
    RedisCacheSettings,
    ClientSideCacheSettings,
    CORSSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    DefaultRateLimitSettings,
    ProxySettings,
    SMTPSettings,
    MetricsSettings,
    EnvironmentSettings,
):
    """This application's settings: leave a group out and its feature is gone."""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
