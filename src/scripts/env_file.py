"""Writes `src/.env` from `src/.env.example` before the first start, with secrets and ports of its own."""

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .embedded import free_port, is_port_free

POSTGRES_PORTS = ("POSTGRES_PORT",)
VALKEY_PORTS = ("REDIS_CACHE_PORT", "REDIS_QUEUE_PORT", "REDIS_RATE_LIMIT_PORT")


def write_env_file(target: Path, example: Path) -> bool:
    """Write `target` unless it exists, and say whether it was written; it is there complete or not at all.

    Only this user may read it. Ports of the example that are in use are replaced by free ones.
    """
    if target.exists():
        return False
    text = example.read_text(encoding="utf-8")
    return _create(target, _with_values(text, {**_secrets(), **_ports(text)}))


def _secrets() -> dict[str, str]:
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
    """Link the complete file to its name, which unlike a rename fails when somebody else was faster."""
    handle, scratch = tempfile.mkstemp(prefix=".env.", dir=target.parent)  # Its mode is 0600.
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, target)
    except FileExistsError:
        return False
    finally:
        os.unlink(scratch)  # noqa: PTH108
    return True
