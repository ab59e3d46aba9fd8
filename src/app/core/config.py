"""This application's settings: a feature is on when `Settings` inherits its group (`app.core.settings` has them).

Values come from the environment, then from `src/.env` (or the file that the variable `ENV_FILE` names).
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from app.core.settings.base import ENV_FILE, SettingsError, SettingsGroup
from app.core.settings.console import ConsoleSettings
from app.core.settings.environment import EnvironmentOption, EnvironmentSettings, environment_of
from app.core.settings.http import AppSettings, ClientSideCacheSettings, CORSSettings, ProxySettings
from app.core.settings.mail import SMTPSettings
from app.core.settings.observability import MetricsSettings, TracingSettings
from app.core.settings.postgres import PostgresSettings
from app.core.settings.redis import (
    DefaultRateLimitSettings,
    RateLimitMode,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
)
from app.core.settings.sign_in import CryptSettings, FirstTierSettings, FirstUserSettings
from app.core.settings.storage import StorageSettings

__all__ = [
    "ENV_FILE",
    "AppSettings",
    "CORSSettings",
    "ClientSideCacheSettings",
    "ConsoleSettings",
    "CryptSettings",
    "DefaultRateLimitSettings",
    "EnvironmentOption",
    "EnvironmentSettings",
    "FirstTierSettings",
    "FirstUserSettings",
    "MetricsSettings",
    "PostgresSettings",
    "ProxySettings",
    "RateLimitMode",
    "RedisCacheSettings",
    "RedisQueueSettings",
    "RedisRateLimiterSettings",
    "SMTPSettings",
    "Settings",
    "SettingsError",
    "SettingsGroup",
    "StorageSettings",
    "TracingSettings",
    "environment_of",
    "get_settings",
    "settings",
]


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
    StorageSettings,
    MetricsSettings,
    TracingSettings,
    ConsoleSettings,
    EnvironmentSettings,
):
    """This application's settings: leave a group out and its feature is gone."""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


# `from app.core.config import settings`, as older code has it: read when it is imported, and not with this module.
if TYPE_CHECKING:
    settings: Settings
else:

    def __getattr__(name: str) -> Settings:
        if name == "settings":
            return get_settings()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
