"""Stored files follow the transaction, in a folder and in a bucket."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request
from structlog.testing import capture_logs

from app.core.config import Settings, StorageSettings
from app.core.db import database
from app.core.db.database import open_database, transaction
from app.core.db.engine import DatabaseUnavailable
from app.core.db.outages import TransactionAborted
from app.core.exceptions.http_exceptions import Problem
from app.core.storage import IMAGES, FileNotStored, Storage, file_response, open_storage
from app.core.storage.errors import StorageFull, StorageUnavailable
from tests.images import jpeg, png
from tests.s3_server import S3Server, s3_server

pytestmark = pytest.mark.anyio

MEDIA = "https://media.example.com/files"
BUCKET: dict[str, Any] = {
    "STORAGE_URL": "s3://bucket/some/prefix",
    "STORAGE_S3_ACCESS_KEY_ID": "a-key-of-a-test",
    "STORAGE_S3_SECRET_ACCESS_KEY": "a secret of a test's bucket",
    "MEDIA_URL": MEDIA,
}


@pytest.fixture(autouse=True)
async def opened(settings: Settings) -> AsyncIterator[None]:
    """The database, for `transaction`."""
    engine = open_database(settings)
    yield
    await database.close_database(engine)


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> AsyncIterator[Storage]:
    given = BUCKET | {"STORAGE_S3_ENDPOINT": s3.url}
    if request.param == "folder":
        given = {"STORAGE_URL": f"file://{tmp_path}/uploads", "MEDIA_URL": MEDIA}
    async with open_storage(StorageSettings(**given)) as storage:
        yield storage


def stored(tmp_path: Path, s3: S3Server) -> dict[str, bytes]:
    """What is stored in either of them, by key."""
    folder = tmp_path / "uploads"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    prefix = "/bucket/some/prefix/"
    return files | {path.removeprefix(prefix): content for path, (content, _) in s3.objects.items()}


async def parts(sent: bytes) -> AsyncIterator[bytes]:
    yield sent


async def keep_and_fail(storage: Storage, error: type[BaseException], *, written: bool = False) -> None:
    async with transaction() as db:
        if written:
            await db.connection()
        await keep(storage, db)
        raise error


async def kept(storage: Storage) -> str:
    async with transaction() as db:
        return await keep(storage, db)


async def keep(storage: Storage, db: AsyncSession, sent: bytes = png()) -> str:
    async with storage.receive(parts(sent), IMAGES) as received:
        return await storage.keep(db, received, "things", 7)


async def test_a_kept_file_is_there_after_the_commit(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    async with transaction() as db:
        key = await keep(storage, db)
    assert stored(tmp_path, s3) == {key: png()}
    folder, owner, name = key.split("/")
    assert (folder, owner, len(name), name[-4:]) == ("things", "7", 36, ".png")
    assert storage.url_of(key) == f"{MEDIA}/{key}"
    assert storage.key_of(storage.url_of(key), "things", 7) == key


async def test_two_of_the_same_content_have_two_keys(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    async with transaction() as db:
        assert await keep(storage, db) != await keep(storage, db)
    assert len(stored(tmp_path, s3)) == 2


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, Problem])
@pytest.mark.parametrize("written", [False, True])
async def test_it_is_deleted_when_the_transaction_fails(
    storage: Storage, tmp_path: Path, s3: S3Server, error: type[BaseException], written: bool
) -> None:
    with pytest.raises(error):
        await keep_and_fail(storage, error, written=written)
    assert stored(tmp_path, s3) == {}


async def test_it_is_deleted_when_the_commit_fails(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    with pytest.raises(IntegrityError):
        await _keep_beside_a_violation(storage)
    assert stored(tmp_path, s3) == {}


async def _keep_beside_a_violation(storage: Storage) -> None:
    """Of a constraint that is checked by the commit."""
    async with transaction() as db:
        connection = await db.connection()
        await connection.execute(text("CREATE TABLE thing (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        await connection.execute(text("INSERT INTO thing VALUES (1), (1)"))
        await keep(storage, db)


async def test_it_is_deleted_when_the_caller_rolls_back(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    """What is kept after that is not."""
    async with transaction() as db:
        await db.connection()
        await keep(storage, db)
        await db.rollback()
        key = await keep(storage, db)
    assert list(stored(tmp_path, s3)) == [key]


async def test_a_savepoint_that_is_rolled_back_deletes_nothing(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    async with transaction() as db:
        key = await keep(storage, db)
        savepoint = await db.begin_nested()
        await savepoint.rollback()
    assert list(stored(tmp_path, s3)) == [key]


async def test_it_is_deleted_when_its_savepoint_is_rolled_back(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    async with transaction() as db:
        key = await keep(storage, db)
        savepoint = await db.begin_nested()
        await keep(storage, db)
        await savepoint.rollback()
        async with db.begin_nested():
            other = await keep(storage, db)
    assert set(stored(tmp_path, s3)) == {key, other}


async def test_it_is_deleted_when_the_caller_catches_an_error(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    """After which nothing of the transaction can be committed."""
    with suppress(TransactionAborted):
        async with transaction() as db:
            await keep(storage, db)
            with suppress(DBAPIError):
                await (await db.connection()).execute(text("SELECT 1 / 0"))
    assert stored(tmp_path, s3) == {}


async def test_it_stays_when_nobody_knows_whether_it_is_committed(
    storage: Storage, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_connection(self: AsyncSession) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(AsyncSession, "commit", lose_the_connection)
    with pytest.raises(DatabaseUnavailable):
        await kept(storage)
    assert len(stored(tmp_path, s3)) == 1


async def test_a_discarded_file_is_deleted_after_the_commit(storage: Storage, tmp_path: Path, s3: S3Server) -> None:
    async with transaction() as db:
        key = await keep(storage, db)
    with pytest.raises(ZeroDivisionError):
        await _discard_and_fail(storage, key)
    assert list(stored(tmp_path, s3)) == [key]
    async with transaction() as db:
        storage.discard(db, key)
        assert list(stored(tmp_path, s3)) == [key]
    assert stored(tmp_path, s3) == {}
    await storage.delete(key)  # One that is gone is no error.


async def _discard_and_fail(storage: Storage, key: str) -> None:
    async with transaction() as db:
        storage.discard(db, key)
        raise ZeroDivisionError


@pytest.mark.parametrize("folder", ["", "..", ".", "a/b", "../a", "A", "ä", "a b", "a\n", ".incoming", "x" * 51])
@pytest.mark.parametrize("place", ["folder", "owner"])
async def test_a_key_names_no_other_place(storage: Storage, folder: str, place: str) -> None:
    names = {"folder": "things", "owner": "7"} | {place: folder}
    async with transaction() as db, storage.receive(parts(png()), IMAGES) as received:
        with pytest.raises(ValueError, match="lower-case"):
            await storage.keep(db, received, names["folder"], names["owner"])


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "https://elsewhere.example.com/things/7/" + "a" * 32 + ".png",
        f"{MEDIA}/things/8/" + "a" * 32 + ".png",
        f"{MEDIA}/others/7/" + "a" * 32 + ".png",
        f"{MEDIA}/things/7/../8/" + "a" * 32 + ".png",
        f"{MEDIA}/things/7/../../../etc/passwd",
        f"{MEDIA}/things/7/a.png",
        f"{MEDIA}/things/7/" + "a" * 32 + ".png?x",
        f"{MEDIA}/things/7/" + "a" * 32 + ".png\n",
    ],
)
async def test_the_url_of_something_else_has_no_key(storage: Storage, url: str | None) -> None:
    assert storage.key_of(url, "things", 7) is None


@pytest.mark.parametrize(
    "key",
    [
        "../outside.png",
        "things/7/../../../outside.png",
        "things/7/outside.png",
        "//{}/outside.png",
        "{}/outside.png",
        "a\0.png",
        "",
        None,
        "things/7/" + "a" * 32 + ".png\n",
    ],
)
async def test_what_is_no_key_is_not_served(tmp_path: Path, key: str | None) -> None:
    """A key that a handler takes from the caller is theirs to choose."""
    (tmp_path / "outside.png").write_bytes(png())
    request = Request({"type": "http", "headers": []})
    async with open_storage(StorageSettings(STORAGE_URL=f"file://{tmp_path}/uploads")) as storage:
        (tmp_path / "uploads/things/7").mkdir(parents=True)
        (tmp_path / "uploads/things/7/outside.png").write_bytes(png())
        with pytest.raises(FileNotStored):
            await file_response(request, storage, key and key.format(tmp_path))


# ---- A folder ----


async def test_a_full_disk_while_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "refused")

    folder = tmp_path / "uploads"
    async with open_storage(StorageSettings(STORAGE_URL=f"file://{folder}")) as storage:
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(StorageFull):
            await kept(storage)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


# ---- A bucket ----


@pytest.fixture
async def bucket(s3: S3Server) -> AsyncIterator[Storage]:
    async with open_storage(StorageSettings(**BUCKET, STORAGE_S3_ENDPOINT=s3.url)) as storage:
        yield storage


async def test_an_object_says_what_it_is(bucket: Storage, s3: S3Server) -> None:
    async with transaction() as db:
        await keep(bucket, db, jpeg())
    ((_, headers),) = s3.objects.values()
    assert headers["content-type"] == "image/jpeg"
    assert headers["content-disposition"] == "inline"
    assert headers["cache-control"] == "public, max-age=3600"
    assert "a secret of" not in str(headers)


async def test_it_is_deleted_when_it_is_cancelled_while_it_is_stored(bucket: Storage, s3: S3Server) -> None:
    """The request is on its way then, and the one that deletes must not overtake it."""
    s3.delay = 0.3
    task = asyncio.create_task(kept(bucket))
    await asyncio.to_thread(s3.begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.5)
    assert s3.requests == ["PUT", "POST"]
    assert s3.objects == {}


async def test_a_large_file_is_stored_in_parts(bucket: Storage, s3: S3Server) -> None:
    sent = png(more=os.urandom(12_000_000))
    async with transaction() as db:
        await keep(bucket, db, sent)
    ((content, headers),) = s3.objects.values()
    assert content == sent
    assert headers["content-type"] == "image/png"


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_a_bucket_that_refuses_is_not_available(bucket: Storage, s3: S3Server, status: int) -> None:
    s3.refuses = status
    with capture_logs() as lines, pytest.raises(StorageUnavailable) as refused:
        await kept(bucket)
    assert any(line["event"] == "storage failed" for line in lines)
    assert "a secret of" not in str(lines) + repr(refused.value.__cause__)


async def test_a_bucket_that_is_away_is_not_available() -> None:
    settings = StorageSettings(**BUCKET, STORAGE_S3_ENDPOINT="http://127.0.0.1:1")
    async with open_storage(settings) as bucket:
        with pytest.raises(StorageUnavailable):
            await kept(bucket)
