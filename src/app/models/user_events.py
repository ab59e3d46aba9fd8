"""What happens to users, as events to subscribe to (docs/events.md)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from uuid import UUID

from app.core.db.changes import Values, track_changes
from app.models.user import User

# What a soft deletion and a restoration set: those events stand for it.
_OF_DELETION: Final = {"is_deleted", "deleted_at", "tier_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEvent:
    """Base of all events of users.

    Attributes:
        id, uuid, username: the user's; of one who is erased, the last ones.
    """

    id: int
    uuid: UUID
    username: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCreated(UserEvent):
    """There is a new user.

    Attributes:
        values: of all columns but the hash of the password.
    """

    values: Values = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChanged(UserEvent):
    """Columns of a user have other values: name, user name, e-mail address, tier, rank, times of the password, ...

    Attributes:
        before, after: the values of the columns that differ.
    """

    before: Values = field(repr=False)
    after: Values = field(repr=False)

    @property
    def changed(self) -> frozenset[str]:
        """The names of the columns that differ."""
        return frozenset(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeleted(UserEvent):
    """A user was softly deleted, and has no tier any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRestored(UserEvent):
    """A soft deletion was taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserErased(UserEvent):
    """A user's row is gone, whether it was softly deleted before or not.

    Attributes:
        values: the last ones, of all columns but the hash of the password.
    """

    values: Values = field(repr=False)


def _events_of(before: Values | None, after: Values | None) -> Iterator[UserEvent]:
    row = after or before
    if row is None:
        return
    user = {"id": row["id"], "uuid": row["uuid"], "username": row["username"]}
    if before is None:
        yield UserCreated(**user, values=MappingProxyType(row))
    elif after is None:
        yield UserErased(**user, values=MappingProxyType(row))
    else:
        changed = {name for name in after if after[name] != before[name]}
        kinds: list[type[UserEvent]] = []
        if "is_deleted" in changed:
            kinds.append(UserDeleted if after["is_deleted"] else UserRestored)
            changed -= _OF_DELETION
        if changed:
            old, new = ({name: values[name] for name in changed} for values in (before, after))
            yield UserChanged(**user, before=MappingProxyType(old), after=MappingProxyType(new))
        yield from (kind(**user) for kind in kinds)


track_changes(User, _events_of, without=["updated_at"])
