"""Files in a folder of this machine."""

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from app.core.config import StorageSettings
from app.core.storage.content import Content
from app.core.storage.errors import storage_errors
from app.core.storage.receiving import TEMPORARY_SUFFIX
from app.core.storage.storage import Storage, is_key

_ABANDONED_AFTER: Final = 86_400.0  # seconds after which a temporary file belongs to no process any more


class FolderStorage(Storage):
    """Stores a file by renaming it, so that nobody sees half of one.

    Attributes:
        folder: holds the files by their keys.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self.folder = settings.storage_folder
        temporary = self.folder / ".incoming"  # on the same file system, so that a file can be renamed
        super().__init__(settings, temporary)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(temporary)
        except OSError:
            return  # An upload says so, and the log: all else goes on without this folder.

    def path_of(self, key: str) -> Path:
        """The path of a stored file. Raises: ValueError for what is no key, and so could lead out of the folder."""
        if not is_key(key):
            raise ValueError("not a key")
        return self.folder / key

    async def delete(self, key: str) -> None:
        with storage_errors():
            await asyncio.to_thread(self.path_of(key).unlink, missing_ok=True)

    async def _store(self, key: str, path: Path, content: Content) -> None:
        await asyncio.to_thread(_move, path, self.path_of(key))


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # so that the name is not lost with the power either
    finally:
        os.close(descriptor)


def _remove_abandoned(temporary: Path) -> None:
    """Removes what processes that were killed have left."""
    oldest = time.time() - _ABANDONED_AFTER
    for path in temporary.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
