"""Errors of an answer that does not fit its response model: without values, and with what to write."""

from fastapi.exceptions import ResponseValidationError

from app.core.db.not_loaded import NotLoaded


def hide_values_of_answer(error: Exception) -> None:
    """Remove the rows and values that a failed validation of an answer quotes: no log line is to have them."""
    if isinstance(error, ResponseValidationError):
        error.body = None
        for fault in error.errors():
            fault.pop("input", None)


def explain_not_loaded(error: Exception) -> str | None:
    """What was not loaded and what to write, if an answer or a handler has read it. None for any other error."""
    if isinstance(error, NotLoaded):
        return str(error)
    faults = error.errors() if isinstance(error, ResponseValidationError) else ()
    found = (str(fault.get("ctx", {}).get("error", "")) for fault in faults)
    return next((text for text in found if text.startswith(f"{NotLoaded.__name__}: ")), None)
