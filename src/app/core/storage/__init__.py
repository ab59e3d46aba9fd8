"""Stores uploaded files in a folder or in a bucket.

`Storage.receive` writes a request's body to a temporary file and recognises its content, `Storage.keep` stores it under
a random key, and `Storage.discard` deletes one. Both follow the transaction: a file that is kept is deleted again when
the transaction is rolled back, and one that is discarded is deleted after the commit.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.core.config import EnvironmentOption, SettingsGroup, StorageSettings, environment_of
from app.core.storage.content import GIF, IMAGES, JPEG, PDF, PNG, WEBP, Content, ContentType
from app.core.storage.errors import UPLOAD_PROBLEMS
from app.core.storage.folder import FolderStorage
from app.core.storage.receiving import ReceivedFile
from app.core.storage.serving import FileNotStored, file_response
from app.core.storage.storage import Storage

__all__ = [
    "GIF",
    "IMAGES",
    "JPEG",
    "PDF",
    "PNG",
    "UPLOAD_PROBLEMS",
    "WEBP",
    "Content",
    "ContentType",
    "FileNotStored",
    "FolderStorage",
    "ReceivedFile",
    "Storage",
    "file_response",
    "open_storage",
    "serves_media",
    "storage_is_on",
]


def storage_is_on(settings: SettingsGroup) -> bool:
    """Whether files can be stored: a place is named, or the application runs in `local`."""
    if not isinstance(settings, StorageSettings):
        return False
    return settings.STORAGE_URL is not None or environment_of(settings) is EnvironmentOption.LOCAL


def serves_media(settings: SettingsGroup) -> bool:
    """Whether the application serves the stored files: those of a folder, but not those of a bucket."""
    return storage_is_on(settings) and isinstance(settings, StorageSettings) and settings.storage_bucket is None


@asynccontextmanager
async def open_storage(settings: StorageSettings) -> AsyncIterator[Storage]:
    """The storage that the settings name. Connects to nothing yet.

    Raises: SettingsError for a bucket where the extra `s3` is not installed.
    """
    if settings.storage_bucket is None:
        yield FolderStorage(settings)
        return
    from app.core.storage.bucket import open_bucket_storage  # obstore is optional

    with open_bucket_storage(settings) as storage:
        yield storage
