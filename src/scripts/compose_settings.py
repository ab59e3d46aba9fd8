"""Makes what `docker compose up` of a fresh clone lacks: the service `settings` of docker-compose.yml runs it first.

`python -m src.scripts.compose_settings` writes the secrets to the file that ENV_FILE names, and for PostgreSQL's image
one file per value into DATABASE_SETTINGS. The first start takes what `src/.env` has and generates the rest. Later
starts keep the database's login and the first superuser's password, since the data in the volumes have them by then.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from app.core.config import ENV_FILE, EnvironmentOption, EnvironmentSettings, FirstUserSettings, SettingsError

from .env_file import new_secrets

EXAMPLE: Final = Path(__file__).parents[1] / ".env.example"
DATABASE_SETTINGS: Final = "DATABASE_SETTINGS"  # the variable that names the folder
DATABASE_FILES: Final = {"POSTGRES_USER": "user", "POSTGRES_PASSWORD": "password", "POSTGRES_DB": "database"}
_DEFAULTS: Final = {"POSTGRES_USER": "slipway", "POSTGRES_DB": "slipway"}
_GENERATED: Final = "ADMIN_PASSWORD_IS_GENERATED"


def main() -> None:
    """Write the files, and say how to sign in. Raises: SettingsError outside of `local` when a secret is missing."""
    values = settings_of(_values_in(ENV_FILE), os.environ)
    # As `make run` does, the rest begins with what the example has. The environment, and so src/.env, wins over both.
    written = _values_in(EXAMPLE) | values
    _write(ENV_FILE, "".join(f"{name}={_quoted(value)}\n" for name, value in written.items()))
    folder = Path(os.environ[DATABASE_SETTINGS])
    for name, file in DATABASE_FILES.items():
        _write(folder / file, values[name])
    if EnvironmentSettings().ENVIRONMENT is EnvironmentOption.LOCAL:
        print(_how_to_sign_in(values), flush=True)


def _values_in(file: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(file).items() if value}


def settings_of(stored: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the values to keep.

    Args:
        stored: those of earlier starts, among others.
        given: the environment, with what `src/.env` has.

    Raises: SettingsError outside of `local` when a secret is neither stored nor given.
    """
    secrets = new_secrets()
    kept = {name: stored[name] for name in (*secrets, *DATABASE_FILES) if name in stored}
    known = {**_DEFAULTS, **{name: value for name, value in given.items() if value}, **kept}
    missing = [name for name in secrets if name not in known]
    if missing and known.get("ENVIRONMENT", EnvironmentOption.LOCAL) != EnvironmentOption.LOCAL:
        raise SettingsError(
            f"{' and '.join(missing)} must be set in src/.env: secrets are generated for ENVIRONMENT=local only."
        )
    values = {name: known.get(name, secret) for name, secret in secrets.items()}
    values |= {name: known[name] for name in DATABASE_FILES if name not in values}
    if "ADMIN_PASSWORD" in missing or _GENERATED in stored:
        values[_GENERATED] = "true"
    return values


def _how_to_sign_in(values: Mapping[str, str]) -> str:
    password = values["ADMIN_PASSWORD"] if _GENERATED in values else "ADMIN_PASSWORD of src/.env at the first start"
    return f"""
  The API will be at http://127.0.0.1:8000 (documentation: /docs, console: /admin/).

    user name  {FirstUserSettings().ADMIN_USERNAME}
    password   {password}
"""


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _write(file: Path, text: str) -> None:
    """Replace the file as a whole. All containers that have the volume may read it, whatever their user is."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as scratch:
        scratch.write(text)
        os.fchmod(handle, 0o644)
    Path(name).replace(file)


if __name__ == "__main__":
    main()
