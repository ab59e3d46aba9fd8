"""What the API calls itself, what it accepts, and from whom."""

import re
from typing import Annotated, Any, Final, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from app.core.client_address import TrustedProxies
from app.core.settings.base import PositiveInt, SettingsGroup, items


class AppSettings(SettingsGroup):
    """What the API calls itself, and the size of what it accepts."""

    APP_NAME: str = "Slipway"
    APP_DESCRIPTION: str | None = None
    APP_VERSION: str = "0.1.0"
    CONTACT_NAME: str | None = None
    CONTACT_EMAIL: str | None = None
    LICENSE_NAME: str | None = None
    ROOT_PATH: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = Field(
        "", description="the path under which a proxy has put the application, such as /svc; empty for none"
    )
    MAX_BODY_BYTES: PositiveInt = Field(1_048_576, description="the largest request body, in bytes")
    SHUTDOWN_DELAY_SECONDS: int = Field(
        0, ge=0, le=300, description="for how many seconds a server that was told to stop goes on serving, 0 to 300"
    )


MAX_AGE: Final = 31_536_000  # seconds: a year


def is_max_age(value: object) -> bool:
    """Whether it is a whole number of seconds for `max-age`, from 0 to a year."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_AGE


class ClientSideCacheSettings(SettingsGroup):
    """Switches the `Cache-Control` middleware."""

    CLIENT_CACHE_MAX_AGE: int = Field(60, ge=0, le=MAX_AGE, description="a number of seconds, 0 to a year")
    CLIENT_CACHE_IGNORED_HEADERS: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="a comma-separated list of names of request headers that identify no caller"
    )

    @field_validator("CLIENT_CACHE_IGNORED_HEADERS", mode="before")
    @classmethod
    def _read_ignored_headers(cls, value: Any) -> Any:
        names = [name.lower() for name in items(value)]
        if not all(map(_HEADER_NAME.fullmatch, names)) or not _IDENTIFYING.isdisjoint(names):
            raise ValueError("not the names of headers, or those of credentials")
        return names


_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_IDENTIFYING = frozenset({"authorization", "cookie"})


_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")


def _origin(text: str) -> str:
    """An origin the way browsers write it, which is how it is compared: in lower case, without the usual port."""
    if text == "*":
        return text
    parts = _ORIGIN.fullmatch(text.lower())
    if not parts:
        raise ValueError("not an origin")
    scheme, host, port = parts[1], parts[2], int(parts[3] or _USUAL_PORTS[parts[1]])
    if not 1 <= port <= 65535:
        raise ValueError("not a port")
    return f"{scheme}://{host}" if port == _USUAL_PORTS[scheme] else f"{scheme}://{host}:{port}"


_USUAL_PORTS = {"http": 80, "https": 443}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _header_name(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("not a header's name")
    return text


class CORSSettings(SettingsGroup):
    """Switches the CORS middleware, when it names an origin: whose pages may use the API."""

    CORS_ORIGINS: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="a comma-separated list of origins, each scheme://host or scheme://host:port (http, https), or *",
    )
    CORS_ALLOW_CREDENTIALS: bool = Field(False, description="true or false")
    CORS_ALLOW_HEADERS: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="a comma-separated list of header names, such as X-My-Header, or *"
    )
    CORS_EXPOSE_HEADERS: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="a comma-separated list of header names, such as X-My-Header, or *"
    )
    CORS_MAX_AGE: int = Field(600, ge=0, le=86_400, description="a number of seconds, 0 to a day")

    @field_validator("CORS_ORIGINS", mode="before")
    @classmethod
    def _read_origins(cls, value: Any) -> Any:
        return [_origin(item) for item in items(value)]

    @field_validator("CORS_ALLOW_HEADERS", "CORS_EXPOSE_HEADERS", mode="before")
    @classmethod
    def _read_header_names(cls, value: Any) -> Any:
        return [_header_name(item) for item in items(value)]

    @model_validator(mode="after")
    def _refuse_credentials_for_everybody(self) -> Self:
        if self.CORS_ALLOW_CREDENTIALS and "*" in self.CORS_ORIGINS:
            raise ValueError("CORS_ORIGINS must be a list without * when CORS_ALLOW_CREDENTIALS is true.")
        if self.CORS_ALLOW_CREDENTIALS and "*" in self.CORS_EXPOSE_HEADERS:  # Browsers would take it for a name.
            raise ValueError("CORS_EXPOSE_HEADERS must be a list without * when CORS_ALLOW_CREDENTIALS is true.")
        return self


class ProxySettings(SettingsGroup):
    """Switches the reading of `X-Forwarded-For`: whose word counts about where a request comes from."""

    TRUSTED_PROXIES: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="a comma-separated list of the networks and addresses of your proxies, such as 10.0.0.0/8; "
        "unix for those that connect through a socket",
    )
    TRUSTED_PROXY_HOPS: int = Field(
        1, ge=1, le=10, description="the number of proxies that a request passes one after the other, 1 to 10"
    )

    @field_validator("TRUSTED_PROXIES", mode="before")
    @classmethod
    def _read_networks(cls, value: Any) -> Any:
        return items(value)

    @field_validator("TRUSTED_PROXIES")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        TrustedProxies(value, 1)
        return value

    @property
    def trusted_proxies(self) -> TrustedProxies:
        """The proxies, as `ProxyHeadersMiddleware` needs them."""
        return TrustedProxies(self.TRUSTED_PROXIES, self.TRUSTED_PROXY_HOPS)
