"""Subscriptions that write down what they are told, for the tests of events."""

from dataclasses import dataclass, field

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.events import Subscription, subscribe, subscribe_after_commit
from app.models.user_events import UserChanged, UserEvent


@dataclass
class Heard:
    """What was published, within transactions and after their commits."""

    within: list[UserEvent] = field(default_factory=list)
    after: list[UserEvent] = field(default_factory=list)

    @property
    def subscriptions(self) -> list[Subscription]:
        """What hears everything about users."""
        return [subscribe(UserEvent, self._note_within), subscribe_after_commit(UserEvent, self._note_after)]

    async def _note_within(self, db: AsyncSession, event: UserEvent) -> None:
        await (await db.connection()).execute(text("SELECT 1"))
        self.within.append(event)

    async def _note_after(self, event: UserEvent) -> None:
        self.after.append(event)

    def take(self) -> list[tuple[str, str, set[str]]]:
        """Forget and return all: each event's kind, user name and changed columns. Both lists have to be the same."""
        assert self.after == self.within
        found = [
            (type(event).__name__, event.username, set(event.changed) if isinstance(event, UserChanged) else set())
            for event in self.within
        ]
        self.within.clear()
        self.after.clear()
        return found
