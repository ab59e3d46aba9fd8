"""The parameters of a PostgreSQL URL: which are taken, ignored or refused."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

_NAME: Final = re.compile(r"[A-Za-z_]{1,40}")
_LISTS: Final = ("host", "port", "hostaddr")  # may be given several times
# No answer depends on these: asyncpg has no such option, or the application has a setting of its own. The last three
# are for poolers of hosters, which ignore them on other connections.
_IGNORED: Final = (
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("fallback_application_name", "load_balance_hosts", "sslcompression", "connection_limit", "pool_timeout"),
    *("supa", "workaround", "uselibpqcompat"),
)
# The values that ask for what is done in any case, or do not insist.
_ONLY: Final = {
    "channel_binding": ("disable", "prefer", "require"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "gssencmode": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "replication": ("0", "false", "off", "no"),
    "schema": ("public",),
    "sslsni": ("1",),
    "min_protocol_version": ("3.0",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
}
_REFUSED: Final = {
    "service": "write the parameters of the service into the URL",
    "servicefile": "write the parameters of the service into the URL",
    "require_auth": "asyncpg cannot restrict the server's method; use sslmode=verify-full",
    "requirepeer": "asyncpg does not check the server's user; use TCP with sslmode=verify-full",
    "scram_client_key": "use a password",
    "scram_server_key": "use a password",
    "sslkeylogfile": "the keys of connections are not written to files",
}


class AddressError(ValueError):
    """A parameter that cannot be used. The text names it and says what to do; it holds no value."""


class Parameters:
    """The parameters of a URL, each to be taken once."""

    def __init__(self, query: str) -> None:
        self.notes: list[str] = []
        self._values: dict[str, str] = {}
        for pair in filter(None, query.split("&")):
            name, found, value = pair.partition("=")
            if not found or not _NAME.fullmatch(name):
                raise AddressError("has a parameter that is not of the form name=value")
            if name in self._values and name not in _LISTS:
                raise AddressError(f"has the parameter {name} more than once")
            value = unquote(value)
            self._values[name] = f"{self._values[name]},{value}" if name in self._values else value

    def take(self, name: str) -> str | None:
        """Return the value, None where there is none or it is empty."""
        return self._values.pop(name, None) or None

    def pop_if(self, name: str, value: str) -> bool:
        """Return whether the parameter has this value; it is taken then."""
        return self._values.get(name) == value and self.take(name) is not None

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        """Return the value, which has to be one of these."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise AddressError(f"must have one of {', '.join(allowed)} as its {name}")
        return value

    def number(self, name: str) -> int | None:
        """Return the value, which has to be a whole number."""
        value = self.take(name)
        if value is not None and not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise AddressError(f"must have a whole number as its {name}")
        return None if value is None else int(value)

    def end(self) -> None:
        """Note what can be ignored of the rest. Raises: AddressError about the first that cannot."""
        for name in sorted(self._values):
            value = self.take(name)
            if value is None:
                continue
            if name in _REFUSED or name.startswith("oauth_"):
                raise AddressError(f"must not have the parameter {name}: {_REFUSED.get(name, 'use a password')}")
            if name in _ONLY and value.lower() not in _ONLY[name]:
                raise AddressError(f"can have only {' or '.join(_ONLY[name])} as its {name}")
            if name not in _ONLY and name not in _IGNORED:
                raise AddressError(
                    f"must not have the parameter {name}, which libpq does not know: leave it out"
                    " (settings of the server go into options=-c%20name%3Dvalue)"
                )
            self.notes.append(f"{name} is ignored")
