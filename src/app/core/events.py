"""Subscriptions to domain events: functions that an application has called when something happens.

Events come from changes of rows (`app.core.db.changes`): they are published once per transaction, before its commit,
whichever code has made the change.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

EventT = TypeVar("EventT")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A handler of one kind of event. Made by `subscribe` or `subscribe_after_commit`."""

    kind: type[Any]
    handler: Callable[..., Awaitable[object]]
    is_after_commit: bool


def subscribe(kind: type[EventT], handler: Callable[[AsyncSession, EventT], Awaitable[object]]) -> Subscription:
    """Have a handler called within the transaction of the change, just before its commit.

    The handler can read and write with the session it is given; it must not commit. An error that it raises rolls back
    the change and is the answer of the request, or the failure of the job.

    Args:
        kind: the class of the event, or a base class of several.
        handler: called with the session and the event.
    """
    return Subscription(kind, handler, is_after_commit=False)


def subscribe_after_commit(kind: type[EventT], handler: Callable[[EventT], Awaitable[object]]) -> Subscription:
    """Have a handler called once the change is committed, and not at all when it is rolled back.

    An error is logged and changes nothing. The call is lost when the process dies between the commit and it: for what
    must not be lost, enqueue a job in a handler of `subscribe`.

    Args:
        kind: the class of the event, or a base class of several.
        handler: called with the event.
    """
    return Subscription(kind, handler, is_after_commit=True)


async def publish(
    db: AsyncSession, events: Iterable[object], subscriptions: Sequence[Subscription]
) -> list[Callable[[], Awaitable[object]]]:
    """Call the handlers of events in the transaction, in the order of their subscriptions.

    Returns: what is to be called after the commit.

    Raises: the error of a handler.
    """
    later: list[Callable[[], Awaitable[object]]] = []
    for event in events:
        for subscription in subscriptions:
            if not isinstance(event, subscription.kind):
                continue
            if subscription.is_after_commit:
                later.append(partial(subscription.handler, event))
            else:
                await subscription.handler(db, event)
    return later
