"""A file is what its content says."""

from pathlib import Path

import pytest

from app.core.storage.content import PDF, recognise
from tests.images import IMAGES, gif, jpeg, png, webp_extended, webp_lossless, webp_lossy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (16_000, 12_001)])
def test_an_image_is_recognised_with_its_size(file: Path, name: str, size: tuple[int, int]) -> None:
    made, media_type, extension = IMAGES[name]
    file.write_bytes(made(*size))
    content = recognise(file)
    assert content is not None
    assert (content.type.media_type, content.type.extension, content.size) == (media_type, extension, size)


def test_a_header_behind_much_metadata_is_found(file: Path) -> None:
    file.write_bytes(jpeg(300, 200, metadata=b"\xff\xc0" * 30_000))  # that looks like one
    content = recognise(file)
    assert content is not None
    assert content.size == (300, 200)


def test_a_pdf_has_no_size(file: Path) -> None:
    file.write_bytes(b"%PDF-1.7\n")
    content = recognise(file)
    assert content is not None
    assert (content.type, content.size) == (PDF, None)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00",
        b"hello",
        b"<html><script>alert(1)</script></html>",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"MZ\x90\x00",
        b"\x7fELF",
        b"PK\x03\x04",
        b"BM",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"\x89PNG\r\n\x1a\n",
        png()[:20],
        png().replace(b"IHDR", b"IDAT"),
        png(0, 1),
        png(1, 0),
        gif()[:8],
        gif(0, 0),
        b"\xff\xd8\xff",
        jpeg()[:22],
        jpeg(0, 1),
        b"\xff\xd8\xff\xe1\x00\x00" * 10,
        b"\xff\xd8\xff\xda\x00\x02" + jpeg()[2:],
        b"\xff\xd8" + b"\xff" * 5_000,
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 5_000 + jpeg()[2:],
        webp_lossy()[:26],
        webp_lossless().replace(b"\x2f", b"\x2e"),
        webp_lossy().replace(b"\x9d\x01\x2a", b"\x9d\x01\x2b"),
        webp_extended().replace(b"VP8X", b"VP9X"),
    ],
    ids=lambda sent: repr(sent[:24]),
)
def test_what_is_none_or_damaged_is_not_recognised(file: Path, sent: bytes) -> None:
    file.write_bytes(sent)
    assert recognise(file) is None
