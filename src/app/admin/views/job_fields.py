"""What the console shows of a job, and what its list can be filtered by."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, or_
from starlette.requests import Request
from starlette_admin.fields import ComputedField, StringField
from starlette_admin.filters.base import BaseFilter, FilterApplyContext, FilterDataType, FilterValidationError

from app.admin.views.search import Is
from app.core.utils.queue import Job, JobStatus
from app.crud.crud_job import in_status

LABELS: Final = {status.value: status.value.replace("_", " ") for status in JobStatus}


def pretty(value: Any) -> str:
    """A value of a JSON column as text to read."""
    return json.dumps(value, ensure_ascii=False, indent=2)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a job has last said of itself, fit to be shown."""

    done: float
    total: float | None
    message: str

    @classmethod
    def of(cls, job: Job) -> "Progress | None":
        """None for a job that has said nothing, or nothing in the usual form."""
        said = job.progress
        if not isinstance(said, dict) or not isinstance(said.get("done"), int | float):
            return None
        total = said.get("total")
        whole = float(total) if isinstance(total, int | float) and total > 0 else None
        return cls(float(said["done"]), whole, str(said.get("message") or ""))

    @property
    def bar(self) -> float:
        """How much of a bar is full: 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else 0.0

    @property
    def text(self) -> str:
        """So much of so much."""
        return f"{self.done:g} of {self.total:g}" if self.total else f"{self.done:g}"


# ---- Filters ----


class IsFunction(Is):
    """One of those that are there: read before the list is, by `JobView`."""

    def get_choices(self, request: Request) -> Sequence[tuple[Any, str]] | None:
        return [(name, name) for name in getattr(request.state, "job_functions", ())]


class IsInStatus(BaseFilter):
    """One status, or one of several."""

    name = "eq"
    label = "Is"
    data_type = FilterDataType.ENUM

    def parse_value(self, raw: Any) -> list[JobStatus]:
        try:
            return [JobStatus(str(one)) for one in (raw if isinstance(raw, list) else [raw])]
        except ValueError:
            raise FilterValidationError("There is no such status.") from None

    def get_choices(self, request: Request) -> Sequence[tuple[Any, str]] | None:
        return list(LABELS.items())

    def apply(self, ctx: FilterApplyContext) -> ColumnElement[bool]:
        return or_(*map(in_status, ctx.value))


def these(*filters: type[BaseFilter]) -> list[type[BaseFilter]]:
    """What a field can be filtered by; by nothing, without any."""
    return list(filters)


# ---- Fields ----


@dataclass
class StatusField(StringField):
    """`Job.status`, which is no column."""

    filters: list[type[BaseFilter]] | None = field(default_factory=lambda: these(IsInStatus))
    list_template: str = "console/job_status.html"

    async def serialize_value(self, request: Request, value: Any) -> str:
        return JobStatus(value).value


@dataclass
class ProgressField(ComputedField):
    """What it has last said of itself."""

    list_template: str = "console/job_progress.html"

    async def parse_obj(self, request: Request, obj: Any) -> Progress | None:
        return Progress.of(obj)

    async def serialize_value(self, request: Request, value: Any) -> Progress:
        """For its template; another field makes a text of it."""
        return value  # type: ignore[no-any-return]


@dataclass
class TextField(StringField):
    """A text that is cut where it is long; all of it is on the page of the job."""

    list_template: str = "console/job_text.html"
