"""Sign-in, and who is there at first."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from app.core.keyring import Keyring, keyring, parse_key
from app.core.settings.base import SettingsGroup


class CryptSettings(SettingsGroup):
    """Switches sign-in."""

    SECRET_KEY: SecretStr = Field(
        min_length=32, description="at least 32 random characters (`openssl rand -hex 32` makes 64)"
    )
    OTHER_SECRET_KEYS: SecretStr = Field(
        SecretStr(""),
        description="keys that verify but do not sign, with spaces between: at least 32 characters each, "
        "and possibly @ and when to stop, such as KEY@2026-12-31T00:00:00+00:00",
    )
    ALGORITHM: Literal["HS256", "HS384", "HS512"] = Field("HS256", description="one of HS256, HS384, HS512")
    ACCESS_TOKEN_EXPIRE_MINUTES: int = Field(15, ge=1, le=1440, description="a number of minutes, 1 to 1440")
    TOKEN_ISSUER: str = Field("slipway", min_length=1, description="the name in the tokens' iss and aud")
    REFRESH_TOKEN_EXPIRE_DAYS: int = Field(
        7, ge=1, le=3650, description="the number of days after which an unused login ends, 1 to 3650"
    )
    SESSION_EXPIRE_DAYS: int = Field(
        30, ge=1, le=3650, description="the number of days after which any login ends, 1 to 3650"
    )
    REFRESH_GRACE_SECONDS: int = Field(
        10, ge=0, le=60, description="for how many seconds a refresh may be repeated, 0 to 60"
    )
    # OWASP's minimum for argon2id: 19 MiB, two passes, one lane. That is some 20 ms and 19 MiB per hash.
    PASSWORD_HASH_MEMORY_KIB: int = Field(
        19_456, ge=19_456, le=4_194_304, description="a number of KiB per hash, 19456 or more"
    )
    PASSWORD_HASH_TIME_COST: int = Field(2, ge=2, le=100, description="a number of passes, 2 or more")
    PASSWORD_HASH_PARALLELISM: int = Field(1, ge=1, le=64, description="a number of lanes, 1 or more")
    SECURITY_EVENT_DAYS: int = Field(90, ge=1, le=36_500, description="for how many days security events are kept")

    @field_validator("OTHER_SECRET_KEYS")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        for word in value.get_secret_value().split():
            parse_key(word)
        return value

    @property
    def keyring(self) -> Keyring:
        """The key that signs, and those that verify."""
        return keyring(self.SECRET_KEY.get_secret_value(), self.OTHER_SECRET_KEYS.get_secret_value())


class FirstUserSettings(SettingsGroup):
    """Who `create_first_superuser` creates."""

    ADMIN_NAME: str = "Admin"
    ADMIN_EMAIL: str = "admin@example.com"
    ADMIN_USERNAME: str = "admin"
    ADMIN_PASSWORD: SecretStr | None = None


class FirstTierSettings(SettingsGroup):
    """What `create_first_tier` creates."""

    TIER_NAME: str = "free"
