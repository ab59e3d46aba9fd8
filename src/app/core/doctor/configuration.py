"""The settings themselves."""

from app.core.config import EnvironmentOption, RateLimitMode, RedisRateLimiterSettings, SettingsGroup, environment_of
from app.core.doctor.finding import Finding, ok, warning
from app.core.settings.weaknesses import weaknesses

CHECK = "settings"


def check_configuration(settings: SettingsGroup) -> list[Finding]:
    """They are loaded by now, so what production refuses is a warning here: it is not production."""
    environment = environment_of(settings)
    found = [
        warning(CHECK, weakness.text.removesuffix("."), f"set {weakness.name} to another value before that")
        for weakness in weaknesses(settings)
        if weakness.name != "TRUSTED_PROXIES"  # `proxies` says so.
    ]
    is_production = environment is EnvironmentOption.PRODUCTION
    if is_production and isinstance(settings, RedisRateLimiterSettings) and settings.RATE_LIMIT_MODE != _ENFORCE:
        text = f"RATE_LIMIT_MODE is {settings.RATE_LIMIT_MODE}: nobody is refused"
        found.append(warning(CHECK, text, "set RATE_LIMIT_MODE=enforce, once the limits are right"))
    return [ok(CHECK, f"complete; ENVIRONMENT is {environment}"), *found]


_ENFORCE = RateLimitMode.ENFORCE
