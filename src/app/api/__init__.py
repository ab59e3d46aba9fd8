"""The HTTP side of the app."""

from fastapi import APIRouter

from app.api.v1 import health, login, logout, rate_limits, tasks, tiers, users
from app.core.config import CryptSettings, PostgresSettings, RedisQueueSettings, SettingsGroup

PREFIX = "/api/v1"


def build_router(settings: SettingsGroup) -> APIRouter:
    """The routes of version 1 that these settings switch on."""
    router = APIRouter(prefix=PREFIX)
    router.include_router(health.router)
    if settings.inherits(PostgresSettings, CryptSettings):
        for resource in (login, logout, users, tiers, rate_limits):
            router.include_router(resource.router)
        if settings.inherits(RedisQueueSettings):
            router.include_router(tasks.router)
    return router
