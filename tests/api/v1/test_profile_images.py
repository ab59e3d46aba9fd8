"""Profile images over HTTP: uploaded, served, replaced, removed."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import build_router
from app.core.config import EnvironmentOption, Settings, StorageSettings
from app.core.setup import create_application
from app.core.storage import FolderStorage
from app.crud.crud_users import crud_users
from app.models.user import User
from tests.conftest import client_of
from tests.helper import create_superuser, create_user, signed_in
from tests.images import IMAGES, jpeg, png
from tests.processes import running_api

pytestmark = pytest.mark.anyio

MB = 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"STORAGE_URL": f"file://{folder}"})


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_application(build_router(settings), settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def ada(db: AsyncSession) -> User:
    return await create_user(db, username="ada")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def path_of(answer: httpx2.Response) -> str:
    """The address of the image, for the client."""
    url: str = answer.json()["profile_image_url"]
    assert url.startswith("http://localhost:8000/api/v1/media/profile-images/")
    return url.removeprefix("http://localhost:8000/api/v1/")


async def put(client: httpx2.AsyncClient, user: User, settings: Settings, sent: Any, **headers: str) -> httpx2.Response:
    headers |= signed_in(user, settings)
    return await client.put(f"user/{user.username}/profile_image", content=sent, headers=headers)


async def test_who_is_not_signed_in_sends_nothing(client: httpx2.AsyncClient, ada: User, folder: Path) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        yield png()
        sent += 1

    answer = await client.put("user/ada/profile_image", content=parts())
    assert answer.status_code == 401
    assert files_in(folder) == []


@pytest.mark.parametrize("name", IMAGES)
async def test_an_image_is_stored_and_shown(
    client: httpx2.AsyncClient, ada: User, settings: Settings, folder: Path, name: str
) -> None:
    made, media_type, extension = IMAGES[name]
    sent = made(20, 10)
    answer = await put(client, ada, settings, sent, **{"Content-Type": "text/html"})
    assert answer.status_code == 200
    assert (await client.get("user/ada")).json()["profile_image_url"] == answer.json()["profile_image_url"]

    shown = await client.get(path_of(answer))
    assert (shown.status_code, shown.content) == (200, sent)
    assert shown.headers["Content-Type"] == media_type
    assert shown.headers["X-Content-Type-Options"] == "nosniff"
    assert shown.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert re.fullmatch(rf'inline; filename="[0-9a-f]{{32}}\.{extension}"', shown.headers["Content-Disposition"])
    assert shown.headers["Cache-Control"] == "public, max-age=3600"
    assert [path.read_bytes() for path in files_in(folder)] == [sent]


async def test_a_part_and_an_unchanged_one(client: httpx2.AsyncClient, ada: User, settings: Settings) -> None:
    path = path_of(await put(client, ada, settings, png()))
    part = await client.get(path, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    whole = await client.get(path)
    unchanged = await client.get(path, headers={"If-None-Match": whole.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["Cache-Control"] == whole.headers["Cache-Control"]
    head = await client.head(path)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(png())))


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"", 415, "unsupported-content"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 415, "unsupported-content"),
        (b"<!doctype html><script>alert(1)</script>", 415, "unsupported-content"),
        (b"%PDF-1.7", 415, "unsupported-content"),
        (png()[:20], 415, "unsupported-content"),
        (png(4097, 1), 422, "image-too-large"),
        (jpeg(60_000, 60_000), 422, "image-too-large"),
        (png(more=b"x" * 5 * MB), 413, "payload-too-large"),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_what_is_no_image_changes_nothing(
    client: httpx2.AsyncClient,
    ada: User,
    settings: Settings,
    folder: Path,
    declared: bool,
    sent: bytes,
    status: int,
    kind: str,
) -> None:
    before = path_of(await put(client, ada, settings, png()))
    content = sent if declared else in_parts(sent)
    answer = await put(client, ada, settings, content, **{"Content-Type": "image/png"})
    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:problem-type:{kind}"
    assert (await client.get(before)).status_code == 200
    assert len(files_in(folder)) == 1


async def in_parts(sent: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(sent), 65_536):
        yield sent[start : start + 65_536]


async def test_the_limit_is_the_routes_own(client: httpx2.AsyncClient, ada: User, settings: Settings) -> None:
    """Larger than that of the application."""
    sent = png(more=b"x" * 4 * MB)
    assert len(sent) > settings.MAX_BODY_BYTES
    assert (await put(client, ada, settings, sent)).status_code == 200
    assert (await put(client, ada, settings, in_parts(sent))).status_code == 200


async def test_another_image_takes_the_place_of_the_first(
    client: httpx2.AsyncClient, ada: User, settings: Settings, folder: Path
) -> None:
    first = path_of(await put(client, ada, settings, png()))
    second = path_of(await put(client, ada, settings, jpeg()))
    assert (await client.get(first)).status_code == 404
    assert (await client.get(second)).content == jpeg()
    assert len(files_in(folder)) == 1


@pytest.mark.parametrize("url", [None, "https://example.com/a.png"])
async def test_another_url_or_none_removes_the_file(
    client: httpx2.AsyncClient, ada: User, settings: Settings, folder: Path, url: str | None
) -> None:
    headers = signed_in(ada, settings)
    path = path_of(await put(client, ada, settings, png()))
    assert (await client.patch("user/ada", json={"name": "Ada"}, headers=headers)).status_code == 200
    assert (await client.get(path)).status_code == 200
    assert (await client.patch("user/ada", json={"profile_image_url": url}, headers=headers)).status_code == 200
    assert (await client.get(path)).status_code == 404
    assert files_in(folder) == []


async def test_a_change_that_is_refused_removes_nothing(
    client: httpx2.AsyncClient, db: AsyncSession, ada: User, settings: Settings
) -> None:
    await create_user(db, username="grace")
    path = path_of(await put(client, ada, settings, png()))
    values = {"profile_image_url": None, "username": "grace"}
    assert (await client.patch("user/ada", json=values, headers=signed_in(ada, settings))).status_code == 409
    assert (await client.get(path)).status_code == 200


async def test_somebody_elses_image_is_not_deleted_by_naming_it(
    client: httpx2.AsyncClient, db: AsyncSession, ada: User, settings: Settings
) -> None:
    mallory = await create_user(db, username="mallory")
    theirs = await put(client, ada, settings, png())
    values = {"profile_image_url": theirs.json()["profile_image_url"]}
    answer = await client.patch("user/mallory", json=values, headers=signed_in(mallory, settings))
    assert answer.status_code == 200
    await put(client, mallory, settings, png())
    assert (await client.get(path_of(theirs))).status_code == 200


async def test_an_erased_user_leaves_no_file(
    client: httpx2.AsyncClient, db: AsyncSession, ada: User, settings: Settings, folder: Path
) -> None:
    admin = await create_superuser(db)
    await put(client, ada, settings, png())
    assert (await client.delete("db_user/ada", headers=signed_in(admin, settings))).status_code == 200
    assert files_in(folder) == []


async def test_a_user_who_is_deleted_meanwhile(
    client: httpx2.AsyncClient, db: AsyncSession, ada: User, settings: Settings, folder: Path
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield png()[:30]
        await crud_users.soft_delete(db, ada)
        await db.commit()
        yield png()[30:]

    assert (await put(client, ada, settings, parts())).status_code == 404
    assert files_in(folder) == []


async def test_slow_uploads_hold_no_connection(
    client: httpx2.AsyncClient, db: AsyncSession, settings: Settings
) -> None:
    """As many as there are connections in the pool, and others are answered."""
    users = [await create_user(db) for _ in range(settings.POSTGRES_POOL_SIZE + 1)]
    begun, go_on = [asyncio.Event() for _ in users], asyncio.Event()

    async def parts(event: asyncio.Event) -> AsyncIterator[bytes]:
        yield png()[:30]
        event.set()
        await go_on.wait()
        yield png()[30:]

    uploads = [
        asyncio.create_task(put(client, user, settings, parts(event))) for user, event in zip(users, begun, strict=True)
    ]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 20)
    admin = await create_superuser(db)
    answer = await client.patch("user/me2/tier", json={"tier_id": None}, headers=signed_in(admin, settings))
    assert answer.status_code == 404
    go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {200}


async def test_two_at_once_leave_one_file(
    client: httpx2.AsyncClient, ada: User, settings: Settings, folder: Path
) -> None:
    answers = await asyncio.gather(*(put(client, ada, settings, made()) for made in [png, jpeg] * 5))
    assert {answer.status_code for answer in answers} == {200}
    (stored,) = files_in(folder)
    assert (await client.get("user/ada")).json()["profile_image_url"].endswith(stored.name)


# ---- What is asked for ----


async def test_a_folder_that_is_not_public_is_not_served(client: httpx2.AsyncClient, folder: Path) -> None:
    name = "a" * 32 + ".png"
    for kind, status in (("profile-images", 200), ("attachments", 404)):
        path = folder / kind / "7" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(png())
        assert (await client.get(f"media/{kind}/7/{name}")).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "profile-images/1/" + "a" * 32 + ".png",
        "profile-images/1/" + "a" * 32 + ".exe",
        "other/1/" + "a" * 32 + ".png",
    ],
)
async def test_what_is_not_stored_is_404(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(f"media/{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:problem-type:file-not-stored")


@pytest.mark.parametrize(
    "path",
    [
        "profile-images/1/a.png",
        "profile-images/%2e%2e/" + "a" * 32 + ".png",
        "%2e%2e/%2e%2e/" + "a" * 32 + ".png",
        "profile-images/..%2f..%2fetc/" + "a" * 32 + ".png",
        ".incoming/1/" + "a" * 32 + ".png",
        "profile-images/1/" + "a" * 32 + ".png%00",
        "profile-images/1/" + "a" * 32 + ".png%0a",
        "profile-images/1/" + "A" * 32 + ".png",
        "profile-images/../../../../etc/passwd",
        "/etc/passwd",
        "",
    ],
)
async def test_a_path_leads_nowhere_else(client: httpx2.AsyncClient, folder: Path, path: str) -> None:
    (folder.parent / ("a" * 32 + ".png")).write_bytes(png())
    assert (await client.get(f"media/{path}")).status_code in {404, 422}


# ---- Switched ----


def routes_of(settings: Settings) -> set[str]:
    routes = iter_route_contexts(build_router(settings).routes)
    return {route.path for route in routes if route.path and ("media" in route.path or "image" in route.path)}


async def test_there_are_no_routes_without_a_place(settings: Settings) -> None:
    both = {"/api/v1/user/{username}/profile_image", "/api/v1/media/{folder}/{owner}/{name}"}
    assert routes_of(settings) == both
    bucket = settings.model_copy(update={"STORAGE_URL": "s3://bucket"})
    assert routes_of(bucket) == {"/api/v1/user/{username}/profile_image"}
    nowhere = settings.model_copy(update={"STORAGE_URL": None})
    assert routes_of(nowhere) == both  # in `local`, a folder of the project
    production = nowhere.model_copy(update={"ENVIRONMENT": EnvironmentOption.PRODUCTION})
    assert routes_of(production) == set()


async def test_without_a_storage_a_profile_is_changed_all_the_same(
    app: FastAPI, client: httpx2.AsyncClient, ada: User, settings: Settings
) -> None:
    del app.state.storage
    try:
        answer = await client.patch("user/ada", json={"profile_image_url": None}, headers=signed_in(ada, settings))
        assert answer.status_code == 200
    finally:
        app.state.storage = FolderStorage(StorageSettings())


# ---- As a process ----


async def test_who_leaves_in_the_middle_leaves_nothing(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_URL", settings.STORAGE_URL or "")
    with running_api("uvicorn", "tests.upload_app:app", "--port", "{port}", "--log-level", "warning") as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = b"PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
        writer.write(head + png(more=b"x" * MB))
        await writer.drain()
        deadline = asyncio.get_running_loop().time() + 20
        while not files_in(folder):
            assert asyncio.get_running_loop().time() < deadline, "it has not begun"
            await asyncio.sleep(0.02)
        writer.close()
        while files_in(folder):
            assert asyncio.get_running_loop().time() < deadline, "it has left something"
            await asyncio.sleep(0.02)


async def test_an_upload_of_50_mb_needs_no_memory(
    ada: User, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a server of its own, whose memory nothing else uses; its route takes as much."""
    monkeypatch.setenv("STORAGE_URL", settings.STORAGE_URL or "")
    with running_api("uvicorn", "tests.upload_app:app", "--port", "{port}", "--log-level", "warning") as url:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            warm = (await client.put("/upload", content=png(more=b"x" * 3 * MB))).json()
            done = (await client.put("/upload", content=in_parts(png(more=os.urandom(50 * MB))))).json()
    assert done["length"] > 50 * MB
    assert done["peak"] - warm["peak"] < 10 * MB
    assert files_in(folder) == []


async def test_one_caller_cannot_have_all_uploads(
    client: httpx2.AsyncClient, ada: User, db: AsyncSession, settings: Settings
) -> None:
    """Whatever profiles they are for; another caller still uploads."""
    bob, go_on = await create_user(db, username="bob"), asyncio.Event()
    begun = [asyncio.Event() for _ in range(settings.MAX_CONCURRENT_UPLOADS // 2)]

    async def slow(event: asyncio.Event) -> AsyncIterator[bytes]:
        sent = png()
        yield sent[:8]
        event.set()
        await go_on.wait()
        yield sent[8:]

    tasks = [asyncio.create_task(put(client, ada, settings, slow(event))) for event in begun]
    for event in begun:
        await asyncio.wait_for(event.wait(), 5)
    refused = await put(client, ada, settings, png())
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:problem-type:too-many-uploads")
    assert (await put(client, bob, settings, png())).status_code == 200
    go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * len(tasks)
    assert (await put(client, ada, settings, png())).status_code == 200
