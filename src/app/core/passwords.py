"""Passwords: which are refused, and how they are hashed."""

import base64
import os
import re
import sys
import threading
import unicodedata
from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from importlib.metadata import distribution
from runpy import run_path
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from app.core.config import CryptSettings
from app.core.exceptions.http_exceptions import ServiceUnavailable
from app.core.memory import give_back

HASHES_AT_ONCE = 2  # more would only compete for cores, each with its own memory
QUIET = 1.0  # seconds without a hash, after which the memory that they took is given back
HASHES_WAITING = 100  # about a second of work; past it the caller is told to come back
_NICENESS = 10  # the event loop goes first

ResultT = TypeVar("ResultT")

_hashes_pending = 0  # running and waiting
_hashes_begun = 0


class HashingBusy(ServiceUnavailable):
    text = "Too many sign-ins at once. Try again shortly."


# ---- Which are refused ----


def is_common(password: str, *words: str) -> bool:
    """Whether a password is among those tried first: a common one, or a word of the context (NIST SP 800-63B, 3.1.1.2).

    Args:
        words: what an attacker knows of this user: the user name, the e-mail address.
    """
    folded = _folded(password)
    own = {_folded(part) for word in words for part in (word, word.partition("@")[0])}
    return _is_tried_first(folded) or folded.strip("0123456789!?.#") in own or len(set(folded)) < 3


def _folded(text: str) -> str:
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text).casefold())


def _is_tried_first(folded: str) -> bool:
    return "," not in folded and f",{folded}," in _common()


@lru_cache(maxsize=1)
def _common() -> str:
    """All of them between commas: a quarter of a megabyte, where a set has 4. To look through it takes 0.2 ms."""
    # Not imported: the package makes dictionaries of this list and others, 13 MB.
    file = distribution("zxcvbn").locate_file("zxcvbn/frequency_lists.py")
    return f",{','.join(run_path(str(file))['FREQUENCY_LISTS']['passwords'])},"


# ---- How they are hashed ----


async def hash_password(password: str, settings: CryptSettings) -> str:
    """The argon2id hash of a password, computed off the event loop.

    Raises: HashingBusy when too many are waiting.
    """
    return await _hash_in_thread(partial(_hasher(settings).hash, password))


async def verify_password(password: str, hashed: str | None, settings: CryptSettings) -> tuple[bool, str | None]:
    """Whether the password belongs to the hash, and a new hash if the old one's parameters are not today's.

    A missing hash takes as long as one that does not match, which is one computation.

    Raises: HashingBusy when too many are waiting.
    """
    hasher = _hasher(settings)
    work = partial(hasher.verify_and_update, password, hashed or _nobodys_hash(settings))
    try:
        matches, renewed = await _hash_in_thread(work)
    except UnknownHashError:  # a row brought over from elsewhere: nobody can sign in with it
        return False, None
    return matches and hashed is not None, renewed


def _hasher(settings: CryptSettings) -> PasswordHash:
    return _hasher_of(
        settings.PASSWORD_HASH_TIME_COST, settings.PASSWORD_HASH_MEMORY_KIB, settings.PASSWORD_HASH_PARALLELISM
    )


@lru_cache(maxsize=8)
def _hasher_of(time_cost: int, memory_cost: int, parallelism: int) -> PasswordHash:
    return PasswordHash((Argon2Hasher(time_cost=time_cost, memory_cost=memory_cost, parallelism=parallelism),))


def _nobodys_hash(settings: CryptSettings) -> str:
    """A hash that no password has, of today's parameters: its 32 bytes were not computed from anything."""
    costs = (
        f"m={settings.PASSWORD_HASH_MEMORY_KIB},t={settings.PASSWORD_HASH_TIME_COST},"
        f"p={settings.PASSWORD_HASH_PARALLELISM}"
    )
    salt, hashed = (base64.b64encode(bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19${costs}${salt}${hashed}"


async def _hash_in_thread(work: Callable[[], ResultT]) -> ResultT:
    global _hashes_pending, _hashes_begun
    if _hashes_pending >= HASHES_AT_ONCE + HASHES_WAITING:
        raise HashingBusy
    _hashes_pending += 1
    _hashes_begun += 1
    try:
        return await get_running_loop().run_in_executor(_threads(), work)
    finally:
        _hashes_pending -= 1
        if not _hashes_pending:
            get_running_loop().call_later(QUIET, _give_back_if_quiet, _hashes_begun)


def _give_back_if_quiet(begun: int) -> None:
    """Not after each: the next is computed in the same memory, which takes 8 ms to get anew, and 2 to give back.

    By then one that nobody waits for any more is computed, too.
    """
    if begun == _hashes_begun and not _hashes_pending:
        give_back()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(HASHES_AT_ONCE, "hash", initializer=_step_back)


def _step_back() -> None:
    if sys.platform == "linux":  # Only there a thread has a niceness of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
