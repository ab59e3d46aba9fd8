"""What a folder and a bucket have in common: keys, the transaction, and how many uploads there are at once."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Final

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import StorageSettings
from app.core.db.database import after_commit, after_rollback
from app.core.storage.content import Content, ContentType, Size
from app.core.storage.errors import StorageBusy, TooManyUploads, storage_errors
from app.core.storage.receiving import MAX_IMAGE_SIZE, ReceivedFile, receive
from app.core.storage.uninterrupted import uninterrupted

CACHE_CONTROL: Final = "public, max-age=3600"  # A key's content never changes, but it can be deleted.

FOLDER_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,49}$"
OWNER_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,49}$"
NAME_PATTERN: Final = r"^[0-9a-f]{32}\.[a-z0-9]{1,10}$"
_KEY: Final = re.compile("/".join(pattern.strip("^$") for pattern in (FOLDER_PATTERN, OWNER_PATTERN, NAME_PATTERN)))


def is_key(text: str) -> bool:
    """Whether this can be the key of a stored file."""
    return _KEY.fullmatch(text) is not None


class Storage(ABC):
    """Receives, stores and deletes files.

    A key is `folder/owner/name`: the folder says what the files are, the owner whose they are, and the name is random.
    """

    def __init__(self, settings: StorageSettings, temporary: Path) -> None:
        """
        Args:
            settings: the public address of files, and how many uploads there may be at once.
            temporary: the folder of files that are being received.
        """
        self._media_url = settings.MEDIA_URL
        self._max_uploads = settings.MAX_CONCURRENT_UPLOADS
        self._temporary = temporary
        self._uploads = 0
        self._uploads_of: Counter[int | str] = Counter()

    @asynccontextmanager
    async def receive(
        self,
        parts: AsyncIterable[bytes],
        accepted: Collection[ContentType],
        max_image_size: Size = MAX_IMAGE_SIZE,
        *,
        sender: int | str | None = None,
    ) -> AsyncIterator[ReceivedFile]:
        """Receives a file, and removes it at the end; `keep` stores it before.

        Use the session for nothing before: it would hold a connection of the pool until the upload is complete.

        Args:
            parts: the content, such as `request.stream()`.
            accepted: the types that are accepted, such as `IMAGES`.
            max_image_size: the largest width and height of an image, in pixels.
            sender: the caller, such as the id of a user, who may have half of the uploads that a process receives at
                the same time. None: all of them.

        Raises: UPLOAD_PROBLEMS.
        """
        if self._uploads >= self._max_uploads:
            raise StorageBusy
        if sender is not None and self._uploads_of[sender] >= (self._max_uploads + 1) // 2:
            raise TooManyUploads
        self._uploads += 1
        if sender is not None:
            self._uploads_of[sender] += 1
        try:
            async with receive(parts, self._temporary, accepted, max_image_size) as received:
                yield received
        finally:
            self._uploads -= 1
            if sender is not None:
                self._uploads_of[sender] -= 1
                if not self._uploads_of[sender]:
                    del self._uploads_of[sender]

    async def keep(self, db: AsyncSession, received: ReceivedFile, folder: str, owner: int | str) -> str:
        """Stores a received file, and deletes it again when the transaction is rolled back.

        Args:
            db: the transaction that writes down the key or the URL.
            received: the file, which is moved.
            folder: what it is, such as `profile-images`.
            owner: whose it is, such as the id of a row.

        Returns: the key.

        Raises: StorageFull, StorageUnavailable; ValueError for a folder or an owner that no key can contain.
        """
        key = f"{folder}/{owner}/{token_hex(16)}.{received.content.type.extension}"
        if not is_key(key):
            raise ValueError("A key's folder and owner must be lower-case letters, digits and dashes.")
        after_rollback(db, partial(self.delete, key))
        with storage_errors():
            await uninterrupted(self._store(key, received.path, received.content))
        return key

    def discard(self, db: AsyncSession, key: str) -> None:
        """Deletes a stored file once the transaction is committed."""
        after_commit(db, partial(self.delete, key))

    def url_of(self, key: str) -> str:
        """The public address of a stored file."""
        return f"{self._media_url}/{key}"

    def key_of(self, url: str | None, folder: str, owner: int | str) -> str | None:
        """The key of a stored file by its public address; None where it is another owner's, or no file of ours."""
        if url is None or not url.startswith(f"{self._media_url}/{folder}/{owner}/"):
            return None
        key = url.removeprefix(f"{self._media_url}/")
        return key if is_key(key) else None

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Deletes a stored file at once. One that does not exist is no error. Raises: StorageUnavailable."""

    @abstractmethod
    async def _store(self, key: str, path: Path, content: Content) -> None:
        """Stores a file under a key, all of it or nothing, and may move it."""
