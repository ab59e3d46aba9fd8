"""Types and schemas shared by all resources."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.texts import Text, VisibleText

__all__ = [
    "MAX_ID",
    "MOST_FIELDS",
    "Id",
    "Message",
    "Page",
    "ProblemDetails",
    "RequestModel",
    "ResponseModel",
    "Text",
    "VisibleText",
    "may_be_omitted",
]

MAX_ID = 2**31 - 1
Id = Annotated[int, Field(ge=1, le=MAX_ID, description="The id of a row.")]
MOST_FIELDS = 50


def may_be_omitted() -> Any:
    """The default of a PATCH field that may be left out but may not be null."""
    return Field(default_factory=lambda: None)


class RequestModel(BaseModel):
    """Base of what comes in: a field we do not know is an error, not a silent loss."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_flood(cls, values: Any) -> Any:
        # Each unknown field would become an error of its own: seconds of work for a body of a megabyte.
        if isinstance(values, dict) and len(values) > MOST_FIELDS:
            raise ValueError(f"Object should have at most {MOST_FIELDS} fields")
        return values


class ResponseModel(BaseModel):
    """Base of what goes out: built from a row."""

    model_config = ConfigDict(from_attributes=True)


ItemT = TypeVar("ItemT")


class Page(ResponseModel, Generic[ItemT]):
    """One page of a list."""

    data: list[ItemT]
    total_count: int
    has_more: bool
    page: int
    items_per_page: int


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="A stable name of the kind of error.", examples=["urn:problem-type:not-found"])
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, Any]] | None = Field(default=None, description="What is wrong with which field (422).")


class Message(BaseModel):
    """The answer where there is no resource to return."""

    message: str
