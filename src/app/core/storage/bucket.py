"""Files in a bucket of a service that speaks S3. obstore is loaded with this module only."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from app.core.config import SettingsError, StorageSettings
from app.core.storage.content import Content
from app.core.storage.errors import StorageUnavailable
from app.core.storage.storage import CACHE_CONTROL, Storage

try:
    from obstore.exceptions import BaseError
    from obstore.store import S3Store
except ModuleNotFoundError:
    raise SettingsError('STORAGE_URL is a bucket: install the extra "s3" (pip install obstore).') from None

_CONNECT_TIMEOUT: Final = timedelta(seconds=2)
_TIMEOUT: Final = timedelta(seconds=30)  # for a request
_RETRIES: Final = 2

log = structlog.stdlib.get_logger("slipway.storage")


class BucketStorage(Storage):
    """Stores a file by one request, or by a multipart upload that ends as a whole."""

    def __init__(self, settings: StorageSettings, temporary: Path) -> None:
        super().__init__(settings, temporary)
        self._store_of_objects = _store(settings)

    async def delete(self, key: str) -> None:
        try:
            await self._store_of_objects.delete_async(key)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise _unavailable(error) from None

    async def _store(self, key: str, path: Path, content: Content) -> None:
        attributes: Any = {
            "Content-Type": content.type.media_type,
            "Content-Disposition": "inline" if content.type.is_image else "attachment",
            "Cache-Control": CACHE_CONTROL,
        }
        try:
            await self._store_of_objects.put_async(key, path, attributes=attributes, max_concurrency=2)
        except BaseError as error:
            raise _unavailable(error) from None


def _store(settings: StorageSettings) -> S3Store:
    bucket, prefix = settings.storage_bucket or ("", "")
    more: dict[str, Any] = {}
    if settings.STORAGE_S3_ENDPOINT is not None:
        more["endpoint"] = settings.STORAGE_S3_ENDPOINT
    if settings.STORAGE_S3_SECRET_ACCESS_KEY is not None:  # Without one, the machine's role or environment has it.
        more["access_key_id"] = settings.STORAGE_S3_ACCESS_KEY_ID
        more["secret_access_key"] = settings.STORAGE_S3_SECRET_ACCESS_KEY.get_secret_value()
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=settings.STORAGE_S3_REGION,
        client_options={
            "connect_timeout": _CONNECT_TIMEOUT,
            "timeout": _TIMEOUT,
            "allow_http": (settings.STORAGE_S3_ENDPOINT or "").startswith("http:"),
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _TIMEOUT},
        **more,
    )


def _unavailable(error: BaseError) -> StorageUnavailable:
    """Without the cause: its text can have an address and a signature in it."""
    log.error("storage failed", reason=type(error).__name__)
    return StorageUnavailable()


@contextmanager
def open_bucket_storage(settings: StorageSettings) -> Iterator[BucketStorage]:
    """The storage, with a folder for files that are being received."""
    with TemporaryDirectory(prefix="slipway-uploads-") as temporary:
        yield BucketStorage(settings, Path(temporary))
