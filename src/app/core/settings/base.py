"""What every group of settings is made of.

Values come from the environment, then from `src/.env` (or the file that the variable `ENV_FILE` names).
A field's description completes the sentence "NAME must be ...", which a person with a broken value gets to read.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_FILE = Path(os.environ.get("ENV_FILE") or Path(__file__).resolve().parents[3] / ".env")

Port = Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]


class SettingsError(SystemExit):
    """A setting is missing or broken. Uncaught, it ends the process with one line per fault, exit code 1."""


class SettingsGroup(BaseSettings):
    """Base of every group."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    def __init__(self, **values: Any) -> None:
        """Raises: SettingsError naming each faulty variable, never its value, or the file that can't be read."""
        try:
            if ENV_FILE.is_dir():  # Which pydantic would take for no file.
                raise SettingsError(f"{ENV_FILE} must be a file, not a folder.")
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("\n".join(self._faults(error))) from None
        except UnicodeDecodeError:
            raise SettingsError(f"{ENV_FILE} must be a UTF-8 text file.") from None
        except OSError as error:
            raise SettingsError(f"{ENV_FILE} must be readable for this user: {error.strerror}.") from None

    def inherits(self, *groups: type["SettingsGroup"]) -> bool:
        """Whether all of these groups are among this class's bases, that is, their features are on."""
        return all(isinstance(self, group) for group in groups)

    @classmethod
    def _faults(cls, error: ValidationError) -> list[str]:
        faults = []
        for fault in error.errors(include_input=False, include_url=False):
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if not name:
                faults.append(fault["msg"].removeprefix("Value error, "))
                continue
            expected = cls.model_fields[name].description or fault["msg"]
            missing = " It is not set." if fault["type"] == "missing" else ""
            faults.append(f"{name} must be {expected}.{missing}")
        return faults


def items(value: Any) -> list[str]:
    """The items of a list: comma-separated, or JSON, or one already."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    return [text for item in value if (text := str(item).strip())]
