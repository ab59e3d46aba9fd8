"""Receives an upload into a temporary file."""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from starlette.requests import ClientDisconnect

from app.core.storage.content import Content, ContentType, Size, recognise
from app.core.storage.errors import ImageTooLarge, UnsupportedContent, UploadAborted, UploadTooSlow, storage_errors
from app.core.storage.uninterrupted import ResultT, uninterrupted

MAX_SECONDS: Final = 300.0  # for a whole upload
BLOCK: Final = 2**18  # bytes that are written at once, in a thread
MAX_IMAGE_SIZE: Final = (8192, 8192)  # pixels

TEMPORARY_SUFFIX: Final = ".upload"


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that was received, for as long as it is open.

    Attributes:
        path: of the temporary file.
        content: its type, and an image's size.
        length: in bytes.
    """

    path: Path
    content: Content
    length: int


@asynccontextmanager
async def receive(
    parts: AsyncIterable[bytes], folder: Path, accepted: Collection[ContentType], max_image_size: Size
) -> AsyncIterator[ReceivedFile]:
    """Writes the parts to a temporary file, which is removed at the end.

    Memory holds one block, whatever the length. The length itself is for the route's `max_body_size` to limit.

    Args:
        parts: such as `request.stream()`.
        folder: the temporary file's.
        accepted: the types of content that are accepted.
        max_image_size: the largest width and height of an image, in pixels.

    Raises: UPLOAD_PROBLEMS.
    """
    path = folder / f"{token_hex(16)}{TEMPORARY_SUFFIX}"
    try:
        with storage_errors():
            length = await _write(parts, path)
            content = await _in_thread(recognise, path)
        if content is None or content.type not in accepted:
            raise UnsupportedContent(accepted=sorted(accepted_type.media_type for accepted_type in accepted))
        if content.size is not None and (content.size[0] > max_image_size[0] or content.size[1] > max_image_size[1]):
            raise ImageTooLarge(max_width=max_image_size[0], max_height=max_image_size[1])
        yield ReceivedFile(path, content, length)
    finally:
        await _in_thread(_remove, path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # What is left is removed at a later start.
        path.unlink(missing_ok=True)


async def _write(parts: AsyncIterable[bytes], path: Path) -> int:
    descriptor = -1
    length, block = 0, bytearray()

    def open_file() -> None:
        nonlocal descriptor
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    try:
        await _in_thread(open_file)
        async with asyncio.timeout(MAX_SECONDS):
            async for part in parts:
                block += part
                if len(block) >= BLOCK:
                    length += await _in_thread(_write_all, descriptor, bytes(block))
                    block = bytearray()
            length += await _in_thread(_write_all, descriptor, bytes(block))
        await _in_thread(os.fsync, descriptor)
    except TimeoutError:
        raise UploadTooSlow from None
    except ClientDisconnect:
        raise UploadAborted from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return length


async def _in_thread(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    return await uninterrupted(asyncio.to_thread(function, *arguments))


def _write_all(descriptor: int, block: bytes) -> int:
    written = 0
    while written < len(block):
        written += os.write(descriptor, block[written:])
    return written
