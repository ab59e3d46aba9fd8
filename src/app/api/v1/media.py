"""Uploaded files, where they are stored in a folder of the application."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request
from starlette.responses import FileResponse, Response

from app.api.accounts import PROFILE_IMAGES
from app.api.dependencies import StorageDep
from app.core.openapi import problems
from app.core.storage import IMAGES, FileNotStored, file_response
from app.core.storage.storage import FOLDER_PATTERN, NAME_PATTERN, OWNER_PATTERN

_CONTENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {kind.media_type: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES}}
}

PUBLIC_FOLDERS: Final = frozenset({PROFILE_IMAGES})
"""The folders of keys whose files everybody may read."""

router = APIRouter(tags=["media"])


@router.get("/media/{folder}/{owner}/{name}", response_class=FileResponse, responses=_CONTENT | problems(FileNotStored))
async def read_media(
    request: Request,
    storage: StorageDep,
    folder: Annotated[str, Path(pattern=FOLDER_PATTERN)],
    owner: Annotated[str, Path(pattern=OWNER_PATTERN)],
    name: Annotated[str, Path(pattern=NAME_PATTERN)],
) -> Response:
    """Read an uploaded file that is public."""
    if folder not in PUBLIC_FOLDERS:
        raise FileNotStored
    return await file_response(request, storage, f"{folder}/{owner}/{name}")
