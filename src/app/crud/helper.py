"""Paging."""

from dataclasses import dataclass
from typing import Any, TypeVar

from app.core.schemas import Page

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is asked for; pages count from 1."""

    page: int
    items_per_page: int

    @property
    def offset(self) -> int:
        """How many rows come before this page."""
        return (self.page - 1) * self.items_per_page

    def page_of(self, rows: list[Any], total: int) -> "Page[Any]":
        """The page that holds these rows, out of `total`."""
        return self.made(Page, rows, total)

    def made(self, page: type[Page[ItemT]], rows: list[ItemT], total: int) -> Page[ItemT]:
        """The same, of a route's own class, with items of that: FastAPI then has nothing left to validate."""
        return page.model_construct(
            data=rows,
            total_count=total,
            has_more=self.offset + len(rows) < total,
            page=self.page,
            items_per_page=self.items_per_page,
        )
