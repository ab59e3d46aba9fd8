"""Writes `src/.env` from `src/.env.example` before the first start, with secrets and ports of its own."""

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .embedded import ServiceError, free_port, is_port_free

POSTGRES_PORTS = ("POSTGRES_PORT",)
VALKEY_PORTS = ("REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT")


def write_env_file(target: Path, example: Path) -> bool:
    """Write `target` unless it exists, and say whether it was written; it is there complete or not at all.

    Only this user may read it. Ports of the example that are in use are replaced by free ones.

    Raises: ServiceError when it can't be written.
    """
    try:
        if target.exists():
            return False
        text = example.read_text(encoding="utf-8")
        return _create(target, _with_values(text, {**new_secrets(), **_ports(text)}))
    except OSError as error:
        raise ServiceError(f"{target} can't be written: {error.strerror} ({error.filename}).") from error


def new_secrets() -> dict[str, str]:
    """Return fresh values for the secrets that a start needs."""
    return {
        "SECRET_KEY": secrets.token_hex(32),
        "POSTGRES_PASSWORD": secrets.token_urlsafe(15),
        "ADMIN_PASSWORD": _readable_password(),
    }


def _readable_password() -> str:
    """Four groups of four characters that nobody mixes up: 78 bits."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(4))


def _ports(text: str) -> dict[str, str]:
    ports: dict[str, str] = {}
    for names in (POSTGRES_PORTS, VALKEY_PORTS):
        default = re.search(rf"(?m)^{names[0]}=\"?(\d+)", text)
        if default is not None and not is_port_free(int(default[1])):
            ports |= dict.fromkeys(names, str(free_port()))
    return ports


def _with_values(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = re.sub(rf"(?m)^{name}=.*$", lambda _, line=f'{name}="{value}"': line, text)  # type: ignore[misc]
    return text


def _create(target: Path, text: str) -> bool:
    """Give the complete file its name, unless somebody else was faster."""
    handle, name = tempfile.mkstemp(prefix=".env.", dir=target.parent)  # Its mode is 0600.
    scratch = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _move_to_free_name(scratch, target)
    except FileExistsError:
        return False
    finally:
        scratch.unlink(missing_ok=True)
    return True


def _move_to_free_name(scratch: Path, target: Path) -> None:
    """Like a rename that fails when there is such a file. Raises: FileExistsError."""
    try:
        target.hardlink_to(scratch)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links: take the name first, for the moment until the rename.
        target.touch(mode=0o600, exist_ok=False)
        scratch.replace(target)
