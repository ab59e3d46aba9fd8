"""Where a request comes from: what the proxies that we trust say, and never what the client says."""

import ipaddress
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX: Final = "unix"  # stands for whoever connects through a Unix socket, who has no address
_IPV6_OF_ONE_CUSTOMER: Final = 64  # bits


class TrustedProxies:
    """The proxies whose word counts."""

    def __init__(self, networks: Collection[str], hops: int) -> None:
        """
        Args:
            networks: where they are, such as `10.0.0.0/8`, an address, or `unix`.
            hops: how many of them a request passes at most, the first of them included.

        Raises: ValueError for what is no network.
        """
        self._unix = UNIX in networks
        self._networks = tuple(parse_network(network) for network in networks if network != UNIX)
        self._hops = hops

    def __contains__(self, peer: str | None) -> bool:
        if peer is None:
            return self._unix
        address = parse_address(peer)
        return address is not None and self._is_ours(address)

    def client_of(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """The address of the client of a trusted peer: the first part of `trace`."""
        return self.trace(peer, forwarded_for)[0]

    def trace(self, peer: str | None, forwarded_for: Sequence[str]) -> tuple[str | None, int]:
        """The address of the client of a trusted peer, and the number of trusted proxies that its request has passed.

        Every proxy adds at the right who has asked it, so only what our own have added counts: from the right, as
        many entries as there are hops, and on as long as each is one of ours.

        Args:
            peer: who is connected to us.
            forwarded_for: the `X-Forwarded-For` headers, in their order.
        """
        client, hops = peer, 1
        entries = ",".join(forwarded_for).rsplit(",", self._hops)[-self._hops :]
        for number, entry in enumerate(reversed(entries), start=1):
            address = parse_address(entry)
            if address is None:
                break  # Whoever added it cannot say; who asked us last is as near as one gets.
            client, hops = str(address), number
            if not self._is_ours(address):
                break
        return client, hops

    def _is_ours(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_network(text: str) -> Network:
    """A network, or an address as one. Raises: ValueError."""
    network = ipaddress.ip_network(text.strip(), strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}") if mapped and network.prefixlen >= 96 else network


def parse_address(text: str) -> Address | None:
    """An address, possibly with a port, as proxies write it. An IPv4 address in IPv6 clothes is an IPv4 address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


@lru_cache(maxsize=4096)  # Every request that is counted under an address asks this, and most addresses come again.
def network_of(address: str | None) -> str:
    """What counts as one place: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer gets."""
    parsed = parse_address(address or "")
    if parsed is None:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, _IPV6_OF_ONE_CUSTOMER), strict=False))
    return str(parsed)
