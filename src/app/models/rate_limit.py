"""A rate limit: how often a tier's users may call a route."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, StringConstraints
from pydantic import Field as PydanticField
from sqlalchemy import CheckConstraint, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from app.core.config import DefaultRateLimitSettings
from app.core.db.models import TimestampMixin
from app.core.schemas import RequestModel, ResponseModel, VisibleText, may_be_omitted
from app.core.utils.rate_limit import EVERY_PATH, Rule, Usage, as_documented

RateLimitName = Annotated[str, VisibleText(50)]
# Which paths there are is known to the running app only: see `require_known_path`.
RoutePath = Annotated[
    str,
    StringConstraints(max_length=255, pattern=r"^(\*|([A-Za-z]+ +)?/[!-~]*)$"),
    AfterValidator(as_documented),
    PydanticField(
        description="A route's template, a method and a template (`POST /api/v1/user`), or `*` for all routes."
    ),
]
Limit = Annotated[int, PydanticField(strict=True, ge=1, le=2**31 - 1, description="Requests per period.")]
Period = Annotated[int, PydanticField(strict=True, ge=1, le=31_536_000, description="Seconds, up to a year.")]


class RateLimit(TimestampMixin, table=True):
    """The table."""

    __tablename__ = "rate_limit"
    __table_args__ = (
        UniqueConstraint("tier_id", "path"),
        CheckConstraint('"limit" > 0', name="limit_positive"),
        CheckConstraint("period > 0", name="period_positive"),
    )

    id: int = Field(default=None, primary_key=True)
    tier_id: int = Field(foreign_key="tier.id", ondelete="CASCADE")
    name: str = Field(max_length=50)
    path: str = Field(max_length=255)
    limit: int
    period: int
    additional_windows: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": text("'[]'::jsonb")}
    )


class RateLimitWindow(RequestModel):
    """One more window of a rule, such as a day beside a minute."""

    limit: Limit
    period: Period


AdditionalWindows = Annotated[
    list[RateLimitWindow], PydanticField(max_length=3, description="All of a rule's windows have to have room.")
]
# Most rules have none, and then nothing is said about them.
ShownWindows = Annotated[list[RateLimitWindow], PydanticField(exclude_if=lambda windows: not windows)]


class RateLimitCreate(RequestModel):
    name: RateLimitName
    path: RoutePath
    limit: Limit
    period: Period
    additional_windows: AdditionalWindows = PydanticField(default_factory=list)


class RateLimitUpdate(RequestModel):
    name: RateLimitName = may_be_omitted()
    path: RoutePath = may_be_omitted()
    limit: Limit = may_be_omitted()
    period: Period = may_be_omitted()
    additional_windows: AdditionalWindows = may_be_omitted()


class RateLimitRead(ResponseModel):
    id: int
    tier_id: int
    name: str
    path: str
    limit: int
    period: int
    additional_windows: ShownWindows = PydanticField(default_factory=list)


class EffectiveRateLimit(ResponseModel):
    """A rule as it applies to one user: their tier's, or the default for every other path."""

    name: str
    path: str
    limit: int
    period: int
    additional_windows: ShownWindows = PydanticField(default_factory=list)


class RateLimitUsage(ResponseModel):
    """How a caller stands with one window of a rule."""

    name: str
    path: str
    limit: int
    period: int
    used: int = PydanticField(description="In the period that ends now.")
    remaining: int
    reset: int = PydanticField(description="Seconds until some of what is used is free again; 0 when nothing is.")

    @classmethod
    def of(cls, rule: Rule, usage: Usage) -> Self:
        """As the limiter tells it."""
        window = usage.window
        return cls(
            name=rule.name,
            path=rule.path,
            limit=window.limit,
            period=window.period,
            used=usage.used,
            remaining=usage.remaining,
            reset=usage.reset,
        )


def effective_rate_limits(
    rules: list[RateLimit], default: DefaultRateLimitSettings | object
) -> list[EffectiveRateLimit]:
    """The rules of a tier, and the default for every path when there is one and no rule replaces it."""
    effective = [EffectiveRateLimit.model_validate(rule) for rule in rules]
    if isinstance(default, DefaultRateLimitSettings) and all(rule.path != EVERY_PATH for rule in rules):
        effective.append(
            EffectiveRateLimit(
                name="default",
                path=EVERY_PATH,
                limit=default.DEFAULT_RATE_LIMIT_LIMIT,
                period=default.DEFAULT_RATE_LIMIT_PERIOD,
            )
        )
    return effective
