"""The HTTP side of the app."""

from fastapi import APIRouter

from app.api.v1 import (
    email_verification,
    health,
    login,
    logout,
    password_reset,
    passwords,
    rate_limits,
    security_events,
    sessions,
    tasks,
    tiers,
    users,
)
from app.core.config import CryptSettings, PostgresSettings, RedisQueueSettings, SettingsGroup
from app.core.mail import mail_is_on

PREFIX = "/api/v1"


def build_router(settings: SettingsGroup) -> APIRouter:
    """The routes of version 1 that these settings switch on."""
    router = APIRouter(prefix=PREFIX)
    router.include_router(health.router)
    if settings.inherits(PostgresSettings, CryptSettings):
        # Before users: `/user/me/...` is not about a user who is called "me".
        for resource in (login, logout, sessions, passwords, users, tiers, rate_limits, security_events):
            router.include_router(resource.router)
        if settings.inherits(RedisQueueSettings):
            router.include_router(tasks.router)
            if mail_is_on(settings):
                router.include_router(password_reset.router)
                router.include_router(email_verification.router)
    return router
