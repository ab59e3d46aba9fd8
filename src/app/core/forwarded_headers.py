"""Reads the scheme and the host of a request as a trusted proxy reports them: `X-Forwarded-Proto`, `X-Forwarded-Host`.

`Forwarded` (RFC 7239) is not read: a proxy that maintains `X-Forwarded-*` passes a caller's own `Forwarded` on.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import Final

_SCHEMES: Final = frozenset({"http", "https"})
# A name or an address with an optional port (RFC 9110, section 7.2), without what could change the rest of a URL.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")


def forwarded_scheme(values: Sequence[str], hops: int) -> str | None:
    """The scheme that the client used: `http`, `https`, or None where the proxies do not report one of these.

    Args:
        values: the `X-Forwarded-Proto` headers, in their order.
        hops: how many trusted proxies the request has passed.
    """
    scheme = _entry(values, hops).lower()
    return scheme if scheme in _SCHEMES else None


def forwarded_host(values: Sequence[str], hops: int) -> str | None:
    """The host, with its port if it has one, that the client asked for; None where there is no valid one.

    Args:
        values: the `X-Forwarded-Host` headers, in their order.
        hops: how many trusted proxies the request has passed.
    """
    host = _entry(values, hops)
    found = _HOST.fullmatch(host)
    if found is None or (found[2] is not None and not 1 <= int(found[2]) <= 65535):
        return None
    return host if found[1] is None or _is_ipv6(found[1]) else None


def _entry(values: Sequence[str], hops: int) -> str:
    """The entry of the outermost trusted proxy. A proxy that appends does so at the right end."""
    return ",".join(values).rsplit(",", hops)[-hops:][0].strip(" \t")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
