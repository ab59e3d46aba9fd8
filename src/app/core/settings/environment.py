"""Where the app runs, and what is refused in production."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Self

from pydantic import Field, SecretStr, model_validator
from sqlalchemy import make_url

from app.core.keyring import parse_key
from app.core.settings.base import SettingsGroup


class EnvironmentOption(StrEnum):
    """Where the app runs: decides who sees the documentation and how strict the start is."""

    LOCAL = "local"
    STAGING = "staging"
    PRODUCTION = "production"


class EnvironmentSettings(SettingsGroup):
    """Switches the documentation pages; without it the app behaves as in production."""

    ENVIRONMENT: EnvironmentOption = Field(EnvironmentOption.LOCAL, description="one of local, staging, production")

    @model_validator(mode="after")
    def _refuse_weak_secrets_in_production(self) -> Self:
        if self.ENVIRONMENT is EnvironmentOption.PRODUCTION:
            weak = [name for name, value in self._secrets_in_use() if _WEAK[name](value)]
            if weak:
                raise ValueError(
                    "; ".join(f"{name} must not be an example, a default or guessable in production" for name in weak)
                    + "."
                )
        return self

    def _secrets_in_use(self) -> Iterator[tuple[str, str]]:
        for name in _WEAK:
            secret: SecretStr | None = getattr(self, name, None)
            replaced = name == "POSTGRES_PASSWORD" and getattr(self, "POSTGRES_URL", None) is not None
            if secret is not None and not replaced:
                yield name, secret.get_secret_value()


def environment_of(settings: SettingsGroup) -> EnvironmentOption:
    """Where the app runs; without `EnvironmentSettings` it is taken for production."""
    return settings.ENVIRONMENT if isinstance(settings, EnvironmentSettings) else EnvironmentOption.PRODUCTION


def _is_weak_key(value: str) -> bool:
    return len(set(value)) < 12 or value.lower().startswith(_EXAMPLES)


def _has_weak_key(words: str) -> bool:
    return any(_is_weak_key(parse_key(word).secret) for word in words.split())


def _is_weak_password(value: str) -> bool:
    return len(value) < 12 or value.lower().startswith(_EXAMPLES)


_EXAMPLES = ("change", "secret", "example", "password", "postgres", "admin")


def _has_weak_password(url: str) -> bool:
    password = make_url(url).password
    return password is not None and _is_weak_password(str(password))


_WEAK = {
    "SECRET_KEY": _is_weak_key,
    "OTHER_SECRET_KEYS": _has_weak_key,
    "POSTGRES_PASSWORD": _is_weak_password,
    "POSTGRES_URL": _has_weak_password,
    "ADMIN_PASSWORD": _is_weak_password,
    "METRICS_TOKEN": _is_weak_key,
}
