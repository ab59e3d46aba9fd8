"""An upload on its way into a folder, and what can go wrong meanwhile."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.core.config import StorageSettings
from app.core.exceptions.http_exceptions import Problem
from app.core.storage import IMAGES, PDF, PNG, FolderStorage, Storage, receiving
from app.core.storage.errors import (
    ImageTooLarge,
    StorageBusy,
    StorageFull,
    StorageUnavailable,
    UnsupportedContent,
    UploadAborted,
    UploadTooSlow,
)
from tests.images import png

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def storage(folder: Path) -> Storage:
    return FolderStorage(StorageSettings(STORAGE_URL=f"file://{folder}", MAX_CONCURRENT_UPLOADS=2))


async def in_parts(sent: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(sent), size):
        yield sent[start : start + size]


async def then(sent: bytes, error: BaseException) -> AsyncIterator[bytes]:
    yield sent
    raise error


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def receive(storage: Storage, parts: AsyncIterator[bytes], **kwargs: Any) -> None:
    async with storage.receive(parts, kwargs.pop("accepted", IMAGES), **kwargs):
        pass


@pytest.mark.parametrize("size", [1, 7, 2**20])
async def test_it_is_whole_while_it_is_open_and_gone_afterwards(storage: Storage, folder: Path, size: int) -> None:
    sent = png(more=os.urandom(receiving.BLOCK * 3 + 5) if size > 1 else b"")
    async with storage.receive(in_parts(sent, size), IMAGES) as received:
        assert received.path.read_bytes() == sent
        assert (received.length, received.content.type, received.content.size) == (len(sent), PNG, (2, 1))
        assert received.path.stat().st_mode & 0o777 == 0o600
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("parts", "kwargs", "error"),
    [
        (in_parts(b""), {}, UnsupportedContent),
        (in_parts(b"<svg/>"), {}, UnsupportedContent),
        (in_parts(b"%PDF-1.7"), {}, UnsupportedContent),
        (in_parts(png()), {"accepted": (PDF,)}, UnsupportedContent),
        (in_parts(png(101, 1)), {"max_image_size": (100, 100)}, ImageTooLarge),
        (in_parts(png(1, 101)), {"max_image_size": (100, 100)}, ImageTooLarge),
        (in_parts(png(2**31 - 1, 2**31 - 1)), {}, ImageTooLarge),
        (then(png(), ClientDisconnect()), {}, UploadAborted),
        (then(png(), asyncio.CancelledError()), {}, asyncio.CancelledError),
        (then(png(), ZeroDivisionError()), {}, ZeroDivisionError),
    ],
)
async def test_what_is_not_taken_leaves_nothing(
    storage: Storage, folder: Path, parts: AsyncIterator[bytes], kwargs: dict[str, Any], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        await receive(storage, parts, **kwargs)
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageUnavailable),
        (errno.EROFS, StorageUnavailable),
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
async def test_a_disk_that_refuses_leaves_nothing(
    storage: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, problem: type[Problem], call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(problem):
        await receive(storage, in_parts(png()))
    monkeypatch.undo()
    assert files_in(folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
async def test_a_device_that_is_full(storage: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is really full, and says so in the kernel's words."""
    opened = os.open

    def open_full(path: Path, flags: int, mode: int) -> int:
        os.close(opened(path, flags, mode))
        return opened("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(StorageFull):
        await receive(storage, in_parts(png()))
    assert files_in(folder) == []


async def test_who_is_too_slow_is_told_so(storage: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    monkeypatch.setattr(receiving, "MAX_SECONDS", 0.05)
    with pytest.raises(UploadTooSlow):
        await receive(storage, slow())
    assert files_in(folder) == []


async def test_no_more_are_received_at_once_than_the_settings_say(storage: Storage) -> None:
    begun, go_on = [asyncio.Event(), asyncio.Event()], asyncio.Event()

    async def waiting(event: asyncio.Event) -> AsyncIterator[bytes]:
        yield png()
        event.set()
        await go_on.wait()

    tasks = [asyncio.create_task(receive(storage, waiting(event))) for event in begun]
    for event in begun:
        await event.wait()
    with pytest.raises(StorageBusy):
        await receive(storage, in_parts(png()))
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    await receive(storage, in_parts(png()))  # A cancelled one has made room.
    go_on.set()
    await tasks[1]


async def test_an_error_of_the_caller_stays_what_it_is(storage: Storage, folder: Path) -> None:
    """A database that is away is no storage that is: both are errors of the operating system."""
    with pytest.raises(ConnectionRefusedError):
        async with storage.receive(in_parts(png()), IMAGES):
            raise ConnectionRefusedError
    assert files_in(folder) == []


async def test_what_a_killed_process_has_left_is_removed(folder: Path) -> None:
    settings = StorageSettings(STORAGE_URL=f"file://{folder}")
    incoming = folder / ".incoming"
    incoming.mkdir(parents=True)
    old, young = incoming / f"old{receiving.TEMPORARY_SUFFIX}", incoming / f"young{receiving.TEMPORARY_SUFFIX}"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    FolderStorage(settings)
    assert files_in(folder) == [young]


async def test_a_folder_that_cannot_be_made_is_said_by_the_upload(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = FolderStorage(StorageSettings(STORAGE_URL=f"file://{tmp_path}/file/below"))
    with pytest.raises(StorageUnavailable):
        await receive(storage, in_parts(png()))
