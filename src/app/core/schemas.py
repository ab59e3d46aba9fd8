"""Types and schemas shared by all resources."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

# What would break a line or turn the text around it: controls, line separators, overrides of the writing direction.
_CONTROL = "\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
# What shows nothing: Unicode's Default_Ignorable_Code_Point, beside white space. Within text some of it has its use.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_NOT_VISIBLE = rf"[{_CONTROL}]|^[\s{_INVISIBLE}]*$"
_NOT_A_SEGMENT = r"/|^\s*\.{1,2}\s*$"

MAX_ID = 2**31 - 1
Id = Annotated[int, Field(ge=1, le=MAX_ID, description="The id of a row.")]
MOST_FIELDS = 50


@dataclass(frozen=True, slots=True)
class VisibleText:
    """Makes a `str` a line of text that a person wrote: trimmed and in Unicode's NFC.

    Attributes:
        max_length: in characters, before and after normalisation (NFC lengthens a few characters).
        names_a_path: whether the text is part of an address, where a slash, "." and ".." mean something else.
    """

    max_length: int
    names_a_path: bool = False

    @property
    def _refused(self) -> str:
        return f"{_NOT_VISIBLE}|{_NOT_A_SEGMENT}" if self.names_a_path else _NOT_VISIBLE

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(max_length=self.max_length)
        return core_schema.no_info_after_validator_function(self._normalise, text)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"not": {"pattern": self._refused}}

    def _normalise(self, value: str) -> str:
        if re.search(self._refused, value):
            also = ", and be no part of a path" if self.names_a_path else ""
            raise ValueError(f"String should have a visible character and no control characters{also}")
        normal = unicodedata.normalize("NFC", value).strip()
        if len(normal) > self.max_length:
            raise ValueError(f"String should have at most {self.max_length} characters in Unicode's NFC")
        return normal


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
