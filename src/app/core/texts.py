"""Types of texts that people write: what is refused in them, and the form in which they are kept."""

import re
import unicodedata
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

_WRITING_DIRECTION = "\u202a-\u202e\u2066-\u2069"  # overrides turn the text around them
_LINE_SEPARATORS = "\u2028\u2029"
_CONTROL = f"\\x00-\\x1f\\x7f-\\x9f{_LINE_SEPARATORS}{_WRITING_DIRECTION}"
_CONTROL_WITHIN_LINES = f"\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f{_WRITING_DIRECTION}"
# What shows nothing: Unicode's Default_Ignorable_Code_Point, beside white space. Within text some of it has its use.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK = rf"^[\s{_INVISIBLE}]*$"
_NOT_A_SEGMENT = r"/|^\s*\.{1,2}\s*$"
_NEWLINE = re.compile(f"\r\n|[\r{_LINE_SEPARATORS}]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot hold


@dataclass(frozen=True, slots=True)
class _Text:
    """What the types of texts share. They annotate `str`, or `str | None`, in which None stays None.

    Attributes:
        max_length: in characters, before and after normalisation (NFC lengthens a few characters).
    """

    max_length: int

    @property
    def _refused(self) -> str:
        """A regular expression, in Python and in JSON Schema, for texts that are refused."""
        raise NotImplementedError

    @property
    def _rule(self) -> str:
        """What a text has to be, for the error message: "String should ..."."""
        raise NotImplementedError

    def _prepared(self, text: str) -> str:
        """The text as it is looked at."""
        return text

    def _kept(self, text: str) -> str:
        """The text as it is kept."""
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not _is_str(source):
            name = type(self).__name__
            raise TypeError(
                f"{name} is for str and str | None, not {source}. Of a list: list[Annotated[str, {name}(...)]]"
            )
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"maxLength": self.max_length, "not": {"pattern": self._refused}}

    def _validate(self, value: str | None) -> str | None:
        if value is None:
            return None
        if _SURROGATE.search(value):
            raise PydanticKnownError("string_unicode")
        text = self._prepared(value)
        self._refuse_length(text)
        if re.search(self._refused, text):
            raise ValueError(f"String should {self._rule}")
        text = self._kept(unicodedata.normalize("NFC", text))
        self._refuse_length(text)
        return text

    def _refuse_length(self, text: str) -> None:
        if len(text) > self.max_length:
            raise PydanticKnownError("string_too_long", {"max_length": self.max_length})


@dataclass(frozen=True, slots=True)
class VisibleText(_Text):
    """Makes a `str` a line of text that a person wrote: trimmed and in Unicode's NFC.

    Attributes:
        max_length: in characters, before and after normalisation.
        names_a_path: whether the text is part of an address, where a slash, "." and ".." mean something else.
    """

    names_a_path: bool = False

    @property
    def _refused(self) -> str:
        not_visible = f"[{_CONTROL}]|{_BLANK}"
        return f"{not_visible}|{_NOT_A_SEGMENT}" if self.names_a_path else not_visible

    @property
    def _rule(self) -> str:
        also = ", and be no part of a path" if self.names_a_path else ""
        return f"have a visible character and no control characters{also}"

    def _kept(self, text: str) -> str:
        return text.strip()


@dataclass(frozen=True, slots=True)
class Text(_Text):
    """Makes a `str` a text of several lines: newlines are "\\n", and it is in Unicode's NFC.

    Tabs and white space stay as they are. Other control characters, NUL among them, halves of surrogate pairs and
    overrides of the writing direction are refused.

    Attributes:
        max_length: in characters, with one for a newline, before and after normalisation.
        blank: whether a text without a visible character is accepted, such as an empty one.
    """

    blank: bool = True

    @property
    def _refused(self) -> str:
        control = f"[{_CONTROL_WITHIN_LINES}]"
        return control if self.blank else f"{control}|{_BLANK}"

    @property
    def _rule(self) -> str:
        control = "have no control characters but tabs and newlines"
        return control if self.blank else f"have a visible character, and {control}"

    def _prepared(self, text: str) -> str:
        return _NEWLINE.sub("\n", text)


def _is_str(source: Any) -> bool:
    if get_origin(source) in {Union, UnionType}:
        return set(get_args(source)) == {str, NoneType}
    return source is str
