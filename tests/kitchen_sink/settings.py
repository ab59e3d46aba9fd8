"""Settings of the application's own beside the shipped groups."""

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from app.core.config import Settings as ShippedSettings
from app.core.config import SettingsGroup


class PublishingSettings(SettingsGroup):
    """A group with one of each kind of value."""

    PUBLISHING_ENABLED: bool = True
    PUBLISHING_API_KEY: SecretStr = SecretStr("a key of the tests' own")
    PUBLISHING_LANGUAGES: list[str] = Field(["en", "de"], description="language codes, with commas between")
    PUBLISHING_RATES: dict[str, float] = Field(default_factory=dict, description="a JSON object of numbers")
    PUBLISHING_MODE: Literal["draft", "live"] = Field("draft", description="draft or live")
    PUBLISHING_PAGE_SIZE: Annotated[int, Field(ge=1, le=100)] = 20


class Settings(PublishingSettings, ShippedSettings):
    """The shipped settings and the application's own."""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()
