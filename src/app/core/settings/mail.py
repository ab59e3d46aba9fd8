"""Mail."""

from itertools import permutations
from typing import Annotated, Literal, Self

from email_validator import validate_email
from pydantic import AfterValidator, Field, SecretStr, model_validator

from app.core.settings.base import Port, SettingsGroup


def _is_email_address(value: str) -> str:
    validate_email(value, check_deliverability=False)
    return value


FrontEndPage = Annotated[
    Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?]*)?$")] | None,
    Field(description="an http(s) URL without a query, to which ?token=... is added"),
]


class SMTPSettings(SettingsGroup):
    """Switches mail once `SMTP_HOST` is set; in `local` the log stands in for a host."""

    SMTP_HOST: Annotated[str, Field(pattern=r"^[^\s/]+$")] | None = Field(
        None, description="a host name or an IP address"
    )
    SMTP_PORT: Port = 587
    SMTP_USERNAME: str | None = None
    SMTP_PASSWORD: SecretStr | None = None
    SMTP_SECURITY: Literal["starttls", "tls", "none"] = Field("starttls", description="one of starttls, tls, none")
    SMTP_FROM: Annotated[str, AfterValidator(_is_email_address)] = Field(
        "noreply@example.com", description="an e-mail address"
    )
    PASSWORD_RESET_URL: FrontEndPage = None
    EMAIL_VERIFICATION_URL: FrontEndPage = None

    @model_validator(mode="after")
    def _refuse_half_a_login(self) -> Self:
        for given, missing in permutations(("SMTP_USERNAME", "SMTP_PASSWORD")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise ValueError(f"{missing} must be set where {given} is.")
        return self
