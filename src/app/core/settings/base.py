"""What every group of settings is made of.

Values come from the environment, then from `src/.env` (or the file that the variable `ENV_FILE` names).
A field's description completes the sentence "NAME must be ...", which a person with a broken value gets to read.
"""

import codecs
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.core.settings.errors import RefusedValueError, error_lines, failed_validator

__all__ = ["ENV_FILE", "Port", "PositiveInt", "RefusedValueError", "SettingsError", "SettingsGroup", "items"]

ENV_FILE = Path(os.environ.get("ENV_FILE") or Path(__file__).resolve().parents[3] / ".env")

_ENCODING = codecs.lookup("utf-8-sig").name  # Editors of Windows begin a file with a byte order mark.

Port = Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]


class SettingsError(SystemExit):
    """A setting is missing or broken. Uncaught, it ends the process with one line per fault, exit code 1."""


class SettingsGroup(BaseSettings):
    """Base of every group."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding=_ENCODING, env_ignore_empty=True, extra="ignore"
    )

    def __init__(self, **values: Any) -> None:
        """Raises: SettingsError naming each faulty variable, never its value, or the file that can't be read."""
        try:
            if ENV_FILE.is_dir():  # Which pydantic would take for no file.
                raise SettingsError(f"{ENV_FILE} must be a file, not a folder.")
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("\n".join(error_lines(type(self), error))) from None
        except UnicodeDecodeError:
            raise SettingsError(f"{ENV_FILE} must be a UTF-8 text file.") from None
        except Exception as error:
            if isinstance(error, OSError) and str(error.filename) == str(ENV_FILE):
                raise SettingsError(f"{ENV_FILE} must be readable for this user: {error.strerror}.") from None
            if line := failed_validator(type(self), error):
                raise SettingsError(line) from None
            raise

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """pydantic's own sources, which leave a value that is no JSON to the field's validation."""
        sources = (env_settings, dotenv_settings, file_secret_settings)
        for source in sources:
            source.decode_complex_value = partial(_decoded, source.decode_complex_value)  # type: ignore[method-assign]
        return init_settings, *sources

    def inherits(self, *groups: type["SettingsGroup"]) -> bool:
        """Whether all of these groups are among this class's bases, that is, their features are on."""
        return all(isinstance(self, group) for group in groups)


def _decoded(decode: Callable[[str, FieldInfo, Any], Any], name: str, field: FieldInfo, value: Any) -> Any:
    """pydantic stops at the first value that is no JSON, with a text that does not say what it should be."""
    try:
        return decode(name, field, value)
    except ValueError:
        return value


def items(value: Any) -> list[str]:
    """The items of a list: comma-separated, or JSON, or one already."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    return [text for item in value if (text := str(item).strip())]
