"""The lines about broken settings: one per variable, with its name and the form it should have, never its value."""

import os
import types
import typing
from collections.abc import Iterator
from typing import Any, Final

from pydantic import AliasChoices, AliasPath, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings

_LIST: Final = 'a list in JSON, such as ["one", "two"]'
_OBJECT: Final = 'an object in JSON, such as {"name": "value"}'
# The forms of fields without a description, by the type of pydantic's error.
_FORMS: Final = {
    **dict.fromkeys(("list_type", "set_type", "frozen_set_type", "tuple_type", "iterable_type"), _LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), _OBJECT),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "decimal_parsing"), "a number"),
    "time_delta_parsing": "a duration, such as PT1M30S or a number of seconds",
    "byte_size": "a size, such as 10MB",
    "byte_size_unit": "a size, such as 10MB",
    "json_invalid": "valid JSON",
}
_SHORTEST: Final = 3  # characters of a value that is looked for in a text
_OWN_TEXT: Final = ("value_error", "assertion_error")  # A validator of the application wrote it.


class RefusedValueError(ValueError):
    """Raised by a validator whose text completes the line that begins with the variable's name."""


def error_lines(group: type[BaseSettings], error: ValidationError) -> list[str]:
    """Return a line per broken variable, and one per error of a validator of the whole group."""
    lines: list[str] = []
    of_variables: dict[str, dict[str, list[str]]] = {}  # what is required, by the place, by the variable
    for details in error.errors(include_url=False):
        if not details["loc"]:
            lines.append(_without_secrets(group, _own_text(details), details["input"]))
            continue
        name, field = _variable(group, str(details["loc"][0]))
        place = name if field is not None and field.description else f"{name}{_path(field, details)}"
        requirements = of_variables.setdefault(name, {}).setdefault(place, [])
        if (requirement := _requirement(field, details)) not in requirements:
            requirements.append(requirement)  # Of a union, each member has one.
    by_place = (
        [f"{place} {' or '.join(found)}" for place, found in places.items()] for places in of_variables.values()
    )
    return [*lines, *(f"{'; '.join(requirements)}." for requirements in by_place)]


def failed_validator(group: type[BaseSettings], error: Exception) -> str | None:
    """Return the line about a validator that raised something else than a verdict; None when none did."""
    codes = {code: names for names, code in _validators(group)}
    trace = error.__traceback__
    line = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code in codes:
            subject = " or ".join(_variable(group, field)[0] for field in codes[code]) or "The settings"
            place = f"{code.co_filename.rpartition('/')[2]}, line {trace.tb_lineno}"
            line = f"{subject} cannot be read: a validator raises {type(error).__name__} ({place})."
        trace = trace.tb_next
    return line


def _requirement(field: FieldInfo | None, details: ErrorDetails) -> str:
    kind, text = details["type"], details["msg"]
    described = field.description if field is not None else None
    if isinstance(cause := details.get("ctx", {}).get("error"), RefusedValueError):
        return str(cause)
    if described:
        return f"must be {described}" + (". It is not set" if kind == "missing" and len(details["loc"]) == 1 else "")
    if kind == "missing":
        return "must be set: it has no default"
    if kind in _FORMS:
        return f"must be {_FORMS[kind]}"
    if kind in _OWN_TEXT:
        text = next(iter(_own_text(details).splitlines()), "").rstrip(".")
        return f"is not valid: {text}" if text and not _is_in(details["input"], text) else "is not valid"
    if text.startswith("Input should be a valid "):
        text = text.partition(",")[0]  # What follows can have a part of the value.
    if text.startswith("Input should "):
        return f"must {text.removeprefix('Input should ')}"
    return "is not valid" if _is_in(details["input"], text) else f"is not valid: {text[:1].lower()}{text[1:]}"


def _is_in(value: Any, text: str) -> bool:
    """Whether a text repeats the value. Short ones may stand there by chance."""
    return len(str(value)) >= _SHORTEST and str(value) in text


def _own_text(details: ErrorDetails) -> str:
    return details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _without_secrets(group: type[BaseSettings], text: str, values: Any) -> str:
    for name, value in values.items() if isinstance(values, dict) else ():
        field = _variable(group, name)[1]
        if field is not None and SecretStr in _types(field.annotation):
            secret = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            text = text.replace(secret, "***") if secret else text
    return text


# ---- Names ----


def variables_of(group: type[BaseSettings]) -> dict[str, FieldInfo]:
    """Return the fields by the names of their environment variables, of which a field can have several."""
    return {variable: field for name, field in group.model_fields.items() for variable in _names(group, name, field)}


def _names(group: type[BaseSettings], name: str, field: FieldInfo) -> list[str]:
    return list(_aliases(field.validation_alias)) or [f"{group.model_config.get('env_prefix', '')}{name}".upper()]


def _variable(group: type[BaseSettings], key: str) -> tuple[str, FieldInfo | None]:
    """The environment variable behind a key of the input, and the field."""
    for name, field in group.model_fields.items():
        names = _names(group, name, field)
        if key in (name, *names):
            given = [variable for variable in names if variable.upper() in map(str.upper, os.environ)]
            return " or ".join(given or names), field
    return key, None


def _aliases(alias: str | AliasPath | AliasChoices | None) -> Iterator[str]:
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, AliasPath):
        yield str(alias.path[0])
    elif isinstance(alias, AliasChoices):
        for choice in alias.choices:
            yield from _aliases(choice)


def _path(field: FieldInfo | None, details: ErrorDetails) -> str:
    """The place in a nested value, as far as it consists of fields and indexes: other keys are of the value."""
    annotation, shown = field.annotation if field is not None else None, ""
    for part in details["loc"][1:]:
        if isinstance(part, int):
            shown += f"[{part}]"
            continue
        found = next((kind for kind in _types(annotation) if part in getattr(kind, "model_fields", ())), None)
        if found is None:
            break
        shown += f".{part}"
        annotation = found.model_fields[part].annotation
    return shown


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for member in typing.get_args(annotation):
        yield from _types(member)


def _validators(group: type[BaseSettings]) -> Iterator[tuple[tuple[str, ...], types.CodeType]]:
    """The functions that check fields, with the fields' names; without names, those that check all of them."""
    decorators = group.__pydantic_decorators__
    functions: list[tuple[tuple[str, ...], Any]] = [
        ((), of_all.func) for of_all in decorators.model_validators.values()
    ]
    functions += [(of_fields.info.fields, of_fields.func) for of_fields in decorators.field_validators.values()]
    for name, field in group.model_fields.items():
        functions += [((name,), getattr(item, "func", None)) for item in (*field.metadata, *_types(field.annotation))]
    for names, function in functions:
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is not None:
            yield names, code
