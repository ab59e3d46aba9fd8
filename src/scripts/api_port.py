"""The port of `make run PORT=...`."""

from .server import port_problem
from .unprivileged import ServiceError

USUAL = 8000


def read_port(text: str) -> int:
    """The port that this text names; an empty one, as from `PORT= make run`, names the usual. Raises: ServiceError."""
    if not text:
        return USUAL
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise ServiceError(f"PORT must be a TCP port, 1 to 65535, not {text}.")
    return int(text)


def check_port(port: int) -> None:
    """Raises: ServiceError, with another port to try, when the API can't listen on this one."""
    if problem := port_problem(port):
        other = port + 1 if 1023 < port < 65535 else USUAL
        raise ServiceError(f"Port {port} {problem}: `make run PORT={other}`.")
