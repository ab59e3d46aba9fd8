"""An application that takes files in every way, and 100 MB of one of them.

uvicorn tests.upload_app:app
"""

import resource
from collections.abc import AsyncIterator
from typing import Annotated

import src  # noqa: F401  (makes `app` importable from the project's folder)
from fastapi import APIRouter, File, Form, Request, UploadFile

from app.api.dependencies import StorageDep
from app.core.config import AppSettings, EnvironmentSettings, StorageSettings
from app.core.exceptions.http_exceptions import Unprocessable
from app.core.openapi import problems
from app.core.setup import create_application
from app.core.storage import IMAGES, UPLOAD_PROBLEMS


class UploadSettings(AppSettings, StorageSettings, EnvironmentSettings):
    """An app that stores files and has no database."""


router = APIRouter()


@router.get("/api/v1/health")
async def health() -> str:
    """For who waits until it answers."""
    return "ok"


_BINARY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


@router.put(
    "/upload",
    max_body_size=100_000_000,
    openapi_extra={"requestBody": _BINARY},
    responses=problems(*UPLOAD_PROBLEMS),
)
async def upload(request: Request, storage: StorageDep) -> dict[str, int]:
    """The length of the file, and the largest memory of the process so far, in bytes."""
    async with storage.receive(request.stream(), IMAGES) as received:
        length = received.length
    return {"length": length, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


@router.post("/form", responses=problems(*UPLOAD_PROBLEMS))
async def upload_form(file: UploadFile, storage: StorageDep, title: Annotated[str, Form()] = "") -> int:
    """The length of a file in a form that holds something else."""
    async with storage.receive(parts_of(file), IMAGES) as received:
        return received.length + len(title)


@router.post("/forms", responses=problems(*UPLOAD_PROBLEMS))
async def upload_several(files: list[UploadFile], storage: StorageDep) -> int:
    """The length of several files."""
    lengths = []
    for file in files:
        async with storage.receive(parts_of(file), IMAGES) as received:
            lengths.append(received.length)
    return sum(lengths)


class NoNumbers(Unprocessable):
    text = "The file has no numbers in it."


@router.post("/bytes", responses=problems(NoNumbers))
async def upload_bytes(file: Annotated[bytes, File()]) -> int:
    """The sum of the lines of a file."""
    try:
        return sum(int(line) for line in file.splitlines() or [b"none"])
    except ValueError:
        raise NoNumbers from None


async def parts_of(file: UploadFile) -> AsyncIterator[bytes]:
    """The content of a file of a form."""
    while part := await file.read(65_536):
        yield part


app = create_application(router, UploadSettings())
