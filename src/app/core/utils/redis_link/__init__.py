"""Connections to Redis/Valkey that all requests of a process share: `open_link` makes the one that a URL asks for."""

from app.core.utils.redis_link.address import CLUSTER, parse
from app.core.utils.redis_link.cluster import ClusterLink
from app.core.utils.redis_link.command import Command, LinkDown, LinkError, Refused, Script
from app.core.utils.redis_link.link import Link

__all__ = ["AnyLink", "ClusterLink", "Command", "Link", "LinkDown", "LinkError", "Refused", "Script", "link_to"]

AnyLink = Link | ClusterLink


def link_to(url: str, name: str) -> AnyLink:
    """A link, not opened yet, to the server or cluster that the URL names.

    Args:
        url: where it is, password included (`address.py` has the forms).
        name: what the log calls the link.

    Raises: ValueError.
    """
    return ClusterLink(url, name) if parse(url).kind == CLUSTER else Link(url, name)
