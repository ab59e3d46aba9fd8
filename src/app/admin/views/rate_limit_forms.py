"""A rate limit as the console's forms have it, and as it is said in words."""

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ValidationError
from pydantic import Field as PydanticField
from pydantic_core import PydanticCustomError

from app.core.schemas import MAX_ID, RequestModel, may_be_omitted
from app.models.rate_limit import (
    Limit,
    Period,
    RateLimit,
    RateLimitName,
    RateLimitUpdate,
    RateLimitWindow,
    RoutePath,
)

_LINE: Final = re.compile(r"([0-9]{1,10}) per ([0-9]{1,10})", re.ASCII)
_UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_MOST_WINDOWS: Final = 3


def windows_in(text: str) -> list[dict[str, int]]:
    """The windows that a text names, one in a line. Raises: ValueError that says what is wrong with which line."""
    lines = text.splitlines()
    if len(lines) > _MOST_WINDOWS:
        raise ValueError(f"There can be {_MOST_WINDOWS} further windows at most")
    return [_window_in(number, line) for number, line in enumerate(lines, 1)]


def _window_in(number: int, line: str) -> dict[str, int]:
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise ValueError(f"Line {number}: write it as 1000 per 86400, which is requests per seconds")
    try:
        return RateLimitWindow(limit=int(parts[1]), period=int(parts[2])).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"Line {number}, {first['loc'][0]}: {first['msg']}") from None


def _checked(text: str) -> str:
    try:
        windows_in(text)
    except ValueError as error:  # As it is: pydantic would put "Value error" before it.
        raise PydanticCustomError("windows", "{said}", {"said": str(error)}) from None
    return text


def text_of(windows: list[dict[str, Any]]) -> str:
    """The inverse of `windows_in`."""
    return "\n".join(f"{window['limit']} per {window['period']}" for window in windows)


def per(limit: int, period: int) -> str:
    """A window in words, such as `10 per minute`."""
    seconds, unit = next(pair for pair in _UNITS if period % pair[0] == 0)
    return f"{limit:,} per {unit}" if seconds == period else f"{limit:,} per {period // seconds:,} {unit}s"


def in_words(rule: RateLimit) -> str:
    """All windows of a rule in words."""
    windows = [(rule.limit, rule.period), *((more["limit"], more["period"]) for more in rule.additional_windows)]
    return ", ".join(per(limit, period) for limit, period in windows)


TierId = Annotated[int, PydanticField(strict=True, ge=1, le=MAX_ID)]
WindowsText = Annotated[str, AfterValidator(_checked)]


class RateLimitForm(RequestModel):
    """A new rule, as the form has it: further windows as a text."""

    tier_id: TierId
    name: RateLimitName
    path: RoutePath
    limit: Limit
    period: Period
    additional_windows: WindowsText = ""


class RateLimitChangeForm(RequestModel):
    """What has changed in the form."""

    tier_id: TierId = may_be_omitted()
    name: RateLimitName = may_be_omitted()
    path: RoutePath = may_be_omitted()
    limit: Limit = may_be_omitted()
    period: Period = may_be_omitted()
    additional_windows: WindowsText = may_be_omitted()


class RateLimitMove(RateLimitUpdate):
    """What the console can change: what the API can, and the tier."""

    tier_id: TierId = may_be_omitted()
