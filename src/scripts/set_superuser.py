"""Makes a user a superuser, or no longer one: `python -m src.scripts.set_superuser USERNAME on` (or `off`).

It counts from that user's next request on, on every server. Who is no longer one has to sign in again.
"""

import argparse
from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import accounts
from app.core.config import Settings
from app.crud.crud_security_event import Client
from app.crud.crud_users import UserNotFound, crud_users

from .database_script import run_in_database


async def set_superuser(username: str, is_superuser: bool, db: AsyncSession, settings: Settings) -> str:
    """Changes a user's rank, leaves a security event, and says what was done. Raises: UserNotFound."""
    user = await crud_users.get_by_login(db, username)
    if user is None:
        raise UserNotFound
    rank = "a superuser" if is_superuser else "no superuser"
    changed = await accounts.set_superuser(db, user, is_superuser, settings, Client(), actor=None)
    return f"{user.username} is {rank} {'now' if changed else 'already'}."


def main() -> None:
    """Reads the command line and does it."""
    parser = argparse.ArgumentParser(prog="python -m src.scripts.set_superuser", description=__doc__)
    parser.add_argument("username")
    parser.add_argument("rank", choices=["on", "off"])
    arguments = parser.parse_args()
    run_in_database(partial(set_superuser, arguments.username, arguments.rank == "on"))


if __name__ == "__main__":
    main()
