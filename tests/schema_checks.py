"""Which of Schemathesis's checks do not apply to an operation."""

from collections.abc import Iterator
from typing import Any

from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

Check = Any  # Schemathesis names no type


def excluded_checks(document: dict[str, Any], case: "Case[Any]") -> list[Check]:
    """The checks that an operation is exempt from.

    A schema cannot describe what a file has to contain: bytes that fit it may be refused because of their content. And
    bytes have no type: a number in the place of a file, which violates the schema, is sent as the text of that number.
    The answer still has to be one that the document describes, and no 5xx.
    """
    operation = document["paths"][case.path].get(case.method.lower(), {})  # It also asks by methods there are not.
    return [positive_data_acceptance, negative_data_rejection] if takes_a_file(document, operation) else []


def takes_a_file(document: dict[str, Any], operation: dict[str, Any]) -> bool:
    """Whether the body of an operation is a file or contains one, as a form does."""
    bodies = operation.get("requestBody", {}).get("content", {})
    return any(
        schema.get("format") == "binary" or "contentMediaType" in schema
        for body in bodies.values()
        for schema in _schemas(document, body.get("schema", {}), set())
    )


def _schemas(document: dict[str, Any], schema: Any, seen: set[str]) -> Iterator[dict[str, Any]]:
    """A schema and those within it, references followed."""
    if isinstance(schema, list):
        for item in schema:
            yield from _schemas(document, item, seen)
    elif isinstance(schema, dict):
        yield schema
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            yield from _schemas(document, document["components"]["schemas"][reference.rpartition("/")[2]], seen)
        for value in schema.values():
            yield from _schemas(document, value, seen)
