"""What goes in and out when somebody signs in."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, SecretStr, validate_email
from pydantic import Field as PydanticField


def _as_registered(name_or_email: str) -> str:
    """An e-mail address in the form in which signing up has stored it; anything else as it is.

    So are addresses with the Kelvin sign, of which the form would have a K: it looks like another address.
    """
    try:
        return name_or_email.strip() if "\u212a" in name_or_email else validate_email(name_or_email)[1]
    except ValueError:
        return name_or_email.strip()


class LoginForm(BaseModel):
    """OAuth2's password form (RFC 6749, section 4.3.2), of which only name and password count here."""

    username: Annotated[
        str,
        PydanticField(max_length=254, pattern=r"^[^\x00]*$", description="Or the e-mail address."),
        AfterValidator(_as_registered),
    ]
    password: Annotated[SecretStr, PydanticField(max_length=128)]
    grant_type: Literal["password", ""] = ""
    scope: str = ""
    client_id: str | None = None
    client_secret: str | None = None


class AccessTokenRead(BaseModel):
    """OAuth2's answer (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  (a word of the protocol)
