"""Logins in the database."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Exists, delete, exists, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.models import utc_now
from app.core.exceptions.http_exceptions import NotFound
from app.core.schemas import Page
from app.crud.crud_base import CRUDBase
from app.crud.helper import Paging
from app.models.login_session import LoginKind, LoginSession
from app.models.user import User


class LoginSessionNotFound(NotFound):
    text = "There is no such login, or it has ended."


def password_is_good() -> ColumnElement[bool]:
    """The condition that the user in the query has no temporary password that has expired by now."""
    expires_at = col(User.password_expires_at)
    # Not when the transaction began: it may have waited since.
    return or_(expires_at.is_(None), expires_at > func.clock_timestamp())


class CRUDLoginSession(CRUDBase[LoginSession]):
    model = LoginSession
    not_found = LoginSessionNotFound

    async def lock_with_user(self, db: AsyncSession, session_id: UUID) -> tuple[LoginSession, User] | None:
        """A login of the API and its user, who is not deleted and whose password has not expired; nobody else changes
        that login until this transaction ends.
        """
        statement = (
            select(LoginSession, User)
            .join(User, col(User.id) == col(LoginSession.user_id))
            .where(
                col(LoginSession.id) == session_id,
                col(LoginSession.kind) == LoginKind.API,
                col(User.is_deleted).is_(False),
                password_is_good(),
            )
            .with_for_update(of=LoginSession)
        )
        return (await db.exec(statement)).first()

    async def get_of_console(self, db: AsyncSession, session_id: UUID) -> tuple[LoginSession, User] | None:
        """A live login of the console and its user, who is a superuser at this moment: one query for all."""
        mine = col(User.id) == col(LoginSession.user_id)
        statement = select(LoginSession, User).join(User, mine).where(*self._opens_console(session_id))
        return (await db.exec(statement)).first()

    async def hold_of_console(self, db: AsyncSession, session_id: UUID) -> bool:
        """Whether that is so, and for the rank also until this transaction ends."""
        mine = col(User.id) == col(LoginSession.user_id)
        statement = select(LoginSession.id).join(User, mine).where(*self._opens_console(session_id))
        return (await db.exec(statement.with_for_update(read=True, of=User))).first() is not None

    def _opens_console(self, session_id: UUID) -> tuple[ColumnElement[bool], ...]:
        return (
            col(LoginSession.id) == session_id,
            col(LoginSession.kind) == LoginKind.CONSOLE,
            self._live,
            col(User.is_deleted).is_(False),
            col(User.is_superuser).is_(True),
            password_is_good(),
        )

    async def note_use(self, db: AsyncSession, session_id: UUID, now: datetime, expires_at: datetime) -> None:
        """Puts off the end of a login, if it lives."""
        statement = update(LoginSession).where(col(LoginSession.id) == session_id, self._live)
        await db.exec(statement.values(last_used_at=now, expires_at=expires_at))

    async def page_of_user(self, db: AsyncSession, paging: Paging, user_id: int) -> Page[LoginSession]:
        """One page of a user's live logins, the last used first."""
        mine = col(LoginSession.user_id) == user_id
        return await self.page(db, paging, mine, self._live, order_by=[col(LoginSession.last_used_at).desc()])

    async def addresses_of_user(self, db: AsyncSession, user_id: int) -> list[str]:
        """Where a user has signed in from, as far as it is remembered."""
        addresses = select(LoginSession.address).where(col(LoginSession.user_id) == user_id).distinct().limit(100)
        return [address for address in await db.exec(addresses) if address]

    async def end(self, db: AsyncSession, session_id: UUID, user_id: int) -> bool:
        """Ends a login, if it is that user's. Says whether it lived until then."""
        return await self._end(db, col(LoginSession.id) == session_id, col(LoginSession.user_id) == user_id) == 1

    async def end_all_of_user(self, db: AsyncSession, user_id: int, *, but: UUID | None = None) -> int:
        """Ends all logins of a user, or all but one. Says how many lived until then."""
        spared = () if but is None else (col(LoginSession.id) != but,)
        return await self._end(db, col(LoginSession.user_id) == user_id, *spared)

    async def _end(self, db: AsyncSession, *where: ColumnElement[bool]) -> int:
        statement = update(LoginSession).where(*where, self._live).values(revoked_at=utc_now())
        return (await db.exec(statement)).rowcount

    def lives_for(self, session_id: UUID | BindParameter[UUID]) -> Exists:
        """The condition that this login of the user in the same query is live, and one of the API."""
        mine = (col(LoginSession.id) == session_id, col(LoginSession.user_id) == col(User.id))
        return exists().where(*mine, col(LoginSession.kind) == LoginKind.API, self._live)

    async def purge(self, db: AsyncSession, before: datetime) -> int:
        """Removes the logins that expired before this moment. Says how many."""
        return (await db.exec(delete(LoginSession).where(col(LoginSession.expires_at) < before))).rowcount

    @property
    def _live(self) -> ColumnElement[bool]:
        return col(LoginSession.revoked_at).is_(None) & (col(LoginSession.expires_at) > func.now())


crud_login_sessions = CRUDLoginSession()
