"""The values of the first superuser and the first tier, of models that an application may have extended."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo
from sqlmodel import SQLModel

from app.core.config import SettingsError, SettingsGroup


def first_values(
    create: type[BaseModel], row: type[SQLModel], prefix: str, known: dict[str, Any], made: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values for a row, as the schema makes them of the settings.

    A field that the application has added is read from the variable of its name: `phone` of a user from `ADMIN_PHONE`.
    It may be missing, unless the table requires it: nobody signs up here.

    Args:
        create: the schema of what comes in, such as `UserCreate`.
        row: the table class.
        prefix: what the variables begin with, such as `ADMIN_`.
        known: the values of the fields that have settings of their own.
        made: the fields of the row that the caller fills in.

    Raises: SettingsError with a line per variable that is missing or not acceptable.
    """
    required = {name: field for name, field in row.model_fields.items() if field.is_required() and name not in made}
    added = {name: field for name, field in (required | create.model_fields).items() if name not in known}
    given = _given(added, prefix)
    if lines := [
        f"{_variable(prefix, name)} must be set: {row.__name__}.{name} is required."
        for name in required
        if name not in {*known, *given}
    ]:
        raise SettingsError("\n".join(lines))
    absent = [
        name for name, field in create.model_fields.items() if field.is_required() and name not in {*known, *given}
    ]
    optional: dict[str, Any] = dict.fromkeys(absent, (Any, None))
    schema = create_model(create.__name__, __base__=create, **optional)
    of_schema = {name: value for name, value in {**known, **given}.items() if name in create.model_fields}
    try:
        values = schema.model_validate(of_schema).model_dump(exclude=set(absent))
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(error, create, prefix))) from None
    return {**given, **values}


def _given(fields: dict[str, FieldInfo], prefix: str) -> dict[str, Any]:
    """The values of these fields that the environment or `src/.env` has."""
    variables: dict[str, Any] = {}
    for name, field in fields.items():
        annotation: Any = field.annotation
        variables[_variable(prefix, name)] = (annotation | None, None)
    found = create_model("FirstValues", __base__=SettingsGroup, **variables)()
    names = {name: _variable(prefix, name) for name in fields}
    return {name: getattr(found, variable) for name, variable in names.items() if variable in found.model_fields_set}


def _variable(prefix: str, name: str) -> str:
    return f"{prefix}{name}".upper()


def _lines(error: ValidationError, create: type[BaseModel], prefix: str) -> list[str]:
    """A line per field; what a validator of the whole schema says is about all of them."""
    faults = error.errors(include_url=False)
    names = [
        _variable(prefix, str(fault["loc"][0])) if fault["loc"] else f"{prefix}* ({create.__name__})"
        for fault in faults
    ]
    return [f"{name}: {fault['msg']}." for name, fault in zip(names, faults, strict=True)]
