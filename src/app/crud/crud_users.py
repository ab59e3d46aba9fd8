"""Users in the database. Every finder but one sees only those who are not deleted."""

import unicodedata
from datetime import datetime
from typing import ClassVar, Final
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, bindparam, func
from sqlalchemy.orm.attributes import flag_modified
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.db.prepared_select import PreparedSelect
from app.core.exceptions.http_exceptions import Conflict, NotFound, Problem
from app.core.schemas import Page
from app.crud.crud_base import CRUDBase
from app.crud.crud_login_session import crud_login_sessions, password_is_good
from app.crud.crud_tier import TierNotFound
from app.crud.crud_token_blacklist import crud_token_blacklist
from app.crud.helper import Paging
from app.models.user import User, UserCreate

LOOK_ALIKES: Final = frozenset("\u212a\u0130")  # Letters beyond ASCII whose lower case is a letter of ASCII.


class UserNotFound(NotFound):
    text = "There is no such user."


class UsernameTaken(Conflict):
    text = "User name is already taken."


class EmailTaken(Conflict):
    text = "E-mail address is already registered."


# Built once: to build them anew, with the key that SQLAlchemy finds their text by, takes longer than to run them.
_ALIVE: Final = col(User.is_deleted).is_(False)
_SIGNED_IN: Final = PreparedSelect(
    select(User).where(
        col(User.uuid) == bindparam("user_uuid"),
        _ALIVE,
        crud_login_sessions.lives_for(bindparam("session_id")),
        password_is_good(),
        ~crud_token_blacklist.holds(bindparam("jti")),
    )
)
_NAMED: Final = PreparedSelect(select(User).where(col(User.username) == bindparam("username"), _ALIVE))
_TOTAL: Final = select(func.count().label("total")).select_from(User).where(_ALIVE)
_COUNT: Final = PreparedSelect(_TOTAL)
_PAGE: Final[PreparedSelect[tuple[User, int]]] = PreparedSelect(
    select(User, _TOTAL.scalar_subquery().label("total"))
    .where(_ALIVE)
    .order_by(col(User.id))
    .offset(bindparam("offset"))
    .limit(bindparam("limit"))
)


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

    async def look_up(self, db: AsyncSession, username: str) -> User | None:
        """The same to look at, in no session."""
        return await _NAMED.first(db, username=username)

    async def get_by_username_with_deleted(self, db: AsyncSession, username: str) -> User | None:
        """The user of this name, even when deleted."""
        return await self._first(db, col(User.username) == username)

    async def get_by_login(self, db: AsyncSession, name_or_email: str) -> User | None:
        """Return the user who signs in under this: a user name has no @, an e-mail address always has.

        Upper and lower case are the same, unless there are names that differ in nothing else.
        """
        if not LOOK_ALIKES.isdisjoint(name_or_email):
            return None
        if "@" in name_or_email:
            return await self._first(db, func.lower(col(User.email)) == func.lower(name_or_email), self._alive)
        name = unicodedata.normalize("NFC", name_or_email.strip())
        named = select(User).where(col(User.username).in_({name, name.lower()}), self._alive)
        return (await db.exec(named.order_by(col(User.username) != name))).first()

    async def get_signed_in(self, db: AsyncSession, user_uuid: UUID, session_id: UUID, jti: str) -> User | None:
        """The user an access token names, unless their login has ended, with a temporary password or otherwise, or the
        token is revoked: one query for all.
        """
        return await _SIGNED_IN.first(db, user_uuid=user_uuid, session_id=session_id, jti=jti)

    def good_hash(self, user: User | None) -> str | None:
        """What a password that was given is compared with; None for nobody, and when a temporary one has expired."""
        if user is None or (user.password_expires_at is not None and user.password_expires_at <= utc_now()):
            return None
        return user.hashed_password

    async def lock_unchanged(self, db: AsyncSession, user: User) -> User | None:
        """The user, unless deleted or given another password since they were read, or their temporary one has expired
        by now; so until this transaction ends.
        """
        same = col(User.password_changed_at).is_not_distinct_from(user.password_changed_at)
        unchanged = select(User).where(col(User.id) == user.id, self._alive, same, password_is_good())
        return (await db.exec(unchanged.with_for_update(key_share=True))).first()

    async def lock(self, db: AsyncSession, user_id: int, *, deleted: bool = False) -> User:
        """The user as they are by now, and for nobody else to change until this transaction ends.

        Args:
            deleted: whether it has to be one who is deleted, or, as usual, one who is not.

        Raises: UserNotFound.
        """
        state = ~self._alive if deleted else self._alive
        statement = select(User).where(col(User.id) == user_id, state).with_for_update(key_share=True)
        user = (await db.exec(statement.execution_options(populate_existing=True))).first()
        if user is None:
            raise UserNotFound
        return user

    async def set_password(
        self, db: AsyncSession, user_id: int, hashed_password: str, *, expires_at: datetime | None = None
    ) -> User:
        """Gives a user another password, for good or until `expires_at`.

        Raises: UserNotFound for one who was deleted meanwhile.
        """
        user = await self.lock(db, user_id)
        user.hashed_password = hashed_password
        user.password_changed_at = utc_now()
        user.password_expires_at = expires_at
        await self._flush(db)
        return user

    async def update(self, db: AsyncSession, row: User, values: BaseModel) -> User:
        """Changes the fields that were given. Another e-mail address is one that nobody has verified yet."""
        email = values.model_dump(exclude_unset=True).get("email", row.email)
        if email.lower() != row.email.lower():
            row.email_verified_at = None
            flag_modified(row, "email_verified_at")  # Written even if it was None: the old one may just be verified.
        return await super().update(db, row, values)

    async def page_of_users(self, db: AsyncSession, paging: Paging) -> Page[User]:
        """One page of users, in no session."""
        found = await _PAGE.all(db, offset=paging.offset, limit=paging.items_per_page)
        total = found[0][1] if found else await _COUNT.first(db)  # Past the last page there is no row to say it.
        return paging.page_of([user for user, _ in found], total or 0)

    async def soft_delete(self, db: AsyncSession, user: User) -> None:
        """Deletes a user but keeps the row, so that name and address stay taken. Leaves their tier free to go."""
        user.is_deleted = True
        user.tier_id = None
        flag_modified(user, "tier_id")  # Written even if it was None: somebody may have set it since.
        user.deleted_at = utc_now()
        await self._flush(db)

    async def restore(self, db: AsyncSession, user: User) -> None:
        """Takes `soft_delete` back, but for the tier."""
        user.is_deleted = False
        user.deleted_at = None
        await self._flush(db)

    @property
    def _alive(self) -> ColumnElement[bool]:
        return _ALIVE

    async def _first(self, db: AsyncSession, *where: ColumnElement[bool]) -> User | None:
        return (await db.exec(select(User).where(*where))).first()


crud_users = CRUDUser()
