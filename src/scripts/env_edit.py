"""Changes values in a `.env` file and nothing else of it: in place for everybody who looks, whole or not at all."""

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sole_editor(file: Path) -> Iterator[None]:
    """Waits until nobody else edits this file. Raises: OSError when it cannot be opened for writing."""
    while True:
        with file.open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever had the lock before has put another file in the place of the one that was opened.
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                yield
                return


@contextmanager
def edited_copy(file: Path, values: Mapping[str, str], *, after: str) -> Iterator[Path]:
    """A copy of the file beside it, with these values, owner and mode included, to check and to put in its place.

    Args:
        after: the variable behind which those go that have no line yet.

    Raises: OSError.
    """
    text = file.read_bytes().decode()  # Not as text, which would change the ends of the lines.
    for name, value in values.items():
        text = _with_value(text, name, value, after)
    handle, name = tempfile.mkstemp(prefix=".env.", dir=file.parent)  # Its mode is 0600.
    copy = Path(name)
    try:
        with os.fdopen(handle, "wb") as target:
            _match_owner_and_mode(handle, file.stat())
            target.write(text.encode())
            target.flush()
            os.fsync(handle)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _match_owner_and_mode(handle: int, wanted: os.stat_result) -> None:
    """Or else root would take the file away from the user whom the servers run as. Raises: PermissionError."""
    current = os.fstat(handle)
    if (current.st_uid, current.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.fchown(handle, wanted.st_uid, wanted.st_gid)
    os.fchmod(handle, stat.S_IMODE(wanted.st_mode))


def _with_value(text: str, name: str, value: str, after: str) -> str:
    """Sets the last line of this name, which is the one that counts, or makes one behind `after`'s, if that exists."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if line := _last_line(text, name):
        space = " " if not line["value"] and line["comment"].startswith("#") else ""
        return text[: line.start("value")] + quoted + space + text[line.end("value") :]
    if line := _last_line(text, after):
        end = "\r\n" if text.startswith("\r\n", line.end()) else "\n"
        return f"{text[: line.end()]}{end}{name}={quoted}{text[line.end() :]}"
    return text


def _last_line(text: str, name: str) -> re.Match[str] | None:
    lines = list(re.finditer(_LINE.format(name=name), text))
    return lines[-1] if lines else None


# As python-dotenv reads it: names in any case, quotes that may span lines, a comment after white space or a quote.
_LINE = r"""(?imx)
    ^ \ufeff? [^\S\r\n]* (?: export [^\S\r\n]+ )? {name} [^\S\r\n]* = [^\S\r\n]*
    (?P<value> "(?: \\. | [^"\\] )*" | '(?: \\. | [^'\\] )*' | [^\r\n]*? )
    (?P<comment> [^\S\r\n]* (?: (?<=[\s"']) \# [^\r\n]* )? )
    (?= [\r\n] | \Z )"""
