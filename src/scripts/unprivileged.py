"""An ordinary user for servers that refuse to run as root, and files where that user can reach them."""

import contextlib
import ctypes
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

USER_NAME = "slipway"
ROOT_BASE = Path("/var/lib")
_DISK, _MEMORY = Path("/tmp"), Path("/dev/shm")  # noqa: S108  (mkdtemp makes the names)
_ROOM = 4 * 2**30  # bytes


class ServiceError(Exception):
    """A service can't run; the message is one line that says what to do."""


class Identity(TypedDict, total=False):
    """The keyword arguments of `subprocess` that say who runs the child; empty is the caller."""

    user: int
    group: int
    extra_groups: list[int]


@lru_cache(maxsize=1)
def identity() -> Identity:
    """Who runs the servers: the caller, or for root a system user `slipway`, else `nobody`."""
    if os.geteuid() != 0:
        return {}
    account = _system_user() or pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _system_user() -> pwd.struct_passwd | None:
    command = ["useradd", "--system", "--no-create-home", "--user-group", USER_NAME]
    for _ in range(20):  # Another process may be making the same user, and holds the lock of /etc/passwd.
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(USER_NAME)
        if shutil.which(command[0]) is None:
            return None
        subprocess.run(command, check=False, capture_output=True)
        time.sleep(0.05)
    return None


def package_folder(package: str) -> Path:
    """A folder with the package's files, executable for the servers' user; the package is not imported.

    The wheels' Python code is avoided on purpose: it changes the mode of parent folders and leaks servers.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError(f"The package {package} is not installed: run `make install`.")
    folder = Path(spec.submodule_search_locations[0])
    if not identity() or _reaches(folder / "__init__.py"):
        return folder
    return _copy_once(folder, ROOT_BASE / USER_NAME / f"{package}-{version(package)}")


def _copy_once(source: Path, target: Path) -> Path:
    """Copy a package to where everybody can read it; a copy is complete or absent."""
    if not target.exists():
        _make_readable_folder(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
        # Wheels for Linux keep their shared libraries beside the package, and find them by a relative path.
        for folder in (source, source.with_name(f"{source.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, scratch / folder.name, symlinks=True, ignore=_BYTE_CODE)
        subprocess.run(["/bin/chmod", "-R", "a+rX", str(scratch)], check=True)
        try:
            scratch.rename(target)
        except OSError:  # Somebody else was faster, with the same files.
            shutil.rmtree(scratch)
    return target / source.name


_BYTE_CODE = shutil.ignore_patterns("__pycache__")


def data_folder(folder: Path) -> Path:
    """Make `folder` the servers' user's own, mode 0700, and return where it really is.

    When root's project lies where that user can't go, `folder` becomes a symbolic link to a place under
    `/var/lib`; the mode of a parent folder is never changed.

    Raises: ServiceError when this user can't have it, or when it is a link to another checkout's data.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if identity() and not folder.is_symlink() and not _reaches(folder.parent):
            _relocate(folder)
        real = folder.resolve()
        if folder.is_symlink():
            _refuse_anothers(folder, real)
        real.mkdir(mode=0o700, parents=True, exist_ok=True)
        _own(real)
    except PermissionError as error:
        raise ServiceError(
            f"{folder} belongs to another user: run as that user, or `sudo chown -R $(id -un) {folder.parent}`."
        ) from error
    except OSError as error:
        raise ServiceError(f"{folder} can't hold data: {error.strerror}.") from error
    return real


def _refuse_anothers(folder: Path, real: Path) -> None:
    """A copied project has the original's links: two pairs of servers would fight for one folder."""
    base = real.parent
    if base.parent == ROOT_BASE.resolve() and base.name.startswith(f"{USER_NAME}-") and base.name != _base(folder).name:
        raise ServiceError(
            f"{folder} leads to the data of a project in another folder: if this is a copy of it, `rm -r "
            f"{folder.parent}` for data of its own; if it was moved here, `rm {folder} && mv {real} {folder}`."
        )


def _base(folder: Path) -> Path:
    return ROOT_BASE / f"{USER_NAME}-{hashlib.sha256(os.fsencode(folder.parent.resolve())).hexdigest()[:12]}"


def _relocate(folder: Path) -> None:
    """Put a link in the folder's place; older data that no link leads to any more are kept aside."""
    base = _base(folder)
    _make_readable_folder(base)
    target = base / folder.name
    if target.exists():  # Somebody has removed the link, to start afresh.
        target.rename(base / f"{folder.name}.{time.time_ns()}")
    if folder.exists():
        shutil.move(folder, target)
    else:
        target.mkdir(mode=0o700)
    folder.symlink_to(target)


def _make_readable_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)


def _own(folder: Path) -> None:
    user = identity().get("user")
    if user is not None and folder.stat().st_uid != user:
        for parent, _, files in os.walk(folder):
            for path in (parent, *(os.path.join(parent, file) for file in files)):  # noqa: PTH118
                os.chown(path, user, identity()["group"], follow_symlinks=False)
    if folder.stat().st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
    os.listdir(folder)  # noqa: PTH208  # Raises for a folder that is somebody else's.


def _reaches(path: Path) -> bool:
    """Whether the servers' user can enter this folder, or read this file."""
    test = "-x" if path.is_dir() else "-r"
    return (
        subprocess.run(["/bin/sh", "-c", f'test {test} "$0"', str(path)], check=False, cwd="/", **identity()).returncode
        == 0
    )


@contextlib.contextmanager
def scratch_folder(*, in_memory: bool = True) -> Iterator[Path]:
    """A new temporary folder that servers can use for their data, removed at the end.

    It belongs to the servers' user. Root's `tmp_path` in tests is closed to that user: data in it would move
    to `/var/lib` and stay. A database is a thousand small files, which memory makes in a quarter of the time.
    """
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="slipway-", dir=_MEMORY if in_memory and roomy else _DISK))
    try:
        if identity():
            os.chown(folder, identity()["user"], identity()["group"])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def die_with_parent(signal_number: int) -> None:
    """Called in a new child: ask Linux to signal it when its parent's thread ends; elsewhere do nothing."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal_number)  # 1 is PR_SET_PDEATHSIG, see prctl(2).


# Loaded before any fork: a child between fork and exec should do as little as possible.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
