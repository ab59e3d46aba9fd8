"""What a page does not know while Redis/Valkey is away."""

from collections.abc import Awaitable
from typing import TypeVar

from app.core.utils.redis_link import LinkError

AnswerT = TypeVar("AnswerT")


async def unless_away(answer: Awaitable[AnswerT]) -> AnswerT | None:
    """The answer; None when Redis/Valkey is away."""
    try:
        return await answer
    except LinkError:
        return None
