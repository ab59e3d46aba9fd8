"""Whose word counts about where a request comes from."""

from app.core.config import EnvironmentOption, ProxySettings, environment_of
from app.core.doctor.finding import Finding, failed, ok, warning
from app.core.settings.weaknesses import anybodys_word

CHECK = "proxies"


def check_proxies(settings: ProxySettings) -> list[Finding]:
    """One finding."""
    if any(anybodys_word(settings)):
        remedy = "have TRUSTED_PROXIES name the networks of your own proxies only, such as 10.0.0.0/8"
        return [failed(CHECK, "anybody can claim to come from any address, and so has no limit", remedy)]
    if settings.TRUSTED_PROXIES:
        return [ok(CHECK, f"{', '.join(settings.TRUSTED_PROXIES)}; {settings.TRUSTED_PROXY_HOPS} one after the other")]
    if environment_of(settings) is EnvironmentOption.PRODUCTION:
        text = "no proxy is trusted: behind one, everybody has its address, and all share one limit"
        return [warning(CHECK, text, "set TRUSTED_PROXIES to the networks of your proxies, if there are any")]
    return [ok(CHECK, "none: clients connect themselves")]
