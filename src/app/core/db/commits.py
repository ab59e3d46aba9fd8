"""Whether a request has committed anything: `database` says so, `app.middleware.replica_middleware` wants to know."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Writes:
    """Whether anything was committed in a request."""

    made: bool = False


_writes: ContextVar[Writes | None] = ContextVar("writes_of_the_request", default=None)


@contextmanager
def watching_writes() -> Iterator[Writes]:
    """Tells whether something is committed inside of this."""
    writes = Writes()
    before = _writes.set(writes)
    try:
        yield writes
    finally:
        _writes.reset(before)


def note_commit() -> None:
    """Something was committed."""
    if (writes := _writes.get()) is not None:
        writes.made = True
