"""Profile images."""

from typing import Any, Final

from fastapi import APIRouter, Request

from app.api.accounts import set_profile_image
from app.api.dependencies import CurrentUser, ManagedProfile, SessionDep, SettingsDep, StorageDep
from app.core.exceptions.http_exceptions import Forbidden, Unauthorized
from app.core.openapi import problems
from app.core.storage import IMAGES, UPLOAD_PROBLEMS
from app.crud.crud_users import UserNotFound
from app.models.user import User, UserRead

MAX_BYTES: Final = 5_000_000
MAX_SIZE: Final = (4096, 4096)  # pixels

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {image.media_type: {"schema": {"type": "string", "format": "binary"}} for image in IMAGES},
    }
}

router = APIRouter(tags=["users"])


@router.put(
    "/user/{username}/profile_image",
    response_model=UserRead,
    max_body_size=MAX_BYTES,
    openapi_extra=_BODY,
    responses=problems(Unauthorized, Forbidden, UserNotFound, *UPLOAD_PROBLEMS),
)
async def put_profile_image(
    user: ManagedProfile,
    request: Request,
    storage: StorageDep,
    db: SessionDep,
    settings: SettingsDep,
    caller: CurrentUser,
) -> User:
    """Upload a profile image, your own or, as a superuser, anybody's: the body is the file."""
    async with storage.receive(request.stream(), IMAGES, MAX_SIZE, sender=caller.id) as image:
        return await set_profile_image(db, user, image, storage, settings)
