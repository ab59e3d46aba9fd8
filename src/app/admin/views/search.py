"""How lists are searched and filtered: by their own fields only, every character means itself, and times are UTC."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from sqlalchemy import BigInteger, ColumnElement, false, or_
from sqlmodel import col, select
from starlette.requests import Request
from starlette_admin.contrib.sqla import filters as sqla
from starlette_admin.fields import BaseField, BooleanField, DateTimeField, EnumField, NumberField, StringField
from starlette_admin.filters import FilterApplyContext, FilterGroup, FilterRegistry, filters
from starlette_admin.filters.base import BaseFilter, FilterDataType, FilterValidationError

from app.admin.views.base import ConsoleView, RowT
from app.core.exceptions.http_exceptions import NotFound
from app.core.schemas import MAX_ID
from app.models.user import User

_MOST_IN_BIGINT: Final = 2**63 - 1


def number_in(text: str, most: int = MAX_ID) -> int | None:
    """The id that a text is, if it is one: PostgreSQL refuses to compare with what no column of that type can be."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    return int(text) if is_number and int(text) <= most else None


def _column(ctx: FilterApplyContext) -> Any:
    return getattr(ctx.view.model, ctx.field_name)  # type: ignore[union-attr]


def _text(raw: Any) -> str:
    text = ",".join(raw) if isinstance(raw, list) else str(raw)  # The library takes it apart at commas.
    if "\x00" in text:
        raise FilterValidationError("No text holds a NUL.")
    return text


class Contains(sqla.ContainsFilter):
    def parse_value(self, raw: Any) -> str:
        return _text(raw)

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx).icontains(ctx.value, autoescape=True)


class StartsWith(sqla.StartsWithFilter):
    def parse_value(self, raw: Any) -> str:
        return _text(raw)

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx).istartswith(ctx.value, autoescape=True)


class Is(sqla.EqualFilter):
    label = "Is"

    def parse_value(self, raw: Any) -> str:
        return _text(raw)


class IsOneOf(sqla.InFilter):
    def parse_value(self, raw: Any) -> list[str]:
        return [_text(value) for value in super().parse_value(raw)]


class NumberIs(sqla.NumericEqualFilter):
    label = "Is"

    def parse_value(self, raw: Any) -> int:
        number = number_in(_text(raw))
        if number is None:
            raise FilterValidationError("This is no number of a row.")
        return number


class IdIs(NumberIs):
    """For a choice among rows, by their ids."""

    data_type = FilterDataType.STRING


class UserNamed(sqla.EqualFilter):
    """For a user's id: the one who has this user name now."""

    name = "named"
    label = "Has the user name"

    def parse_value(self, raw: Any) -> str:
        return _text(raw)

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx).in_(select(col(User.id)).where(col(User.username) == ctx.value))


class _Moment(BaseFilter):
    data_type = FilterDataType.DATETIME

    def parse_value(self, raw: Any) -> datetime:
        try:
            moment = datetime.fromisoformat(_text(raw))
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise FilterValidationError("This is no time, such as 2030-01-31T23:59.") from None


class From(_Moment):
    name = "from"
    label = "From (UTC)"

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx) >= ctx.value


class Until(_Moment):
    name = "until"
    label = "Before (UTC)"

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx) < ctx.value


class Between(_Moment):
    name = "between"
    label = "Between (UTC)"
    has_value2 = True

    def apply(self, ctx: FilterApplyContext) -> Any:
        return _column(ctx).between(ctx.value, ctx.value2)


class ConsoleFilters(sqla.SqlaFilterRegistry):
    """The filters that a kind of field has."""

    @filters(BaseField)
    def fallback_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return []

    @filters(StringField)
    def string_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return [Contains, StartsWith, Is]

    @filters(EnumField)
    def enum_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return [Is, IsOneOf]

    @filters(NumberField)
    def numeric_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return [NumberIs]

    @filters(DateTimeField)
    def datetime_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return [From, Until, Between]

    @filters(BooleanField)
    def boolean_filters(self, field: BaseField) -> list[type[BaseFilter]]:
        return [sqla.IsTrueFilter, sqla.IsFalseFilter]


class SearchedView(ConsoleView[RowT]):
    """A list that can be searched.

    Class attributes:
        search_columns: what is searched for a text; a number is also looked for among the ids.
        searchable_fields: by which fields the list can be filtered.
    """

    search_columns: ClassVar[Sequence[Any]]

    def get_filter_registry(self) -> FilterRegistry:
        return ConsoleFilters()

    def get_search_query(self, request: Request, term: str) -> ColumnElement[bool]:
        if "\x00" in term:
            return false()
        found = [col(column).icontains(term, autoescape=True) for column in self.search_columns]
        number = self._pk_in(term)
        return or_(*found, *([] if number is None else [col(self._pk_column) == number]))

    async def listed(self, request: Request, rows: Sequence[RowT]) -> None:
        """Reads what a list of these rows shows beside them."""

    async def find_all(
        self,
        request: Request,
        skip: int = 0,
        limit: int = 100,
        q: str | None = None,
        sorts: Sequence[tuple[str, str]] | None = None,
        filters: FilterGroup | None = None,
    ) -> Sequence[Any]:
        rows: Sequence[RowT] = []
        if skip <= MAX_ID:  # Else there is no such page, and no number that PostgreSQL takes.
            rows = await super().find_all(request, skip, limit, q, sorts, filters)
        await self.listed(request, rows)
        return rows

    async def find_by_pk(self, request: Request, pk: Any) -> Any:
        return None if self._pk_in(str(pk)) is None else await super().find_by_pk(request, pk)

    async def find_by_pks(self, request: Request, pks: list[Any]) -> Any:
        if any(self._pk_in(str(pk)) is None for pk in pks):
            raise NotFound
        return await super().find_by_pks(request, pks)

    def _pk_in(self, text: str) -> int | str | None:
        is_big = isinstance(self._pk_column.type, BigInteger)  # type: ignore[union-attr]
        return number_in(text, _MOST_IN_BIGINT if is_big else MAX_ID)
