"""What to do about a migration that PostgreSQL refuses for want of an extension."""

import re

from sqlalchemy.exc import DBAPIError

_REMEDY = "docs/migrations.md#extensions lists what the embedded server has, and the steps to use a server of your own."
_EXTENSION = re.compile(r'extension "([^"]+)"')


def missing_extension(error: DBAPIError) -> str | None:
    """Return one line that says which extension is missing and what to do; None for any other error."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    text = str(error.orig).splitlines()[0]
    named = _EXTENSION.search(text)
    if named and state in {"0A000", "58P01"}:
        return f'This PostgreSQL server does not have the extension "{named[1]}". {_REMEDY}'
    if named and state == "42501":
        return (
            f'This database role may not create the extension "{named[1]}": a superuser has to, with '
            f'CREATE EXTENSION "{named[1]}" in this database. {_REMEDY}'
        )
    if state in {"42883", "42704"}:  # an unknown function, type or operator class
        return f"{text}. If an extension has it, create the extension in an earlier migration. {_REMEDY}"
    return None
