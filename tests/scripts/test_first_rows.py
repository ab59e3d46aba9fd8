"""The first superuser and the first tier of an application that has changed their models."""

import asyncio
from typing import Any, Self

import pytest
from pydantic import Field as PydanticField
from pydantic import model_validator
from sqlmodel import Field, SQLModel

from app.core.config import SettingsError, get_settings
from app.models.tier import TierCreate
from app.models.user import UserCreate
from scripts import create_first_superuser, create_first_tier
from scripts.first_rows import first_values
from tests.doctor_kit import in_database

KNOWN = {"name": "Ada", "username": "ada", "email": "ada@example.com", "password": "correct horse battery"}


class Row(SQLModel):
    """A row of an application, with a column that it requires."""

    id: int = Field(default=None)
    name: str
    username: str
    email: str
    hashed_password: str
    phone: str
    tags: tuple[str, ...] = ()


class PlainRow(SQLModel):
    """The same without it."""

    name: str


class WithPhone(UserCreate):
    phone: str = PydanticField(pattern=r"^\+[0-9]+$")


class WithConsent(UserCreate):
    accepts_terms: bool
    tags: tuple[str, ...] = ()
    language: str = "en"


def values_of(create: type[UserCreate], row: type[SQLModel] = PlainRow) -> dict[str, Any]:
    return first_values(create, row, "ADMIN_", KNOWN, made=("hashed_password",))


def test_a_field_that_only_sign_up_requires_may_be_missing() -> None:
    values = values_of(WithConsent)
    assert values["language"] == "en"
    assert "accepts_terms" not in values
    assert values["username"] == "ada"


def test_a_field_is_read_from_the_variable_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_ACCEPTS_TERMS", "true")
    monkeypatch.setenv("ADMIN_TAGS", '["a", "b"]')
    values = values_of(WithConsent)
    assert (values["accepts_terms"], values["tags"]) == (True, ("a", "b"))
    monkeypatch.setenv("ADMIN_TAGS", "a,b")
    with pytest.raises(SettingsError) as stopped:
        values_of(WithConsent)
    assert stopped.value.code == 'ADMIN_TAGS must be a list in JSON, such as ["one", "two"].'


@pytest.mark.parametrize("create", [UserCreate, WithPhone])
def test_what_the_table_requires_is_asked_for(create: type[UserCreate], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as stopped:
        values_of(create, Row)
    assert stopped.value.code == "ADMIN_PHONE must be set: Row.phone is required."
    monkeypatch.setenv("ADMIN_PHONE", "+49301234")
    assert values_of(create, Row)["phone"] == "+49301234"


def test_a_value_that_the_schema_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_PHONE", "hunter2")
    with pytest.raises(SettingsError) as stopped:
        values_of(WithPhone)
    assert str(stopped.value.code).startswith("ADMIN_PHONE: String should match pattern")
    assert "hunter2" not in str(stopped.value.code)


def test_a_validator_of_the_whole_schema_is_one_line() -> None:
    class Strict(UserCreate):
        @model_validator(mode="after")
        def _refuse(self) -> Self:
            raise ValueError("Names must rhyme")

    with pytest.raises(SettingsError) as stopped:
        values_of(Strict)
    assert stopped.value.code == "ADMIN_* (Strict): Value error, Names must rhyme."


def test_other_rules_for_names_are_told_by_the_setting(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Long(UserCreate):
        username: str = PydanticField(min_length=10)

    monkeypatch.setattr(create_first_superuser, "UserCreate", Long)
    with pytest.raises(SystemExit, match=r"^ADMIN_USERNAME: String should have at least 10 characters"):
        create_first_superuser.run()


def test_the_scripts_create_rows_of_extended_schemas(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Priced(TierCreate):
        price: int

    monkeypatch.setattr(create_first_superuser, "UserCreate", WithConsent)
    monkeypatch.setattr(create_first_tier, "TierCreate", Priced)
    monkeypatch.setenv("TIER_PRICE", "7")
    get_settings.cache_clear()
    create_first_superuser.run()
    create_first_tier.run()
    assert capsys.readouterr().out == "Superuser admin created.\nTier free created.\n"


def test_a_column_that_only_the_database_requires_is_one_line(database: str) -> None:
    asyncio.run(in_database(database, "ALTER TABLE tier ADD COLUMN price int NOT NULL"))
    with pytest.raises(SystemExit) as stopped:
        create_first_tier.run()
    assert "price" in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)
