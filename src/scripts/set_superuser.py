"""Makes a user a superuser, or no longer one: `python -m src.scripts.set_superuser USERNAME on` (or `off`).

It counts from that user's next request on, on every server.
"""

import argparse
from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.config import Settings
from app.crud.crud_security_event import Client, crud_security_events
from app.crud.crud_users import UserNotFound, crud_users
from app.models.security_event import EventKind

from .database_script import run_in_database


async def set_superuser(username: str, is_superuser: bool, db: AsyncSession, settings: Settings) -> str:
    """Changes a user's rank, leaves a security event, and says what was done. Raises: UserNotFound."""
    user = await crud_users.get_by_username(db, username)
    if user is None:
        raise UserNotFound
    rank = "a superuser" if is_superuser else "no superuser"
    if user.is_superuser == is_superuser:
        return f"{username} is {rank} already."
    user.is_superuser = is_superuser
    await crud_security_events.record(
        db, EventKind.RIGHTS_CHANGED, Client(), user_id=user.id, is_superuser=is_superuser
    )
    return f"{username} is {rank} now."


def main() -> None:
    """Reads the command line and does it."""
    parser = argparse.ArgumentParser(prog="python -m src.scripts.set_superuser", description=__doc__)
    parser.add_argument("username")
    parser.add_argument("rank", choices=["on", "off"])
    arguments = parser.parse_args()
    run_in_database(partial(set_superuser, arguments.username, arguments.rank == "on"))


if __name__ == "__main__":
    main()
