"""Where the app runs, and what is refused in production."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from app.core.settings.base import SettingsGroup
from app.core.settings.weaknesses import weaknesses


class EnvironmentOption(StrEnum):
    """Where the app runs: decides who sees the documentation and how strict the start is."""

    LOCAL = "local"
    STAGING = "staging"
    PRODUCTION = "production"


class EnvironmentSettings(SettingsGroup):
    """Switches the documentation pages; without it the app behaves as in production."""

    ENVIRONMENT: EnvironmentOption = Field(EnvironmentOption.LOCAL, description="one of local, staging, production")

    @model_validator(mode="after")
    def _refuse_weaknesses_in_production(self) -> Self:
        if self.ENVIRONMENT is EnvironmentOption.PRODUCTION and (found := weaknesses(self)):
            raise ValueError("\n".join(weakness.text for weakness in found))
        return self


def environment_of(settings: SettingsGroup) -> EnvironmentOption:
    """Where the app runs; without `EnvironmentSettings` it is taken for production."""
    return settings.ENVIRONMENT if isinstance(settings, EnvironmentSettings) else EnvironmentOption.PRODUCTION
