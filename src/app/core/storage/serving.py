"""Answers with a stored file."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from app.core.exceptions.http_exceptions import NotFound
from app.core.storage.content import CONTENT_TYPES
from app.core.storage.folder import FolderStorage
from app.core.storage.storage import CACHE_CONTROL, Storage, is_key

# A file is opened from the API's origin: whatever is in it, it runs no script there and is taken for nothing else.
_SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


class FileNotStored(NotFound):
    text = "There is no such file."


async def file_response(
    request: Request, storage: Storage, key: str | None, *, cache_control: str = CACHE_CONTROL
) -> Response:
    """The stored file, or a part of it where the request asks for one; 304 where the client has it.

    Args:
        request: its `Range`, `If-Range` and `If-None-Match` headers count.
        storage: a folder; a bucket is served by its own address.
        key: the file's; None for a row without a file.
        cache_control: of the answer. Files that not everybody may read need `private, no-store`.

    Raises: FileNotStored.
    """
    if not isinstance(storage, FolderStorage) or key is None or not is_key(key):
        raise FileNotStored
    content_type = CONTENT_TYPES.get(key.rpartition(".")[2])
    if content_type is None:
        raise FileNotStored
    path = storage.path_of(key)
    try:
        found = await asyncio.to_thread(path.stat)
    except OSError:
        raise FileNotStored from None
    name = path.name
    headers = _SAFE | {"Cache-Control": cache_control, "ETag": f'"{path.stem}"'}
    if headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        path,
        headers=headers,
        media_type=content_type.media_type,
        filename=name,
        stat_result=found,
        content_disposition_type="inline" if content_type.is_image else "attachment",
    )
