"""The HTTP side of the app."""

from fastapi import APIRouter, Depends

from app.api.dependencies import limit_rate
from app.api.v1 import (
    email_verification,
    health,
    login,
    logout,
    media,
    password_reset,
    passwords,
    profile_images,
    rate_limits,
    security_events,
    sessions,
    tasks,
    tiers,
    usage,
    users,
)
from app.core.config import (
    CryptSettings,
    PostgresSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    SettingsGroup,
)
from app.core.mail import mail_is_on
from app.core.openapi import problems
from app.core.storage import serves_media, storage_is_on
from app.core.utils.rate_limit import RateLimited

PREFIX = "/api/v1"


def build_router(settings: SettingsGroup) -> APIRouter:
    """The routes of version 1 that these settings switch on, all but health and uploaded files limited."""
    router = APIRouter(prefix=PREFIX)
    router.include_router(health.router)
    limited = APIRouter()
    if settings.inherits(RedisRateLimiterSettings):
        limited = APIRouter(dependencies=[Depends(limit_rate)], responses=problems(RateLimited))
    if settings.inherits(PostgresSettings, CryptSettings):
        # Before users: `/user/me/...` is not about a user who is called "me".
        for resource in (login, logout, sessions, passwords, users, tiers, rate_limits, security_events):
            limited.include_router(resource.router)
        if storage_is_on(settings):
            limited.include_router(profile_images.router)
        if serves_media(settings):
            router.include_router(media.router)  # Not limited: a page shows many, and a browser keeps them.
        if settings.inherits(RedisRateLimiterSettings):
            limited.include_router(usage.router)
        if settings.inherits(RedisQueueSettings):
            limited.include_router(tasks.router)
            if mail_is_on(settings):
                limited.include_router(password_reset.router)
                limited.include_router(email_verification.router)
    router.include_router(limited)
    return router
