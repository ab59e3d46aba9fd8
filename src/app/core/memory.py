"""What a process that serves holds once it has started, and what it gives back."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

_M_ARENA_MAX: Final = -8  # as glibc's malloc.h has it
_MADE_SINCE: Final = 5_000  # objects; Python's own is 700 (3.11) or 2,000 (3.13)


def settle() -> None:
    """What is loaded by now stays: the collector need not look through it again and again, at a fifth of all time.

    And it looks less often at what is made since, nearly all of which is gone by then: at a twelfth of all time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MADE_SINCE)


@contextmanager
def forgetting(package: str) -> Iterator[None]:
    """Has a package that is first imported meanwhile forgotten at the end, and with it what it holds.

    For one that a start needs, and nothing after it.
    """
    known = package in sys.modules
    try:
        yield
    finally:
        if not known:
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                del sys.modules[name]


def share_one_heap() -> None:
    """Has glibc keep the memory of all threads in one heap: of other heaps, `give_back` cannot give back the end.

    To be called while there is one thread. Does nothing where the C library is another one.
    """
    if (mallopt := getattr(_c_library(), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Gives the memory that is free to the system. Does nothing where the C library is another one.

    Takes 2 ms, and up to 20 where much is free in pieces: for a process that has nothing better to do.
    """
    if (malloc_trim := getattr(_c_library(), "malloc_trim", None)) is not None:
        malloc_trim(0)


@lru_cache(maxsize=1)
def _c_library() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
