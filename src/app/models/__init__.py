"""Every table, so that importing this package fills the metadata that migrations compare against."""

from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.token_blacklist import TokenBlacklist
from app.models.user import User

__all__ = ["RateLimit", "Tier", "TokenBlacklist", "User"]
