"""`make install`: a `.venv` with what the lock file says, of this very place.

It runs as a file, with whatever Python there is, before anything is installed. `.venv/.installed`, which is written
last, says for which lock file and which place the `.venv` is good.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements-dev.txt"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
DONE = VENV / ".installed"


def main() -> None:
    """Return when all is installed. Raises: SystemExit with one line, or when pip has said what is wrong."""
    if _is_up_to_date():
        return
    try:
        lock = LOCK.open("r+b")
    except OSError as error:
        raise SystemExit(f"{LOCK} must be writable for this user: {error.strerror}.") from None
    with lock:
        _take(lock.fileno())
        if not _is_up_to_date():
            _install(lock.fileno())


def _is_up_to_date() -> bool:
    try:
        return DONE.read_bytes() == _wanted() and os.access(PYTHON, os.X_OK)
    except OSError:
        return False


def _wanted() -> bytes:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest().encode() + b" " + os.fsencode(ROOT)


def _take(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another make is installing into .venv: waiting for it.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _install(lock: int) -> None:
    wanted = _wanted()
    if DONE.exists():
        DONE.unlink()
    if not _is_sound():
        _check_version()
        if VENV.is_symlink():  # It leads to another project's, which is not ours to clear.
            VENV.unlink()
        _run(lock, sys.executable, "-I", "-m", "venv", "--clear", str(VENV))
    print("Installing the locked dependencies into .venv ...", flush=True)
    pip = [str(PYTHON), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(lock, *pip, "--require-hashes", "--no-deps", "-r", str(LOCK))
    DONE.write_bytes(wanted)


def _is_sound() -> bool:
    """Whether the `.venv` has a pip, whose first line says that it was made here: scripts keep their place's path."""
    try:
        is_ours = os.fsencode(PYTHON) in (VENV / "bin" / "pip").read_bytes()
    except OSError:
        return False
    return is_ours and os.access(PYTHON, os.X_OK)


def _check_version() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (this file is what older ones get to run)
        version = sys.version.split()[0]
        raise SystemExit(
            f"Slipway needs Python 3.11 or newer, {sys.executable} is {version}: try make PYTHON=python3.12"
        )


def _environment() -> dict[str, str]:
    """The environment without what sends packages elsewhere (PIP_USER, PIP_TARGET, ...) or loads another Python's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    kept |= {name: os.environ[name] for name in _ABOUT_REGISTRIES if name in os.environ}
    return {**kept, "PIP_USER": "0"}  # It wins over a pip.conf as well.


_ABOUT_REGISTRIES = (
    *("PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_TRUSTED_HOST"),
    *("PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY", "PIP_KEYRING_PROVIDER", "PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT"),
    *("PIP_RETRIES", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR", "PIP_NO_INPUT", "PIP_ROOT_USER_ACTION"),
)


def _run(lock: int, *command: str) -> None:
    """Run a command that keeps the lock even when this process is killed. Raises: SystemExit when it fails."""
    code = subprocess.call(command, pass_fds=[lock], env=_environment())
    if code:
        sys.exit(code if code > 0 else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
