"""The pages of the console, one file each; here they stand in the order of the menu."""

from fastapi import FastAPI
from starlette_admin.views import BaseView, CustomView

from app.admin.views.audit import AuditView
from app.admin.views.cache import CachePage
from app.admin.views.front import FrontPage
from app.admin.views.jobs import JobView
from app.admin.views.limits import LimitsPage
from app.admin.views.rate_limits import RateLimitView
from app.admin.views.security_events import SecurityEventView
from app.admin.views.tiers import TierView
from app.admin.views.users import UserView
from app.admin.views.workers import WorkersPage
from app.core.config import RedisCacheSettings, RedisQueueSettings, RedisRateLimiterSettings, Settings


def front() -> CustomView:
    """The front page."""
    return FrontPage()


def views_of(app: FastAPI, settings: Settings) -> list[BaseView]:
    """The others that these settings switch on."""
    views: list[BaseView] = [UserView(), TierView(), RateLimitView()]
    if settings.inherits(RedisRateLimiterSettings):
        views.append(LimitsPage())
    if settings.inherits(RedisQueueSettings):
        views += [JobView(), WorkersPage()]
    if settings.inherits(RedisCacheSettings):
        views.append(CachePage())
    views += [SecurityEventView(), AuditView()]
    return views
