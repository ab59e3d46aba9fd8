"""The beginnings of image files: all that is looked at, and not a pixel."""

import struct
from collections.abc import Callable
from zlib import crc32


def png(width: int = 2, height: int = 1, more: bytes = b"") -> bytes:
    """A PNG: its signature, its header, and its end."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + more + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))


def jpeg(width: int = 2, height: int = 1, metadata: bytes = b"") -> bytes:
    """A JPEG: metadata, a table, the frame's header."""
    exif = b"\xff\xe1" + struct.pack(">H", len(metadata) + 2) + metadata
    tables = b"\xff\xc4\x00\x03\x00" + b"\xff" * 3  # and bytes that fill
    return b"\xff\xd8" + exif + tables + b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" * 10


def gif(width: int = 2, height: int = 1) -> bytes:
    """A GIF."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00\x00\x00;"


def webp_lossy(width: int = 2, height: int = 1) -> bytes:
    """A WebP as VP8."""
    return _webp(b"VP8 ", b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height))


def webp_lossless(width: int = 2, height: int = 1) -> bytes:
    """A WebP as VP8L."""
    return _webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14))


def webp_extended(width: int = 2, height: int = 1) -> bytes:
    """A WebP as VP8X, which can be the largest."""
    sizes = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return _webp(b"VP8X", b"\x00" * 4 + sizes)


def _webp(kind: bytes, data: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


IMAGES: dict[str, tuple[Callable[[int, int], bytes], str, str]] = {
    "png": (png, "image/png", "png"),
    "jpeg": (jpeg, "image/jpeg", "jpg"),
    "gif": (gif, "image/gif", "gif"),
    "webp, lossy": (webp_lossy, "image/webp", "webp"),
    "webp, lossless": (webp_lossless, "image/webp", "webp"),
    "webp, extended": (webp_extended, "image/webp", "webp"),
}
"""How one of a size is made, its media type, and its extension."""
