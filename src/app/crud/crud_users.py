"""Users in the database. Every finder but one sees only those who are not deleted."""

from typing import ClassVar
from uuid import UUID

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm.attributes import flag_modified
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import Conflict, NotFound, Problem
from app.core.schemas import Page
from app.crud.crud_base import CRUDBase
from app.crud.crud_tier import TierNotFound
from app.crud.crud_token_blacklist import crud_token_blacklist
from app.crud.helper import Paging
from app.models.user import User, UserCreate


class UserNotFound(NotFound):
    text = "There is no such user."


class UsernameTaken(Conflict):
    text = "User name is already taken."


class EmailTaken(Conflict):
    text = "E-mail address is already registered."


class CRUDUser(CRUDBase[User]):
    model = User
    not_found = UserNotFound
    problems: ClassVar[dict[str, type[Problem]]] = {
        "uq_user_username": UsernameTaken,
        "uq_user_email": EmailTaken,
        "fk_user_tier_id_tier": TierNotFound,
        "ck_user_deleted_has_no_tier": UserNotFound,  # who was deleted since they were read
    }

    async def register(
        self, db: AsyncSession, values: UserCreate, hashed_password: str, *, is_superuser: bool = False
    ) -> User:
        """Creates a user. Raises: UsernameTaken, EmailTaken."""
        update = {"hashed_password": hashed_password, "is_superuser": is_superuser}
        return await self.create(db, User.model_validate(values.model_dump(exclude={"password"}) | update))

    async def get_by_username(self, db: AsyncSession, username: str) -> User | None:
        """The user of this name."""
        return await self._first(db, col(User.username) == username, self._alive)

    async def get_by_username_with_deleted(self, db: AsyncSession, username: str) -> User | None:
        """The user of this name, even when deleted."""
        return await self._first(db, col(User.username) == username)

    async def get_by_login(self, db: AsyncSession, name_or_email: str) -> User | None:
        """Who signs in under this: a user name has no @, an e-mail address always has."""
        if "@" in name_or_email:
            return await self._first(db, func.lower(col(User.email)) == func.lower(name_or_email), self._alive)
        return await self.get_by_username(db, name_or_email)

    async def get_by_token(self, db: AsyncSession, user_uuid: UUID, *token_ids: str) -> User | None:
        """The user a token names, unless one of the ids is revoked: one query for both questions."""
        return await self._first(db, col(User.uuid) == user_uuid, self._alive, ~crud_token_blacklist.holds(*token_ids))

    async def page_of_users(self, db: AsyncSession, paging: Paging) -> Page[User]:
        """One page of users."""
        return await self.page(db, paging, self._alive)

    async def soft_delete(self, db: AsyncSession, user: User) -> None:
        """Deletes a user but keeps the row, so that name and address stay taken. Leaves their tier free to go."""
        user.is_deleted = True
        user.tier_id = None
        flag_modified(user, "tier_id")  # Written even if it was None: somebody may have set it since.
        user.deleted_at = utc_now()
        await self._flush(db)

    @property
    def _alive(self) -> ColumnElement[bool]:
        return col(User.is_deleted).is_(False)

    async def _first(self, db: AsyncSession, *where: ColumnElement[bool]) -> User | None:
        return (await db.exec(select(User).where(*where))).first()


crud_users = CRUDUser()
