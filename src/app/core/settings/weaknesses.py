"""What is refused in production: secrets that can be guessed or are sent in clear text, and everybody as a proxy.

What a guess costs is estimated by zxcvbn (Wheeler, "zxcvbn: Low-Budget Password Strength Estimation", USENIX 2016).
"""

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.core.client_address import UNIX, Network, parse_network
from app.core.db.address import parse_address
from app.core.keyring import parse_key
from app.core.memory import forgetting
from app.core.utils.redis_link.address import parse as parse_redis_url

_EXAMPLES: Final = ("change", "secret", "example", "password", "postgres", "admin")
_SHORTEST: Final = 12  # characters of a password
_LOOKED_AT: Final = 40  # characters of a secret: what follows makes none weaker, and takes ever longer to look at
# Guesses. A server has to be asked about each of a password. What is signed is with everybody: their own machines will
# do, at some 10^10 a second.
_OF_PASSWORD: Final = 10**10
_OF_SIGNING_KEY: Final = 10**20
_LEAST_DIFFERENT: Final = 6  # characters of a key. 3 in 100,000 of `openssl rand -hex 8` have fewer.
_HARMLESS_HEADERS: Final = ("x-scope-orgid",)  # whose data it is: no login
_WIDEST: Final = {4: 8, 6: 16}  # bits of a public network; those of the largest content delivery networks are smaller
_OURS: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


class Weakness(NamedTuple):
    """A setting, and a sentence about it that begins with its name and never repeats its value."""

    name: str
    text: str


def weaknesses(settings: object) -> list[Weakness]:
    """All of them, whatever the environment is; of the groups that the settings have."""
    with forgetting("zxcvbn"):  # 13 MB
        found = [
            Weakness(name, f"{name} must not be an example, a default or guessable in production.")
            for name, value in _secrets_in_use(settings)
            if _WEAK[name](value)
        ]
    return [*found, *_in_clear_text(settings), *_not_public(settings), *anybodys_word(settings)]


def is_this_machine(host: str | None) -> bool:
    """Whether what is sent to this host stays on this machine: loopback, or the folder of a socket."""
    if not host or host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secrets_in_use(settings: object) -> Iterator[tuple[str, str]]:
    unused = {
        "POSTGRES_PASSWORD": getattr(settings, "POSTGRES_URL", None) is not None,
        "SMTP_PASSWORD": getattr(settings, "SMTP_HOST", None) is None,
    }
    for name in _WEAK:
        secret: SecretStr | None = getattr(settings, name, None)
        if secret is not None and not unused.get(name):
            yield name, secret.get_secret_value()


def _in_clear_text(settings: Any) -> Iterator[Weakness]:
    host = getattr(settings, "SMTP_HOST", None)
    login = None if host is None or is_this_machine(host) else settings.SMTP_PASSWORD
    if login is not None and settings.SMTP_SECURITY == "none":
        yield Weakness(
            "SMTP_SECURITY", "SMTP_SECURITY must not be none in production: the login would be sent in clear text."
        )
    for name in ("PASSWORD_RESET_URL", "EMAIL_VERIFICATION_URL"):
        if (getattr(settings, name, None) or "").startswith("http:"):
            yield Weakness(
                name, f"{name} must not begin with http: in production: the token would be sent in clear text."
            )
    if _sends_headers_in_clear_text(settings):
        yield Weakness(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT must not begin with http: in production, where OTEL_EXPORTER_OTLP_HEADERS are"
            " set: a login would be sent in clear text.",
        )


def _not_public(settings: Any) -> Iterator[Weakness]:
    given = getattr(settings, "model_fields_set", ())
    if getattr(settings, "STORAGE_URL", None) is not None and "MEDIA_URL" not in given:
        yield Weakness(
            "MEDIA_URL", "MEDIA_URL must be set in production: without it, the addresses of uploads are of localhost."
        )


def _sends_headers_in_clear_text(settings: Any) -> bool:
    collector = urlsplit(getattr(settings, "OTEL_EXPORTER_OTLP_ENDPOINT", None) or "")
    headers: SecretStr | None = getattr(settings, "OTEL_EXPORTER_OTLP_HEADERS", None)
    if collector.scheme != "http" or is_this_machine(collector.hostname) or headers is None:
        return False
    names = {header.partition("=")[0].strip().lower() for header in headers.get_secret_value().split(",")}
    return not names <= {"", *_HARMLESS_HEADERS}


def anybodys_word(settings: object) -> Iterator[Weakness]:
    """Those about whose word counts for where a request comes from."""
    trusted = [network for network in getattr(settings, "TRUSTED_PROXIES", ()) if network != UNIX]
    if any(_is_anybodys(parse_network(network)) for network in trusted):
        yield Weakness(
            "TRUSTED_PROXIES",
            "TRUSTED_PROXIES must not hold networks of everybody in production: anybody could claim any address.",
        )


def _is_anybodys(network: Network) -> bool:
    is_ours = any(network.version == ours.version and network.subnet_of(ours) for ours in _OURS)  # type: ignore[arg-type]
    return not is_ours and network.prefixlen <= _WIDEST[network.version]


def _is_example(value: str) -> bool:
    return value.lower().startswith(_EXAMPLES)


def _guesses(value: str) -> float:
    # Imported here: its dictionaries are megabytes that no start outside of production needs.
    from zxcvbn import zxcvbn

    return float(zxcvbn(value[:_LOOKED_AT])["guesses"])


def _is_weak_key(value: str, guesses: int) -> bool:
    return _is_example(value) or len(set(value)) < _LEAST_DIFFERENT or _guesses(value) < guesses


def _is_weak_signing_key(value: str) -> bool:
    return _is_weak_key(value, _OF_SIGNING_KEY)


def _has_weak_signing_key(words: str) -> bool:
    return any(_is_weak_signing_key(parse_key(word).secret) for word in words.split())


def _is_weak_token(value: str) -> bool:
    return _is_weak_key(value, _OF_PASSWORD)


def _is_weak_password(value: str) -> bool:
    return _is_example(value) or len(value) < _SHORTEST or _guesses(value) < _OF_PASSWORD


def _has_weak_password(text: str) -> bool:
    password = parse_address(text).url.password
    return password is not None and _is_weak_password(password)


def _has_weak_redis_password(url: str) -> bool:
    options = parse_redis_url(url).options
    passwords = [options[name] for name in ("password", "sentinel_password") if options.get(name) is not None]
    return any(_is_weak_password(password) for password in passwords)


_WEAK: Final[dict[str, Callable[[str], bool]]] = {
    "SECRET_KEY": _is_weak_signing_key,
    "OTHER_SECRET_KEYS": _has_weak_signing_key,
    "POSTGRES_PASSWORD": _is_weak_password,
    "POSTGRES_URL": _has_weak_password,
    "POSTGRES_READ_URL": _has_weak_password,
    "REDIS_CACHE_URL": _has_weak_redis_password,
    "REDIS_QUEUE_URL": _has_weak_redis_password,
    "REDIS_RATE_LIMIT_URL": _has_weak_redis_password,
    "ADMIN_PASSWORD": _is_weak_password,
    "METRICS_TOKEN": _is_weak_token,
    "SMTP_PASSWORD": _is_example,  # How long it is, the mail provider decides.
}
