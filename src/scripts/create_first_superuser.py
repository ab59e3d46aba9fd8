"""Creates the superuser that ADMIN_NAME, ADMIN_EMAIL, ADMIN_USERNAME and ADMIN_PASSWORD describe.

`python -m src.scripts.create_first_superuser`: running it again changes nothing.
"""

from functools import partial
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings, SettingsError
from app.core.passwords import hash_password
from app.crud.crud_users import crud_users
from app.models.user import User, UserCreate

from .database_script import run_in_database
from .first_rows import first_values


async def create_first_superuser(db: AsyncSession, settings: Settings) -> str:
    """Creates the user unless there already is this superuser, and says which.

    Raises:
        SettingsError: a setting is missing or not acceptable, or names somebody who is not a superuser.
        EmailTaken: the e-mail address is somebody else's.
    """
    values = _described_user(settings)
    username, password = values["username"], values.pop("password")
    existing = await crud_users.get_by_username_with_deleted(db, username)
    namesake = await crud_users.get_by_login(db, values["email"])
    if namesake is not None and namesake.is_superuser:  # who has another user name by now
        existing = namesake
    if existing is None:
        hashed = await hash_password(password.get_secret_value(), settings)
        made = {"hashed_password": hashed, "is_superuser": True}
        await crud_users.create(db, User.model_validate({**values, **made}))
        return f"Superuser {username} created."
    if existing.is_superuser and not existing.is_deleted:
        return f"Superuser {existing.username} exists already."
    if existing.is_superuser:
        raise SettingsError(f"ADMIN_USERNAME must not be {username}: that superuser was deleted.")
    raise SettingsError(f"ADMIN_USERNAME must not be {username}: somebody who is no superuser has that name.")


def _described_user(settings: Settings) -> dict[str, Any]:
    if settings.ADMIN_PASSWORD is None:
        raise SettingsError("ADMIN_PASSWORD must be the first superuser's password. It is not set.")
    known: dict[str, Any] = {
        "name": settings.ADMIN_NAME,
        "username": settings.ADMIN_USERNAME,
        "email": settings.ADMIN_EMAIL,
        "password": settings.ADMIN_PASSWORD,
    }
    try:
        return first_values(UserCreate, User, "ADMIN_", known, made=("hashed_password",))
    except SettingsError:
        if (username := settings.ADMIN_USERNAME.strip().lower()) == settings.ADMIN_USERNAME:
            raise
    # Names are lower case, and sign-in takes this one as it is written in the settings.
    return first_values(UserCreate, User, "ADMIN_", known | {"username": username}, made=("hashed_password",))


run = partial(run_in_database, create_first_superuser)

if __name__ == "__main__":
    run()
