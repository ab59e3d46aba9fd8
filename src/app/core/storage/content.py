"""Recognises files by their content: a client's file name and content type prove nothing.

Nothing is decoded. Of an image the width and height are read from its headers, so that one of a few kilobytes that
would decode to gigabytes can be refused.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

Size = tuple[int, int]  # width and height in pixels

_MAX_JPEG_SEGMENTS: Final = 1000  # before the frame; a photograph has some ten


@dataclass(frozen=True, slots=True)
class ContentType:
    """A type of content that can be recognised.

    Attributes:
        media_type: the value of `Content-Type`.
        extension: of a stored file's name.
        is_image: whether a browser may show it in a page.
    """

    media_type: str
    extension: str
    is_image: bool = False


PNG: Final = ContentType("image/png", "png", is_image=True)
JPEG: Final = ContentType("image/jpeg", "jpg", is_image=True)
GIF: Final = ContentType("image/gif", "gif", is_image=True)
WEBP: Final = ContentType("image/webp", "webp", is_image=True)
PDF: Final = ContentType("application/pdf", "pdf")

IMAGES: Final = (PNG, JPEG, GIF, WEBP)
"""Raster images. SVG is not among them: it can contain scripts, and runs them when it is opened."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file.

    Attributes:
        type: its type.
        size: width and height in pixels; None for what is no image.
    """

    type: ContentType
    size: Size | None = None


def recognise(path: Path) -> Content | None:
    """The content of a file, or None for an unknown or damaged one. Reads the file: call it in a thread."""
    with path.open("rb") as file:
        start = file.read(16)
        for content_type, magic, measure in _TYPES:
            if start.startswith(magic):
                if measure is None:
                    return Content(content_type)
                try:
                    width, height = measure(file)
                except (struct.error, ValueError):
                    return None  # It ends too early, or has no such header.
                return Content(content_type, (width, height)) if width and height else None
    return None


def _unpack(file: BinaryIO, form: str, offset: int) -> tuple[Any, ...]:
    file.seek(offset)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _png(file: BinaryIO) -> Size:
    length, kind, width, height = _unpack(file, ">I4sII", 8)
    if length != 13 or kind != b"IHDR":
        raise ValueError("no IHDR chunk")
    return width, height


def _gif(file: BinaryIO) -> Size:
    width, height = _unpack(file, "<HH", 6)
    return width, height


def _webp(file: BinaryIO) -> Size:
    file.seek(8)
    if file.read(4) != b"WEBP":
        raise ValueError("another RIFF format")
    kind = file.read(4)
    if kind == b"VP8X":
        _, low_width, high_width, low_height, high_height = _unpack(file, "<IHBHB", 20)
        return (high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1
    if kind == b"VP8L":
        signature, bits = _unpack(file, "<BI", 20)
        if signature != 0x2F:
            raise ValueError("no VP8L signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        *start_code, width, height = _unpack(file, "<BBBHH", 23)
        if start_code != [0x9D, 0x01, 0x2A]:
            raise ValueError("no key frame")
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no image chunk")


def _jpeg(file: BinaryIO) -> Size:
    """Steps from segment to segment (ITU-T T.81, annex B) to the frame header, whose marker is SOF."""
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        prefix, marker = _unpack(file, ">BB", position)
        if prefix != 0xFF:
            raise ValueError("no marker")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = _unpack(file, ">H", position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = _unpack(file, ">HH", position + 5)
            return width, height
        if length < 2 or marker in {0xD9, 0xDA}:
            raise ValueError("no frame header")
        position += 2 + length
    raise ValueError("too many segments")


CONTENT_TYPES: Final = {content_type.extension: content_type for content_type in (*IMAGES, PDF)}
"""By the extension of a stored file's name."""

_TYPES: Final[tuple[tuple[ContentType, bytes, Callable[[BinaryIO], Size] | None], ...]] = (
    (PNG, b"\x89PNG\r\n\x1a\n", _png),
    (JPEG, b"\xff\xd8\xff", _jpeg),
    (GIF, b"GIF87a", _gif),
    (GIF, b"GIF89a", _gif),
    (WEBP, b"RIFF", _webp),
    (PDF, b"%PDF-", None),
)
