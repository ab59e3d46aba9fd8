"""Errors that PostgreSQL or its driver raise because of a request's data, as problems of the caller.

The texts of these errors quote values, which can be secrets: `hide_values` removes them where an error is raised, so
that no log line, traceback or stored job error has them.
"""

import re
from typing import Final

from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy.exc import EmulatedDBAPIException, StatementError

from app.core.exceptions.http_exceptions import Conflict, Problem, Unprocessable

# SQLSTATE classes and codes (PostgreSQL's manual, appendix A) that data can cause: data exception, check option of a
# view, program limit exceeded (a key too long for its index, JSON nested too deep).
_DATA: Final = ("22", "44000", "54000", "54001")
_SEQUENCE_EXHAUSTED: Final = "2200H"  # in class 22, but no fault of the caller
_CONSTRAINT: Final = "23"
_NOT_NULL, _CHECK = "23502", "23514"
_RESTRICT, _FOREIGN_KEY = "23001", "23503"
_RAISED: Final = "P0001"  # RAISE EXCEPTION in a function or trigger, without an error code
# The functions of the server that execute RAISE and ASSERT, whatever the error code.
_RAISING: Final = ("exec_stmt_raise", "exec_stmt_assert")
_SYNTAX: Final = "42601"
# Source files of the server in which a syntax error is one of a value: of to_tsquery(), a jsonpath or an ltree.
_VALUE_PARSERS: Final = re.compile(r"(?:tsquery|jsonpath\w*|ltree_io)\.[cly]")
# Python's own errors, of SQLAlchemy's types: no member of an enum, a datetime without a time zone, ...
_CONVERSION: Final = (ValueError, LookupError, ArithmeticError)

_TOO_MANY_ARGUMENTS: Final = "the number of query arguments cannot exceed"
_ARGUMENT: Final = re.compile(r"(?:invalid input for )?query argument \$\d+")
# Why the driver refuses a value, as long as it does not quote the value.
_HARMLESS_REASON: Final = re.compile(r"expected [\w.| ]+, got [\w.]+|value out of \w+ range")
# A text of the server without quotation marks and numbers, but for a type's length: it quotes no value.
_HARMLESS_TEXT: Final = re.compile(r"[A-Za-z ,;:()-]+(?:\(\d+(?:,\d+)?\))?")
_HIDDEN: Final = "text hidden, since it can quote values"
_IS_HIDDEN: Final = "_slipway_values_hidden"  # of an error


class InvalidValue(Unprocessable):
    text = "The database does not accept a value of this request: it is out of range or malformed."


class ConstraintFailed(Unprocessable):
    text = "A value of this request is missing or not allowed."


class ConstraintConflict(Conflict):
    text = "The change conflicts with data that exists already."


class StillReferenced(ConstraintConflict):
    text = "Other rows still refer to this one: change or delete them first."


def problem_of(error: BaseException) -> Problem | None:
    """Return the problem that a database error is to the caller; None when the data is not the cause.

    Its members name the constraint, the table and the column as far as PostgreSQL does, and no value.

    Args:
        error: of SQLAlchemy or of asyncpg.
    """
    driver = _driver_error(error)
    if isinstance(driver, PostgresError):
        problem = _problem_of_state(driver, error)
    elif _is_refused_by_driver(driver) or (driver is not error and isinstance(driver, _CONVERSION)):
        problem = InvalidValue()
    else:
        problem = None
    if problem is not None:
        problem.__cause__ = error
    return problem


def _problem_of_state(driver: PostgresError, error: BaseException) -> Problem | None:
    state = driver.sqlstate or ""
    names = {"constraint": driver.constraint_name, "table": driver.table_name, "column": driver.column_name}
    names = {kind: name for kind, name in names.items() if name is not None}
    if state in {_NOT_NULL, _CHECK}:
        return ConstraintFailed(_with_names(ConstraintFailed.text, names), **names)
    if state == _RESTRICT or (state == _FOREIGN_KEY and _is_of_a_removal(driver, error)):
        return StillReferenced(_with_names(StillReferenced.text, names), **names)
    if state == _RAISED or state.startswith(_CONSTRAINT):
        return ConstraintConflict(_with_names(ConstraintConflict.text, names), **names)
    if _is_data_error(driver):
        return InvalidValue(_with_names(InvalidValue.text, names), **names)
    return None


def _with_names(text: str, names: dict[str, str]) -> str:
    if not names:
        return text
    return f"{text[:-1]} ({', '.join(f'{kind} {name}' for kind, name in names.items())})."


def _is_of_a_removal(driver: PostgresError, error: BaseException) -> bool:
    """Whether a foreign key holds a row that is to go, rather than missing one that is referred to.

    PostgreSQL has one code for both. Its text tells them apart, in English; the statement does in any language, unless
    the constraint is deferred.
    """
    statement = (error.statement if isinstance(error, StatementError) else None) or ""
    return statement.lstrip()[:6].upper() == "DELETE" or str(driver.args[0]).startswith("update or delete on table")


def _is_data_error(driver: PostgresError) -> bool:
    state = driver.sqlstate or ""
    if state == _SYNTAX:
        return _VALUE_PARSERS.fullmatch(driver.server_source_filename or "") is not None
    return state.startswith(_DATA) and state != _SEQUENCE_EXHAUSTED


def _is_refused_by_driver(driver: BaseException | None) -> bool:
    """Whether the driver has not sent a statement, because of the values to go with it.

    For most of these it raises the server's DataError; this is about the others.
    """
    if driver is None or type(driver) is not InterfaceError:  # A subclass is about the use of the driver.
        return False
    return str(driver.args[0]).startswith((_TOO_MANY_ARGUMENTS, "query argument $"))


def _driver_error(error: BaseException | None) -> BaseException | None:
    if isinstance(error, StatementError):
        error = error.orig
    return error.orig if isinstance(error, EmulatedDBAPIException) else error


# ---- Values in texts ----


def hide_values(error: BaseException | None) -> None:
    """Remove the values that this database error quotes, if data has caused it or a database function has raised it.

    Its type, SQLSTATE and names stay. `error.orig.detail` keeps PostgreSQL's DETAIL for code that reads it.
    """
    driver = _driver_error(error)
    if error is None or driver is None or hasattr(driver, _IS_HIDDEN):
        return
    if not (_is_raised(driver) or problem_of(error) is not None):
        return
    text = _harmless_text(driver)
    if isinstance(driver, PostgresError):
        driver.__dict__.update(detail=None, hint=None, context=None, message=text)
    elif isinstance(driver, UnicodeEncodeError):
        driver.object = ""  # Its text comes from here, not from `args`.
    elif isinstance(driver, UnicodeDecodeError):
        driver.object = b""
    driver.args = (text,)
    driver.__cause__ = driver.__context__ = None
    setattr(driver, _IS_HIDDEN, True)
    if isinstance(error, StatementError):
        if isinstance(error.orig, EmulatedDBAPIException):
            error.orig.args = (text,)
        error.args = (f"({type(driver).__module__}.{type(driver).__name__}) {text}",)
    elif isinstance(error, EmulatedDBAPIException):
        error.args = (text,)


def _is_raised(driver: BaseException) -> bool:
    return isinstance(driver, PostgresError) and driver.server_source_function in _RAISING


def _harmless_text(driver: BaseException) -> str:
    text = str(driver.args[0]) if driver.args else ""
    if text.startswith(_TOO_MANY_ARGUMENTS) or (isinstance(driver, PostgresError) and _is_own_text(driver)):
        return text
    argument, reason = _ARGUMENT.match(text), str(driver.__cause__)
    if argument is None:
        return _HIDDEN
    return f"{argument[0]}: {reason if _HARMLESS_REASON.fullmatch(reason) else _HIDDEN}"


def _is_own_text(driver: PostgresError) -> bool:
    """Whether it is PostgreSQL's own text and quotes no value: of a constraint, it does so in the DETAIL only."""
    if _is_raised(driver):
        return False
    is_of_constraint = (driver.sqlstate or "").startswith(_CONSTRAINT)
    return is_of_constraint or _HARMLESS_TEXT.fullmatch(str(driver.args[0])) is not None
