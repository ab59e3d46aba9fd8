"""What can be asked over a link, and how that can fail."""

import hashlib
from collections.abc import Iterable
from typing import Any

Word = str | bytes | int | float


class LinkError(Exception):
    """What was asked was not done, as far as one can tell."""


class LinkDown(LinkError):  # noqa: N818 -- a state
    """The server is away or hangs."""


class Refused(LinkError):  # noqa: N818 -- an answer
    """The server answered with an error: out of memory, read-only, loading, ..."""


class Script:
    """A Lua script, sent once and then named by its hash."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


Keys = Word | tuple[Word, ...]  # one, or several of one hash slot
Command = tuple[Any, ...]  # a command's words; or a script, its keys, its arguments


def words_of(command: Command, *, whole: bool = False) -> tuple[Any, ...]:
    """What is sent: of a script its hash, or the `whole` of it."""
    script, *rest = command
    if not isinstance(script, Script):
        return command
    keys, *arguments = rest
    if not isinstance(keys, tuple):
        keys = (keys,)
    named = ("EVAL", script.source) if whole else ("EVALSHA", script.sha)
    return (*named, len(keys), *keys, *arguments)


def lacks_script(reply: object) -> bool:
    """Whether the server has lost the script, or never had it."""
    return isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT")


def first_error(outcomes: Iterable[object]) -> BaseException | None:
    """With what the first that failed has failed."""
    return next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
