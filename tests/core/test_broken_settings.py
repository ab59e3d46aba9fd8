"""Settings that an application adds: what a person reads when one of them is broken."""

import re
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    Json,
    SecretStr,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.core.config import SettingsError, SettingsGroup

VALUE = "hunter2,hunter3"
LIST = 'must be a list in JSON, such as ["one", "two"].'
FAILED = r"cannot be read: a validator raises \w+Error \(test_broken_settings\.py, line \d+\)\."
OBJECT = 'must be an object in JSON, such as {"name": "value"}.'


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Nested(BaseModel):
    port: int
    names: list[str] = []


def stopped_by(group: type[SettingsGroup], **values: Any) -> str:
    with pytest.raises(SettingsError) as stopped:
        group(**values)
    return str(stopped.value.code)


@pytest.mark.parametrize(
    ("annotation", "requirement"),
    [
        (list[str], LIST),
        (list[int], LIST),
        (list[SecretStr], LIST),
        (set[str], LIST),
        (frozenset[str], LIST),
        (tuple[str, ...], LIST),
        (list[str] | None, LIST),
        (dict[str, str], OBJECT),
        (Nested, OBJECT),
        (Json, "must be valid JSON."),
        (int, "must be a whole number."),
        (float, "must be a number."),
        (int | bool, "must be a whole number or must be true or false."),
        (bool, "must be true or false."),
        (ByteSize, "must be a size, such as 10MB."),
        (timedelta, "must be a duration, such as PT1M30S or a number of seconds."),
        (date, "must be a valid date or datetime."),
        (UUID, "must be a valid UUID."),
        (Colour, "must be 'red' or 'blue'."),
        (Literal["red", "blue"], "must be 'red' or 'blue'."),
        (Annotated[str, Field(max_length=3)], "is not valid: string should have at most 3 characters."),
        (
            Annotated[SecretStr, Field(max_length=3)],
            "is not valid: value should have at most 3 items after validation,",
        ),
    ],
)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_broken_value_of_any_type_is_one_line_with_the_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, annotation: Any, requirement: str
) -> None:
    group = create_model("Group", __base__=SettingsGroup, MINE=(annotation, ...))
    file = tmp_path / ".env"
    if source == "environment":
        monkeypatch.setenv("MINE", VALUE)
    else:
        file.write_text(f"MINE={VALUE}\n")
    line = stopped_by(group, _env_file=file)
    assert line.startswith(f"MINE {requirement}")
    assert "\n" not in line
    assert "hunter" not in line


def test_a_description_says_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(SettingsGroup):
        MINE: list[str] = Field([], description="a list of hosts in JSON")

    monkeypatch.setenv("MINE", VALUE)
    assert stopped_by(Group) == "MINE must be a list of hosts in JSON."


def test_each_broken_variable_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(SettingsGroup):
        ONE: tuple[str, ...] = ()
        TWO: dict[str, int]
        THREE: int
        GOOD: list[str]

    monkeypatch.setenv("ONE", VALUE)
    monkeypatch.setenv("TWO", VALUE)
    monkeypatch.setenv("GOOD", '["a"]')
    assert stopped_by(Group).splitlines() == [f"ONE {LIST}", f"TWO {OBJECT}", "THREE must be set: it has no default."]


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        ("MY_ALIAS", "MY_ALIAS"),
        (AliasChoices("MY_ALIAS", "OTHER"), "MY_ALIAS or OTHER"),
        (AliasChoices("OTHER", "MY_ALIAS"), "OTHER or MY_ALIAS"),
        (AliasPath("MY_ALIAS", 0), "MY_ALIAS"),
    ],
)
def test_a_broken_field_with_an_alias(monkeypatch: pytest.MonkeyPatch, alias: Any, names: str) -> None:
    class Group(SettingsGroup):
        mine: int = Field(validation_alias=alias)

    monkeypatch.setenv("MY_ALIAS", VALUE)
    line = stopped_by(Group)
    assert re.fullmatch(r"MY_ALIAS(\[0\])? must be .*", line)
    monkeypatch.delenv("MY_ALIAS")
    assert re.fullmatch(rf"{names}(\[0\])? must be set: it has no default\.", stopped_by(Group))


def test_a_prefix_is_a_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(SettingsGroup, env_prefix="SHOP_"):
        currency: Literal["EUR", "USD"] = "EUR"
        rate: float

    monkeypatch.setenv("SHOP_CURRENCY", "hunter2")
    assert stopped_by(Group).splitlines() == [
        "SHOP_CURRENCY must be 'EUR' or 'USD'.",
        "SHOP_RATE must be set: it has no default.",
    ]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("SHOP__PORT", "hunter2", "SHOP.port must be a whole number."),
        ("SHOP", '{"port": "hunter2"}', "SHOP.port must be a whole number."),
        ("SHOP", '{"port": 1, "names": ["a", 2]}', "SHOP.names[1] must be a valid string."),
        ("SHOP", "{}", "SHOP.port must be set: it has no default."),
        ("SHOP", '{"port":', f"SHOP {OBJECT}"),
        ("SHOP__NAMES", VALUE, f"SHOP.names {LIST}"),
    ],
)
def test_a_nested_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str) -> None:
    class Group(SettingsGroup, env_nested_delimiter="__"):
        SHOP: Nested

    monkeypatch.setenv(name, value)
    assert line in stopped_by(Group)


def test_keys_of_a_value_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(SettingsGroup):
        KEYS: dict[str, int]

    monkeypatch.setenv("KEYS", '{"hunter2": "x"}')
    assert stopped_by(Group) == "KEYS must be a whole number."


def _no_good(value: str) -> str:
    return value if not value else str(value + 1)  # type: ignore[operator]  # the fault


def _refuse(value: str) -> str:
    if value:
        raise ValueError(f"{value} is no word")
    return value


def _no_good_either(value: str) -> int:
    return value // 2  # type: ignore[operator]  # the fault


def _refuse_by_type(value: str) -> str:
    if value:
        raise PydanticCustomError("shop", "{value} is no country", {"value": value})
    return value


class WithValidators(SettingsGroup):
    ASSERTS: str = ""
    REFUSES: str = ""
    REPEATS: Annotated[str, AfterValidator(_refuse)] = ""
    FAILS: str = ""
    FAILS_TOO: Annotated[str, AfterValidator(_no_good)] = ""
    FAILS_BELOW: Annotated[str, BeforeValidator(_no_good_either)] | None = None
    CUSTOM: Annotated[str, AfterValidator(_refuse_by_type)] = ""
    PAIR: SecretStr | None = None

    @field_validator("ASSERTS")
    @classmethod
    def _asserts(cls, value: str) -> str:
        assert not value, "only digits"
        return value

    @field_validator("REFUSES")
    @classmethod
    def _refuses(cls, value: str) -> str:
        if value:
            raise ValueError("only words.")
        return value

    @field_validator("FAILS")
    @classmethod
    def _fails(cls, value: Any) -> str:
        return str(value + 1) if value else ""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.PAIR is not None:
            raise ValueError(f"PAIR must be two, not {self.PAIR.get_secret_value()}.")
        return self


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ASSERTS", r"ASSERTS is not valid: only digits\."),
        ("REFUSES", r"REFUSES is not valid: only words\."),
        ("REPEATS", r"REPEATS is not valid\."),
        ("FAILS", r"FAILS cannot be read: a validator raises TypeError \(test_broken_settings\.py, line \d+\)\."),
        (
            "FAILS_TOO",
            r"FAILS_TOO cannot be read: a validator raises TypeError \(test_broken_settings\.py, line \d+\)\.",
        ),
        ("FAILS_BELOW", rf"FAILS_BELOW {FAILED}"),
        ("CUSTOM", r"CUSTOM is not valid\."),
        ("PAIR", r"PAIR must be two, not \*\*\*\."),
    ],
)
def test_what_an_own_validator_raises(monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    monkeypatch.setenv(name, VALUE)
    assert re.fullmatch(line, stopped_by(WithValidators))


@pytest.mark.parametrize(
    "written",
    [
        b"\xef\xbb\xbfMINE=1\n",
        b"MINE=1\r\nOTHER=2\r\n",
        b"MINE=2\nMINE=1\n",
        b"MINE='1'\n",
        b'export MINE="1" # a comment\n',
        b"UNKNOWN=x\nMINE=1",
    ],
    ids=["BOM", "CRLF", "duplicate", "quotes", "export", "unknown"],
)
def test_files_of_all_editors_are_read(tmp_path: Path, written: bytes) -> None:
    class Group(SettingsGroup):
        MINE: int

    file = tmp_path / ".env"
    file.write_bytes(written)
    assert Group(_env_file=file).MINE == 1


def test_lists_and_objects_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(SettingsGroup):
        NAMES: list[str]
        PAIRS: dict[str, int]
        EITHER: list[str] | str

    monkeypatch.setenv("NAMES", '["a", "b"]')
    monkeypatch.setenv("PAIRS", '{"a": 1}')
    monkeypatch.setenv("EITHER", "a,b")
    group = Group()
    assert (group.NAMES, group.PAIRS, group.EITHER) == (["a", "b"], {"a": 1}, "a,b")


def test_a_validator_of_all_settings_that_fails_is_one_line() -> None:
    class Group(SettingsGroup):
        MINE: str = ""

        @model_validator(mode="before")
        @classmethod
        def _fails(cls, values: Any) -> Any:
            return values["NO_SUCH_NAME"]

    assert re.fullmatch(f"The settings {FAILED}", stopped_by(Group))
