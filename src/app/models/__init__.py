"""Every table, so that importing this package fills the metadata that migrations compare against."""

from app.core.db.outbox import CacheInvalidation
from app.core.utils.queue.table import Job
from app.models.console_action import ConsoleAction
from app.models.login_session import LoginSession
from app.models.login_throttle import LoginThrottle
from app.models.mail_token import MailToken
from app.models.rate_limit import RateLimit
from app.models.security_event import SecurityEvent
from app.models.tier import Tier
from app.models.token_blacklist import TokenBlacklist
from app.models.user import User

__all__ = [
    "CacheInvalidation",
    "ConsoleAction",
    "Job",
    "LoginSession",
    "LoginThrottle",
    "MailToken",
    "RateLimit",
    "SecurityEvent",
    "Tier",
    "TokenBlacklist",
    "User",
]
