"""Reads and adds headers as ASGI has them: pairs of bytes, names in lower case.

Every request passes here several times; Starlette's `Headers` would decode all of them each time.
"""

from collections.abc import Container

from starlette.types import Message, Scope

RawHeader = tuple[bytes, bytes]


def header(scope: Scope | Message, name: bytes) -> bytes | None:
    """The first header of this name, or None."""
    for given, value in scope["headers"]:
        if given == name:
            return bytes(value)
    return None


def has_header(scope: Scope | Message, names: Container[bytes]) -> bool:
    """Whether there is a header of any of these names."""
    return any(given in names for given, _ in scope["headers"])


def with_headers(message: Message, *added: RawHeader) -> Message:
    """The message with these headers as well, and without others of their names."""
    names = [name for name, _ in added]
    headers = [pair for pair in message["headers"] if pair[0] not in names]
    headers += added
    return {**message, "headers": headers}
