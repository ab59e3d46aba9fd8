"""Tokens that went out by e-mail, in the database."""

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from app.core.db.models import utc_now
from app.core.security import create_mail_token, hash_of_mail_token
from app.models.mail_token import MailPurpose, MailToken
from app.models.user import User

LIFETIMES = {
    MailPurpose.PASSWORD_RESET: timedelta(minutes=30),
    MailPurpose.EMAIL_VERIFICATION: timedelta(hours=24),
}
SHORTEST_INTERVAL = timedelta(minutes=1)  # between two mails to one address: nobody's mailbox is to be flooded


class CRUDMailToken:
    """Not a resource with rows to read and change: a token goes out, and is used up."""

    async def issue(self, db: AsyncSession, purpose: MailPurpose, user: User) -> str | None:
        """A new token for this user. Earlier ones stay good: otherwise any stranger who asks could void them.

        None when one was issued within the last minute, or is being done by somebody else at this moment.
        """
        now = utc_now()
        to_them = (col(MailToken.purpose) == purpose, func.lower(col(MailToken.email)) == func.lower(user.email))
        if not await self._takes_turn(db, purpose, user.email):
            return None
        newest = (await db.exec(select(func.max(MailToken.created_at)).where(*to_them))).one()
        if newest is not None and now - newest < SHORTEST_INTERVAL:
            return None
        token = create_mail_token()
        row = MailToken(
            user_id=user.id,
            purpose=purpose,
            token_hash=hash_of_mail_token(token),
            email=user.email,
            created_at=now,
            expires_at=now + LIFETIMES[purpose],
        )
        db.add(row)
        await db.flush()
        return token

    async def _takes_turn(self, db: AsyncSession, purpose: MailPurpose, email: str) -> bool:
        """Whether nobody else is at it. Does not wait for them: they may be talking to a slow mail server."""
        key = func.hashtextextended(func.lower(f"mail_token {purpose} {email}"), 0)
        return bool((await db.exec(select(func.pg_try_advisory_xact_lock(key)))).one())

    async def get_user(self, db: AsyncSession, purpose: MailPurpose, token: str) -> User | None:
        """Whose token it is, as long as it is good and went to the address that the user still has."""
        return (await db.exec(self._user_of(purpose, token))).first()

    async def use(self, db: AsyncSession, purpose: MailPurpose, token: str) -> User | None:
        """Uses up a good token. Of several at once, exactly one gets its user, who then changes for nobody else."""
        # The lock comes first: who has it knows that the address is still the one the token went to.
        user = (await db.exec(self._user_of(purpose, token).with_for_update(of=User, key_share=True))).first()
        used = delete(MailToken).where(*self._is(purpose, token))
        return user if user is not None and (await db.exec(used)).rowcount == 1 else None

    def _user_of(self, purpose: MailPurpose, token: str) -> SelectOfScalar[User]:
        same_address = func.lower(col(User.email)) == func.lower(col(MailToken.email))
        alive = col(User.is_deleted).is_(False)
        theirs = select(User).join(MailToken, col(User.id) == col(MailToken.user_id))
        return theirs.where(same_address, alive, *self._is(purpose, token))

    def _is(self, purpose: MailPurpose, token: str) -> tuple[ColumnElement[bool], ...]:
        return (
            col(MailToken.token_hash) == hash_of_mail_token(token),
            col(MailToken.purpose) == purpose,
            col(MailToken.expires_at) > utc_now(),
        )

    async def void(self, db: AsyncSession, purpose: MailPurpose, user_id: int) -> None:
        """Makes what went out to a user for this purpose worthless."""
        await db.exec(delete(MailToken).where(col(MailToken.user_id) == user_id, col(MailToken.purpose) == purpose))

    async def purge(self, db: AsyncSession) -> int:
        """Removes expired tokens. Says how many."""
        return (await db.exec(delete(MailToken).where(col(MailToken.expires_at) < utc_now()))).rowcount


crud_mail_tokens = CRUDMailToken()
